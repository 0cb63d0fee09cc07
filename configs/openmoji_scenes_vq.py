"""VQGAN on scenes of a few OpenMoji drawings: 64x64 pixels, f=4. The first stage of `openmoji_scenes_transformer`.

python -m taming_jax.train --config=configs/openmoji_scenes_vq.py --workdir=runs/openmoji_scenes_vq
"""

from ml_collections import ConfigDict

from configs import openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_config()
    c.data.update(name="openmoji/scenes", size=64)
    return c
