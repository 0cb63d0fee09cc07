"""Transformer that paints a scene from its layout: what kinds of drawings, and where.

python -m taming_jax.train  --config=configs/openmoji_scenes_transformer.py --workdir=runs/openmoji_scenes_transformer
python -m taming_jax.sample --workdir=runs/openmoji_scenes_transformer --out=runs/scenes

Corners of boxes lie on the grid of the codes (16x16 cells, and an id for no object), and each code begins with
attention to the corners around it (`cond.aligned`): otherwise, the transformer learns last what it was asked for.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_base()
    c.first_stage = common.get_first_stage("runs/openmoji_scenes_vq")
    c.cond = common.get_cond("objects")
    c.cond.aligned = True
    c.cond.layout.update(min_objects=1, max_objects=4, num_tokens=257, encode_crop=False, use_group=False)
    c.gpt.update(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    c.optim.learning_rate = 1.5e-3
    c.update(batch_size=8, steps=4800, eval_every=4800)
    c.sample.temperature = 0.6
    return c
