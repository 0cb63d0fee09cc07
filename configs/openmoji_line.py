"""Transformer that colours line art: its condition are the codes of the lines. The second stage of
`make demo-conditional`.

    python -m taming_jax.train  --config=configs/openmoji_line.py --workdir=runs/openmoji_line
    python -m taming_jax.sample --workdir=runs/openmoji_line --out=runs/coloured --size=64x64 --num_samples=4

It learns on crops of 32 pixels, and colours whole drawings of 64 with the sliding window, which moves over the lines
too. All codes of the lines see each other (`n_unmasked`), and each code begins with attention to the lines at its own
place (`cond.aligned`): without, it learns that last.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_config()
    c.first_stage = common.get_first_stage("runs/openmoji_crops_vq")
    c.cond = common.get_cond("image")
    c.cond.workdir = "runs/openmoji_line_vq"
    c.cond.aligned = True
    c.batch_size = 8
    c.steps = 2400
    c.eval_every = 2400
    c.gpt.update(n_unmasked=64, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    c.optim.learning_rate = 1.5e-3
    return c
