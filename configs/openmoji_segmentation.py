"""VQ model of segmentation maps: paper, filled, line, from OpenMoji's colours and its line art.

    python -m taming_jax.train --config=configs/openmoji_segmentation.py --workdir=runs/openmoji_segmentation

The original's VQSegmentationModel: one-hot maps in, binary cross-entropy for each label.
"""

from ml_collections import ConfigDict

from configs import openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_config()
    c.input = "segmentation"
    c.data.features = ("image", "segmentation")
    c.model.out_ch = 3  # labels
    c.quantizer.codebook_size = 256
    c.loss.pixel = "bce"
    c.loss.perceptual_weight = 0.0
    c.disc.weight = 0.0
    return c
