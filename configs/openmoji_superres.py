"""Transformer that draws finely what it sees coarsely: super-resolution by four; on crops, as `openmoji_line`.

    python -m taming_jax.train  --config=configs/openmoji_superres.py --workdir=runs/openmoji_superres
    python -m taming_jax.sample --workdir=runs/openmoji_superres --out=runs/sharp --size=64x64 --condition=small.png

The coarse picture's first stage is `openmoji_low_vq`.
"""

from ml_collections import ConfigDict

from configs import openmoji_line


def get_config() -> ConfigDict:
    c = openmoji_line.get_config()
    c.cond.workdir = "runs/openmoji_low_vq"
    return c
