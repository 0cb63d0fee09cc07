"""VQGAN on the images of ADE20k: 256x256 pixels, f=16, 1024 codes.

    python -m taming_jax.train --config=configs/ade20k_vq.py --workdir=runs/ade20k_vq

The original's file for it is not public: this is `imagenet_vq`, but the discriminator starts when FacesHQ's does.
"""

from ml_collections import ConfigDict

from configs import common, imagenet_vq


def get_config() -> ConfigDict:
    c = imagenet_vq.get_config()
    c.data = common.get_data("folder", size=256)
    c.data.update(path="data/ade20k/images", flip=False, resize_factor=296 / 256, workers=8)
    c.data.splits.update(train="training", validation="validation")
    c.disc.update(start=30_001, gen_start=30_001)
    return c
