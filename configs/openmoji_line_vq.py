"""VQ model of OpenMoji's line art, on crops as in `openmoji_crops_vq`.

    python -m taming_jax.train --config=configs/openmoji_line_vq.py --workdir=runs/openmoji_line_vq

The first stage of `openmoji_line_transformer`'s condition. Lines need neither LPIPS nor a discriminator: L1 alone.
"""

from ml_collections import ConfigDict

from configs import openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_config()
    c.input = "line"
    c.data.features = ("image", "line")
    c.data.resize_factor = 2.0
    c.data.random_crop = True
    c.model.out_ch = 1
    c.quantizer.codebook_size = 128
    c.steps = 700
    c.eval_every = 700
    c.loss.pixel = "l1"
    c.loss.perceptual_weight = 0.0
    c.disc.weight = 0.0
    return c
