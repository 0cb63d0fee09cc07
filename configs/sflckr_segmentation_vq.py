"""VQ model of S-FLCKR's segmentation maps, 182 labels. The first stage of `sflckr_transformer`'s condition.

    python -m taming_jax.train --config=configs/sflckr_segmentation_vq.py --workdir=runs/sflckr_segmentation_vq

Numbers from the original's configs/sflckr_cond_stage.yaml, for 8 devices of 12 maps: DeepLab's labels of COCO-Stuff.
"""

from ml_collections import ConfigDict

from configs import common, imagenet_vq


def get_config() -> ConfigDict:
    c = imagenet_vq.get_config()
    c.data = common.get_data("folder", size=256)
    c.data.update(path="data/sflckr", label_shift=0, flip=False, resize_factor=2.0, workers=8)
    c.disc.update(start=30_001, gen_start=30_001)
    common.use_segmentation(c, num_labels=182)
    return c
