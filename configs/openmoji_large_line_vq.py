"""VQ model of a large drawing's line art, on crops as in `openmoji_large_vq`.

    python -m taming_jax.train --config=configs/openmoji_large_line_vq.py --workdir=runs/openmoji_large_line_vq

The first stage of the condition of `openmoji_large_line_transformer`.
"""

from ml_collections import ConfigDict

from configs import openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_config()
    c.input = "line"
    c.data.features = ("image", "line")
    c.data.name = "openmoji/px512"
    c.data.resize_factor = 16.0
    c.data.random_crop = True
    c.model.out_ch = 1
    c.quantizer.codebook_size = 128
    c.steps = 700
    c.eval_every = 700
    c.loss.pixel = "l1"
    c.loss.perceptual_weight = 0.0
    c.disc.weight = 0.0
    return c
