"""Segmentation map to image on COCO.

    python -m taming_jax.train --config=configs/coco_transformer.py --workdir=runs/coco_transformer

The original's file for it is not public: the sizes are those for FacesHQ and S-FLCKR. The published run reached FID
20.4 on the 5,000 images of the validation set.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_transformer("runs/coco_vq", "image")
    c.cond.workdir = "runs/coco_segmentation_vq"
    c.data.path = "data/coco"
    return c
