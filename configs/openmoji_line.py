"""Transformer that colours line art: its condition are the codes of the lines. The second stage of
`make demo-conditional`.

    python -m taming_jax.train  --config=configs/openmoji_line.py --workdir=runs/openmoji_line
    python -m taming_jax.sample --workdir=runs/openmoji_line --out=runs/coloured --num_samples=4
"""

from ml_collections import ConfigDict

from configs import common, openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_config()
    c.cond = common.get_cond("image")
    c.cond.workdir = "runs/openmoji_line_vq"
    c.steps = 700
    c.eval_every = 700
    return c
