"""Transformer on crops of drawings, told where each crop lies: it paints whole drawings with the sliding window.

    python -m taming_jax.train  --config=configs/openmoji_coordinates_transformer.py \\
        --workdir=runs/openmoji_coordinates_transformer
    python -m taming_jax.sample --workdir=runs/openmoji_coordinates_transformer --out=runs/large --size=64x64

The original's FacesHQ in small: unaligned crops, and a coordinate for every code (Esser et al. 2021, appendix).
"""

from ml_collections import ConfigDict

from configs import common, openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_base()
    c.first_stage = common.get_first_stage("runs/openmoji_crops_vq")
    c.cond = common.get_cond("coordinates")
    c.cond.down = 4
    c.canvas = (64, 64)
    return c
