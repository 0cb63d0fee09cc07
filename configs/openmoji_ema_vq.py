"""First stage on OpenMoji, 32 pixels, with codes that are running means (van den Oord et al. 2017, appendix A.1).

python -m taming_jax.train --config=configs/openmoji_ema_vq.py --workdir=runs/openmoji_ema_vq
"""

from ml_collections import ConfigDict

from configs import common, openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_base()
    c.quantizer = common.get_ema(1024)
    return c
