"""Transformer that draws finely what it sees coarsely: super-resolution by four.

    python -m taming_jax.train  --config=configs/openmoji_superres.py --workdir=runs/openmoji_superres
    python -m taming_jax.sample --workdir=runs/openmoji_superres --out=runs/sharp --condition=small.png

The coarse picture's first stage is `openmoji_low_vq`.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_config()
    c.cond = common.get_cond("image")
    c.cond.workdir = "runs/openmoji_low_vq"
    c.cond.aligned = True
    c.gpt.update(n_unmasked=16, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    return c
