"""Transformer that paints a drawing from a map of its colours, hair, skin and lines.

    python -m taming_jax.train  --config=configs/openmoji_segmentation_transformer.py --workdir=runs/openmoji_maps
    python -m taming_jax.sample --workdir=runs/openmoji_maps --out=runs/painted --num_samples=4

The map's first stage is `openmoji_segmentation`.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_config()
    c.cond = common.get_cond("image")
    c.cond.workdir = "runs/openmoji_segmentation"
    c.cond.aligned = True
    c.gpt.update(n_unmasked=64, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    return c
