"""Transformer that paints a scene from its layout: what kinds of drawings, and where.

python -m taming_jax.train  --config=configs/openmoji_scenes_transformer.py --workdir=runs/openmoji_scenes_transformer
python -m taming_jax.sample --workdir=runs/openmoji_scenes_transformer --out=runs/scenes

Boxes are painted on the grid of the codes (`cond.layout.kind`). So each code of a wavefront transformer knows what kind
of drawing it belongs to, and which part of it, and sees what lies near.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_config()
    c.first_stage = common.get_first_stage("runs/openmoji_scenes_vq")
    c.cond = common.get_cond("objects")
    c.cond.layout.update(kind="grid", min_objects=1, max_objects=4, encode_crop=False, use_group=False)
    c.cond.layout.num_tokens = 129**2 + 1  # corners on all borders between a scene's 128 pixels
    c.cond.drop = 0.1  # for guidance
    c.data.flip = True
    c.gpt.context.places = False
    c.gpt.update(embd_pdrop=0.1, resid_pdrop=0.1)
    c.update(steps=1500, eval_every=1500)
    c.sample.update(temperature=0.7, guidance=3.0)
    return c
