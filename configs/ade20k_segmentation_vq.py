"""VQ model of ADE20k's segmentation maps, 151 labels. The first stage of `ade20k_transformer`'s condition.

    python -m taming_jax.train --config=configs/ade20k_segmentation_vq.py --workdir=runs/ade20k_segmentation_vq

The original's file for it is not public. The numbers are those for COCO-Stuff; the labels are ADE20k's 150 and one for
nothing.
"""

from ml_collections import ConfigDict

from configs import common, imagenet_vq


def get_config() -> ConfigDict:
    c = imagenet_vq.get_config()
    c.data = common.get_data("folder", size=256)
    c.data.update(path="data/ade20k", label_shift=0, flip=False, resize_factor=296 / 256, workers=8)
    c.data.splits.update(train="training", validation="validation")
    c.disc.update(start=30_001, gen_start=30_001)
    common.use_segmentation(c, num_labels=151)
    return c
