"""Transformer that draws finely what it sees coarsely: super-resolution by four.

    python -m taming_jax.train  --config=configs/openmoji_superres_transformer.py \\
        --workdir=runs/openmoji_superres_transformer
    python -m taming_jax.sample --workdir=runs/openmoji_superres_transformer --out=runs/sharp --size=64x64 \\
        --condition=small.png

The coarse image's first stage is `openmoji_low_vq`; all else is as for `openmoji_line_transformer`.
"""

from ml_collections import ConfigDict

from configs import openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_aligned("runs/openmoji_crops_vq", "image")
    c.cond.workdir = "runs/openmoji_low_vq"
    c.gpt.n_unmasked = 64
    return c
