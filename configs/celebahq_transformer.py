"""Unconditional transformer on CelebA-HQ, over the codes of `faceshq_vq`.

    python -m taming_jax.train --config=configs/celebahq_transformer.py --workdir=runs/celebahq_transformer

The original's file for it is not public: the sizes are those for FacesHQ. Its published samples reached FID 10.2.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_transformer("runs/faceshq_vq", "none")
    c.gpt.block_size = 256
    c.data.path = "data/celebahq"
    return c
