"""VQ model of OpenMoji's line art, on crops as in `openmoji_crops_vq`.

    python -m taming_jax.train --config=configs/openmoji_line_vq.py --workdir=runs/openmoji_line_vq

The first stage of `openmoji_line_transformer`'s condition.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_base()
    common.use_lines(c)
    common.use_crops(c, resize_factor=2.0)
    return c
