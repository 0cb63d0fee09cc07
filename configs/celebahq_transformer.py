"""Unconditional transformer on CelebA-HQ, over the codes of `faceshq_vq`.

    python -m taming_jax.train --config=configs/celebahq_transformer.py --workdir=runs/celebahq_transformer

The original's file for it is not public: sizes as for FacesHQ. Its published samples reached FID 10.2.
"""

from ml_collections import ConfigDict

from configs import common, faceshq_transformer


def get_config() -> ConfigDict:
    c = faceshq_transformer.get_config()
    c.cond = common.get_cond("none")
    c.gpt.block_size = 256
    c.data.path = "data/celebahq"
    return c
