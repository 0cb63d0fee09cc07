"""The VQ-VAE on OpenMoji: the squared error alone, neither LPIPS nor a discriminator (van den Oord et al. 2017).

    python -m taming_jax.train --config=configs/openmoji_l2_vq.py --workdir=runs/openmoji_l2_vq

A fast baseline, some six minutes on two CPU cores; its pictures are blurred where those of openmoji_vq are crisp.
"""

from ml_collections import ConfigDict

from configs import openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_base()
    c.loss.perceptual_weight = 0.0
    c.disc.weight = 0.0
    return c
