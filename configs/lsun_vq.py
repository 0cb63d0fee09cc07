"""VQGAN on LSUN's bedrooms (or data.name=lsun/church_outdoor): 256x256 pixels, f=16, 1024 codes.

    python -m taming_jax.train --config=configs/lsun_vq.py --workdir=runs/lsun_vq

The paper's churches and bedrooms. The original has no file for them: this is `imagenet_vq`, but the discriminator
starts when FacesHQ's does. TFDS prepares the data set.
"""

from ml_collections import ConfigDict

from configs import imagenet_vq


def get_config() -> ConfigDict:
    c = imagenet_vq.get_config()
    c.data.name = "lsun/bedroom"
    c.disc.update(start=30_001, gen_start=30_001)
    return c
