"""Wavefront transformer with modern layers on the codes of custom_modern_vq, with the folder's classes if it has some.

    python -m taming_jax.train --config=configs/custom_modern_transformer.py --workdir=runs/custom_modern_transformer

The recipe of `imagenet_modern_transformer` in a size for a folder, with dropout. Each code knows its place, as a share
of the picture: `--config.gpt.context.places=False` is for pictures that go on beyond their borders. This config was not
run at full size here.
"""

from ml_collections import ConfigDict

from configs import common, custom_transformer


def get_config() -> ConfigDict:
    c = custom_transformer.get_config()
    c.first_stage = common.get_first_stage("runs/custom_modern_vq")
    c.cond.drop = 0.1  # for guidance
    c.gpt.update(architecture="modern", num_layers=12, num_heads=12, embed_dim=768, attn_pdrop=0.0)
    c.gpt.context.update(kind="wavefront", reach=(8, 8), places=True)
    c.update(vector_weight=1.0, vector_init=0.1)
    c.optim.learning_rate = 1e-4
    return c
