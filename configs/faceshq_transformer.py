"""Transformer on faces, conditioned on where each code lies (the original's FacesHQ), to follow unaligned crops.

    python -m taming_jax.train --config=configs/faceshq_transformer.py --workdir=runs/faceshq_transformer

Numbers from the original's configs/faceshq_transformer.yaml, for 8 devices of 2 images.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    return common.get_transformer("runs/faceshq_vq", "coordinates")
