"""VQGAN on the images of S-FLCKR: 256x256 pixels, f=16, 1024 codes.

    python -m taming_jax.train --config=configs/sflckr_vq.py --workdir=runs/sflckr_vq

The original's file for it is not public: this is `imagenet_vq`, but the discriminator starts when FacesHQ's does, and
crops are half a landscape's side, so that the sliding window has something to continue.
"""

from ml_collections import ConfigDict

from configs import common, imagenet_vq


def get_config() -> ConfigDict:
    c = imagenet_vq.get_config()
    c.data = common.get_data("folder", size=256)
    c.data.update(path="data/sflckr/images", flip=False, resize_factor=2.0, workers=8)
    c.disc.update(start=30_001, gen_start=30_001)
    return c
