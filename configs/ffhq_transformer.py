"""Unconditional transformer on FFHQ, over the codes of `faceshq_vq`.

    python -m taming_jax.train --config=configs/ffhq_transformer.py --workdir=runs/ffhq_transformer

The original's file for it is not public: the sizes are those for FacesHQ. Its published samples reached FID 9.6.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_transformer("runs/faceshq_vq", "none")
    c.gpt.block_size = 256
    c.data.path = "data/ffhq"
    return c
