"""First stage on small crops of large drawings: 32 of 512 pixels, f=4. `make demo-large` trains it first.

    python -m taming_jax.train --config=configs/openmoji_large_vq.py --workdir=runs/openmoji_large_vq

A crop is one colour, or a stroke's edge between two: 1024 codes tell most pairs of colours apart, 512 mistook many.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_base()
    c.quantizer = common.get_ema(1024)
    common.use_large_crops(c)
    c.update(steps=1700, eval_every=1700)
    c.loss.perceptual_start = 1550
    return c
