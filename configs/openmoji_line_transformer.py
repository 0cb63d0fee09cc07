"""Transformer that colours line art: its condition is the codes of the lines. The second stage of
`make demo-conditional`.

    python -m taming_jax.train  --config=configs/openmoji_line_transformer.py --workdir=runs/openmoji_line_transformer
    python -m taming_jax.sample --workdir=runs/openmoji_line_transformer --out=runs/coloured --num_samples=4

A wavefront transformer on whole drawings: the lines lie where the codes lie, and each code begins with what is around
its own place. Lines say nothing of colours: an area takes the one that its codes began with.
"""

from ml_collections import ConfigDict

from configs import openmoji_transformer


def get_config() -> ConfigDict:
    return openmoji_transformer.get_on_grid("openmoji_line_vq")
