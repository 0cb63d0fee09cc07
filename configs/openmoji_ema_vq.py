"""openmoji_vq with a codebook of running means (van den Oord et al. 2017, appendix A.1), the original's EMAVQ.

python -m taming_jax.train --config=configs/openmoji_ema_vq.py --workdir=runs/openmoji_ema_vq
"""

from ml_collections import ConfigDict

from configs import openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_config()
    c.quantizer = ConfigDict(dict(name="ema", codebook_size=1024, embed_dim=16, commitment_weight=0.25))
    c.quantizer.decay = 0.99  # of the means that codes are
    c.quantizer.eps = 1e-5  # smooths the sizes of clusters towards uniform
    return c
