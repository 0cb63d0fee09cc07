"""VQ model of a large drawing's thumbnail: crops of 32 pixels with eight times fewer pixels a side, one code for each.

    python -m taming_jax.train --config=configs/openmoji_large_low_vq.py --workdir=runs/openmoji_large_low_vq

The first stage of the condition of `openmoji_large_transformer`.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_base()
    c.input = "low"
    c.data.features = ("image", "low")
    common.use_large_crops(c)
    c.data.downscale = 8
    c.model.update(patch=8, ch_mult=(2,))
    c.quantizer.codebook_size = 512
    c.update(steps=1000, eval_every=1000)
    c.loss.perceptual_weight = 0.0
    return c
