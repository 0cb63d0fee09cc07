"""VQ model of a large drawing's line art, on crops as in `openmoji_large_vq`.

    python -m taming_jax.train --config=configs/openmoji_large_line_vq.py --workdir=runs/openmoji_large_line_vq

The first stage of the condition of `openmoji_large_transformer:line`.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_base()
    common.use_lines(c)
    common.use_large_crops(c)
    return c
