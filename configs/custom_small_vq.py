"""First stage on any folder of images, for a laptop: 64x64 pixels, f=4, 1024 codes; two CPU cores suffice.

    python -m taming_jax.train --config=configs/custom_small_vq.py --workdir=runs/custom_small_vq \\
        --config.data.path=/my/images

The recipe of `openmoji_vq` with 48 channels in place of 32, on crops that may be mirrored. `--config.data.size=128` has
four times as many codes. On a GPU, and for larger images, take `custom_vq`.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_config()
    c.data = common.get_data("folder", size=64)
    c.data.resize_factor = 1.125
    c.model.ch = 48
    return c
