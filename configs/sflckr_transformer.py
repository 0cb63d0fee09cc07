"""Segmentation map to image on S-FLCKR.

    python -m taming_jax.train --config=configs/sflckr_transformer.py --workdir=runs/sflckr_transformer

Numbers from the original's configs/sflckr_transformer.yaml, for 8 devices of one image. Landscapes of any size:

    python -m taming_jax.sample --workdir=runs/sflckr_transformer --out=out --condition=map.png --size=512x1024
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_transformer("runs/sflckr_vq", "image")
    c.cond.workdir = "runs/sflckr_segmentation_vq"
    c.data.path = "data/sflckr"
    c.batch_size = 8
    c.optim.learning_rate = 4.5e-6 * c.batch_size
    return c
