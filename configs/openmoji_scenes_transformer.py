"""Transformer that paints a scene from its layout: what kinds of drawings, and where.

python -m taming_jax.train  --config=configs/openmoji_scenes_transformer.py --workdir=runs/openmoji_scenes_transformer
python -m taming_jax.sample --workdir=runs/openmoji_scenes_transformer --out=runs/scenes

Corners of boxes lie on the grid of the codes: 16x16 cells, and an id for no object. The boxes precede the codes, all of
which see them, and know their own places.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_transformer


def get_config() -> ConfigDict:
    c = openmoji_transformer.get_config()
    c.first_stage = common.get_first_stage("runs/openmoji_scenes_vq")
    c.cond = common.get_cond("objects")
    c.cond.drop = 0.1
    c.cond.layout.update(min_objects=1, max_objects=4, num_tokens=257, encode_crop=False, use_group=False)
    c.update(batch_size=8, steps=1000, eval_every=1000)
    return c
