"""VQ model of ADE20k's segmentation maps, 151 labels. The condition's first stage of `ade20k_transformer`.

    python -m taming_jax.train --config=configs/ade20k_segmentation_vq.py --workdir=runs/ade20k_segmentation_vq

The original's file for it is not public: numbers as for COCO-Stuff, with ADE20k's 150 labels and nothing.
"""

from ml_collections import ConfigDict

from configs import ade20k_vq


def get_config() -> ConfigDict:
    c = ade20k_vq.get_config()
    c.input = "segmentation"
    c.data.update(path="data/ade20k", features=("image", "segmentation"), label_shift=0)
    c.batch_size = 96
    c.model.out_ch = 151
    c.loss.update(pixel="bce", perceptual_weight=0.0)
    c.disc.weight = 0.0
    c.optim.learning_rate = 4.5e-6 * c.batch_size
    return c
