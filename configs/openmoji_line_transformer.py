"""Transformer that colours line art: its condition is the codes of the lines. The second stage of
`make demo-conditional`.

    python -m taming_jax.train  --config=configs/openmoji_line_transformer.py --workdir=runs/openmoji_line_transformer
    python -m taming_jax.sample --workdir=runs/openmoji_line_transformer --out=runs/coloured \\
        --size=64x64 --num_samples=4

It learns on crops of 32 pixels, and colours whole drawings of 64 with the sliding window, which moves over the lines
too. All codes of the lines see each other (`n_unmasked`), and each code begins with attention to the lines at its own
place (`cond.aligned`): otherwise, the transformer learns that last.
"""

from ml_collections import ConfigDict

from configs import openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_aligned("runs/openmoji_crops_vq", "image")
    c.cond.workdir = "runs/openmoji_line_vq"
    c.gpt.n_unmasked = 64
    return c
