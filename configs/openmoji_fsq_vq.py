"""First stage on OpenMoji, 32 pixels, with finite scalars (Mentzer et al. 2023): channels of 8, 5, 5 and 5 levels.

python -m taming_jax.train --config=configs/openmoji_fsq_vq.py --workdir=runs/openmoji_fsq_vq

There is no codebook: nothing is learned, no code can die, and the quantizer has no loss.
"""

from ml_collections import ConfigDict

from configs import openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_base()
    c.quantizer = ConfigDict(
        dict(
            name="fsq",
            levels=(8, 5, 5, 5),  # steps of each channel; a code is one of their combinations
            eps=1e-3,  # how far the outermost steps keep from the bound
        )
    )
    c.restart_codes_after = 0
    return c
