"""VQGAN on the images of COCO: 256x256 pixels, f=16, 1024 codes.

    python -m taming_jax.train --config=configs/coco_vq.py --workdir=runs/coco_vq

The original's file for it is not public: this is `imagenet_vq`, but the discriminator starts when FacesHQ's does, and
the crops are COCO-Stuff's. `coco_scenes_transformer` needs 8192 codes: --config.quantizer.codebook_size=8192.
"""

from ml_collections import ConfigDict

from configs import common, imagenet_vq


def get_config() -> ConfigDict:
    c = imagenet_vq.get_config()
    c.data = common.get_data("folder", size=256)
    c.data.update(path="data/coco/images", flip=False, resize_factor=296 / 256, workers=8)
    c.data.splits.update(train="train2017", validation="val2017")
    c.disc.update(start=30_001, gen_start=30_001)
    return c
