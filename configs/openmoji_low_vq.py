"""VQ model of crops with four times fewer pixels a side.

    python -m taming_jax.train --config=configs/openmoji_low_vq.py --workdir=runs/openmoji_low_vq

The first stage of `openmoji_superres_transformer`'s condition: a code for each of its pixels, and for each code of the
fine image.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_base()
    c.input = "low"
    c.data.features = ("image", "low")
    common.use_crops(c, resize_factor=2.0)
    c.model.update(patch=4, ch_mult=(2,))
    c.quantizer.codebook_size = 256
    c.steps = 1000
    c.eval_every = 1000
    c.loss.perceptual_weight = 0.0
    return c
