"""Transformer that paints drawings from maps of their colours, hair, skin and lines; on crops, as `openmoji_line`.

    python -m taming_jax.train  --config=configs/openmoji_segmentation_transformer.py --workdir=runs/openmoji_maps
    python -m taming_jax.sample --workdir=runs/openmoji_maps --out=runs/painted --size=64x64 --num_samples=4

The map's first stage is `openmoji_segmentation`.
"""

from ml_collections import ConfigDict

from configs import openmoji_line


def get_config() -> ConfigDict:
    c = openmoji_line.get_config()
    c.cond.workdir = "runs/openmoji_segmentation"
    return c
