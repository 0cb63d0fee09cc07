"""VQ model of COCO's segmentation maps, 183 labels. The first stage of `coco_transformer`'s condition.

    python -m taming_jax.train --config=configs/coco_segmentation_vq.py --workdir=runs/coco_segmentation_vq

Numbers from the original's configs/coco_cond_stage.yaml, for 8 devices of 12 maps; docs/data.md has the folder.
"""

from ml_collections import ConfigDict

from configs import common, imagenet_vq


def get_config() -> ConfigDict:
    c = imagenet_vq.get_config()
    c.data = common.get_data("folder", size=256)
    c.data.update(path="data/coco", label_shift=1, flip=False, resize_factor=296 / 256, workers=8)
    c.data.splits.update(train="train2017", validation="val2017")
    c.disc.update(start=30_001, gen_start=30_001)
    common.use_segmentation(c, num_labels=183)
    return c
