"""Transformer that colours line art: its condition is the codes of the lines. The second stage of
`make demo-conditional`.

    python -m taming_jax.train  --config=configs/openmoji_line_transformer.py --workdir=runs/openmoji_line_transformer
    python -m taming_jax.sample --workdir=runs/openmoji_line_transformer --out=runs/coloured --num_samples=4

A wavefront transformer: lines lie where the codes lie, and a code sees them up to 16 codes away
(`gpt.context.cond_layers`), since an area's colour follows from its whole shape.
"""

from ml_collections import ConfigDict

from configs import openmoji_transformer


def get_config() -> ConfigDict:
    return openmoji_transformer.get_on_grid("openmoji_line_vq")
