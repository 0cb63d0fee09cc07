"""VQGAN on crops: 32 of the 64 pixels of an OpenMoji drawing, so that a transformer can paint drawings of any size.

    python -m taming_jax.train --config=configs/openmoji_crops_vq.py --workdir=runs/openmoji_crops_vq

The first stage of `openmoji_coordinates_transformer` and `openmoji_line_transformer`. Its codes are running
means of the latents.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_base()
    c.quantizer = common.get_ema(1024)
    c.data.resize_factor = 2.0
    c.data.random_crop = True
    c.loss.perceptual_start = 2600
    c.disc.update(start=2600, gen_start=2700)
    c.eval_every = 3000
    return c
