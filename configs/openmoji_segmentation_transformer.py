"""Transformer that paints drawings from maps of their colours, hair, skin and lines.

    python -m taming_jax.train  --config=configs/openmoji_segmentation_transformer.py \\
        --workdir=runs/openmoji_segmentation_transformer
    python -m taming_jax.sample --workdir=runs/openmoji_segmentation_transformer --out=runs/painted \\
        --size=64x64 --num_samples=4

The map's first stage is `openmoji_segmentation_vq`; all else is as for `openmoji_line_transformer`.
"""

from ml_collections import ConfigDict

from configs import openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_aligned("runs/openmoji_crops_vq", "image")
    c.cond.workdir = "runs/openmoji_segmentation_vq"
    c.gpt.n_unmasked = 64
    return c
