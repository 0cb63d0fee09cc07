"""VQGAN on small crops of large drawings: 32 of 512 pixels, f=4. The first stage of `make demo-large`.

    python -m taming_jax.train --config=configs/openmoji_large_vq.py --workdir=runs/openmoji_large_vq

A crop is a stroke's edge or one colour: 512 codes are enough.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_base()
    c.quantizer = common.get_ema(512)
    common.use_large_crops(c)
    c.steps = 1800
    c.eval_every = 1800
    c.loss.perceptual_start = 1500
    c.disc.update(start=1500, gen_start=1600, ramp_steps=200)
    return c
