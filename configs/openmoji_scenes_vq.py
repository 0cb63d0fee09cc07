"""VQGAN on scenes of a few OpenMoji drawings: 64x64 pixels, f=4. The first stage of `openmoji_scenes_transformer`.

python -m taming_jax.train --config=configs/openmoji_scenes_vq.py --workdir=runs/openmoji_scenes_vq
"""

from ml_collections import ConfigDict

from configs import common, openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_base()
    c.quantizer = common.get_ema(1024)
    c.data.update(name="openmoji/scenes", size=64)
    c.batch_size = 4
    c.eval_every = 3000
    c.loss.perceptual_start = 2600
    c.disc.update(start=2600, gen_start=2700)
    return c
