"""Unconditional transformer on LSUN, over the codes of `lsun_vq`.

    python -m taming_jax.train --config=configs/lsun_transformer.py --workdir=runs/lsun_transformer

The sizes are those for FacesHQ.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_transformer("runs/lsun_vq", "none")
    c.gpt.block_size = 256
    return c
