"""Transformer that paints drawings from maps of their colours, hair, skin and lines.

    python -m taming_jax.train  --config=configs/openmoji_segmentation_transformer.py \\
        --workdir=runs/openmoji_segmentation_transformer
    python -m taming_jax.sample --workdir=runs/openmoji_segmentation_transformer --out=runs/painted --num_samples=4

The map's first stage is `openmoji_segmentation_vq`; all else is as for `openmoji_line_transformer`.
"""

from ml_collections import ConfigDict

from configs import openmoji_transformer


def get_config() -> ConfigDict:
    return openmoji_transformer.get_on_grid("openmoji_segmentation_vq")
