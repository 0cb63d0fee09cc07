"""VQ model of S-FLCKR's segmentation maps, 182 labels. The condition's first stage of `sflckr_transformer`.

    python -m taming_jax.train --config=configs/sflckr_segmentation_vq.py --workdir=runs/sflckr_segmentation_vq

Numbers from the original's configs/sflckr_cond_stage.yaml, for 8 devices of 12 maps: DeepLab's labels of COCO-Stuff.
"""

from ml_collections import ConfigDict

from configs import sflckr_vq


def get_config() -> ConfigDict:
    c = sflckr_vq.get_config()
    c.input = "segmentation"
    c.data.update(path="data/sflckr", features=("image", "segmentation"), label_shift=0)
    c.batch_size = 96
    c.model.out_ch = 182
    c.loss.update(pixel="bce", perceptual_weight=0.0)
    c.disc.weight = 0.0
    c.optim.learning_rate = 4.5e-6 * c.batch_size
    return c
