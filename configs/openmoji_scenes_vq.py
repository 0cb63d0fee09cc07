"""VQGAN on scenes of a few OpenMoji drawings: 64x64 pixels, f=4. The first stage of `openmoji_scenes`.

python -m taming_jax.train --config=configs/openmoji_scenes_vq.py --workdir=runs/openmoji_scenes_vq
"""

from ml_collections import ConfigDict

from configs import openmoji_crops_vq


def get_config() -> ConfigDict:
    c = openmoji_crops_vq.get_config()
    c.data.name = "openmoji/scenes"
    c.data.size = 64
    c.data.resize_factor = 1.0
    c.data.random_crop = False
    c.batch_size = 4
    return c
