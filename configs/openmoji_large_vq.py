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
    c.optim.update(name="muon", learning_rate=4e-3)
    c.steps = 1100
    c.eval_every = 1100
    c.loss.perceptual_start = 850
    c.disc.update(start=850, gen_start=900, ramp_steps=100)
    return c
