"""Transformer that paints a scene from its layout: which drawings, and where.

python -m taming_jax.train  --config=configs/openmoji_scenes.py --workdir=runs/openmoji_scenes
python -m taming_jax.sample --workdir=runs/openmoji_scenes --out=runs/scenes
"""

from ml_collections import ConfigDict

from configs import common, openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_config()
    c.first_stage = common.get_first_stage("runs/openmoji_scenes_vq")
    c.cond = common.get_cond("objects")
    c.cond.layout.update(min_objects=1, max_objects=4, num_tokens=1024, encode_crop=False, use_group=False)
    return c
