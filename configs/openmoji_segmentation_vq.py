"""VQ model of segmentation maps: paper, line, skin, hair and ten hues, from the layers of OpenMoji's SVGs, on crops.

    python -m taming_jax.train --config=configs/openmoji_segmentation_vq.py --workdir=runs/openmoji_segmentation_vq

The original's VQSegmentationModel: one-hot maps in, binary cross-entropy for each label.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_base()
    common.use_crops(c, resize_factor=2.0)
    common.use_segmentation(c, num_labels=14)  # taming_jax.data.openmoji.PALETTE
    c.quantizer.codebook_size = 256
    c.steps = 1000
    c.eval_every = 1000
    return c
