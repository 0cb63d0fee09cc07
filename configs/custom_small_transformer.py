"""Transformer on the codes of custom_small_vq, with the folder's classes if it has some.

    python -m taming_jax.train --config=configs/custom_small_transformer.py --workdir=runs/custom_small_transformer

The recipe of `openmoji_transformer`, a wavefront with modern layers, with 6 layers in place of 4 for pictures of any
kind, and without guidance, since a folder may have no classes. Each code knows its place, as a share of the picture:
`--config.gpt.context.places=False` is for pictures that go on beyond their borders.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_config()
    c.first_stage = common.get_first_stage("runs/custom_small_vq")
    c.gpt.update(num_layers=6, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
    c.update(batch_size=16, steps=500, eval_every=500)
    c.sample.update(temperature=0.9, guidance=1.0)
    return c
