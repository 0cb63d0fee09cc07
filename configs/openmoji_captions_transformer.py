"""Transformer on the codes of openmoji_vq, conditioned on what a drawing shows, in words.

    python -m taming_jax.train  --config=configs/openmoji_captions_transformer.py \\
        --workdir=runs/openmoji_captions_transformer
    python -m taming_jax.sample --workdir=runs/openmoji_captions_transformer --out=runs/hearts --caption="red heart"

The captions are Unicode's names of the emoji. A tenth of them is dropped in training, so that samples can be guided.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_base()
    c.cond = common.get_cond("caption")
    c.cond.max_words = 8
    c.cond.drop = 0.1
    c.gpt.n_unmasked = 8  # words see each other
    return c
