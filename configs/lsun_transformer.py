"""Unconditional transformer on LSUN, over the codes of `lsun_vq`.

    python -m taming_jax.train --config=configs/lsun_transformer.py --workdir=runs/lsun_transformer

Sizes as for FacesHQ.
"""

from ml_collections import ConfigDict

from configs import common, faceshq_transformer


def get_config() -> ConfigDict:
    c = faceshq_transformer.get_config()
    c.first_stage = common.get_first_stage("runs/lsun_vq")
    c.cond = common.get_cond("none")
    c.gpt.block_size = 256
    return c
