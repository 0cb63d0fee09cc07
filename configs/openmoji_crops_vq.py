"""VQGAN on crops: 32 of the 64 pixels of an OpenMoji drawing, so that a transformer can paint drawings of any size.

    python -m taming_jax.train --config=configs/openmoji_crops_vq.py --workdir=runs/openmoji_crops_vq

The first stage of `openmoji_coordinates`; model and losses are those of `openmoji_vq`.
"""

from ml_collections import ConfigDict

from configs import openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_config()
    c.data.resize_factor = 2.0
    c.data.random_crop = True
    return c
