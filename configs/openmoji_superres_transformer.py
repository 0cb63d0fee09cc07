"""Transformer that draws finely what it sees coarsely: super-resolution by four.

    python -m taming_jax.train  --config=configs/openmoji_superres_transformer.py \\
        --workdir=runs/openmoji_superres_transformer
    python -m taming_jax.sample --workdir=runs/openmoji_superres_transformer --out=runs/sharp \\
        --condition=small.png

The coarse image's first stage is `openmoji_low_vq`; all else is as for `openmoji_line_transformer`.
"""

from ml_collections import ConfigDict

from configs import openmoji_transformer


def get_config() -> ConfigDict:
    return openmoji_transformer.get_on_grid("openmoji_low_vq")
