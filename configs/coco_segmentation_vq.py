"""VQ model of COCO's segmentation maps, 183 labels. The condition's first stage of `coco_transformer`.

    python -m taming_jax.train --config=configs/coco_segmentation_vq.py --workdir=runs/coco_segmentation_vq

Numbers from the original's configs/coco_cond_stage.yaml, for 8 devices of 12 maps; docs/data.md has the folder.
"""

from ml_collections import ConfigDict

from configs import coco_vq


def get_config() -> ConfigDict:
    c = coco_vq.get_config()
    c.input = "segmentation"
    c.data.update(path="data/coco", features=("image", "segmentation"), label_shift=1)
    c.batch_size = 96
    c.model.out_ch = 183
    c.loss.update(pixel="bce", perceptual_weight=0.0)
    c.disc.weight = 0.0
    c.optim.learning_rate = 4.5e-6 * c.batch_size
    return c
