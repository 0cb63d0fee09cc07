"""First stage on OpenMoji, 32 pixels, on L1 with 512 codes of a Gumbel-softmax quantizer (Ramesh et al. 2021, 2.1).

    python -m taming_jax.train --config=configs/openmoji_gumbel_vq.py --workdir=runs/openmoji_gumbel_vq

The temperature falls along a cosine, as in that paper (there to 1/16); the divergence from the uniform distribution
grows from 0, so that the codes are not spread out before they mean something. Few codes are in use at first: 6 % after
300 steps.
"""

from ml_collections import ConfigDict

from configs import openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_base()
    c.quantizer = ConfigDict(dict(name="gumbel", codebook_size=512, embed_dim=16))
    c.quantizer.straight_through = True  # one-hot draws in training too; False: soft ones
    c.quantizer.temperature = dict(  # of the draws: a warm-up, then a cosine; decay_steps counts both
        init_value=1.0, peak_value=1.0, warmup_steps=0, decay_steps=2400, end_value=1 / 16
    )
    c.quantizer.kl_weight = dict(  # of the divergence from uniform codes, over the steps likewise
        init_value=0.0, peak_value=5e-4, warmup_steps=600, decay_steps=3000, end_value=5e-4
    )
    c.loss.pixel = "l1"
    c.restart_codes_after = 0  # this quantizer restarts no codes
    return c
