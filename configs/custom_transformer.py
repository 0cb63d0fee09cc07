"""Transformer on the codes of custom_vq, with the folder's classes if it has some.

    python -m taming_jax.train --config=configs/custom_transformer.py --workdir=runs/custom_transformer

The sizes are those of the original's configs/faceshq_transformer.yaml, with dropout, since a folder is smaller.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config()
    c.task = "transformer"
    c.first_stage = common.get_first_stage("runs/custom_vq")
    c.cond = common.get_cond("class")
    c.order = "row_major"
    c.pkeep = 1.0
    c.data = common.get_moved_data()
    c.codes = ""  # folder that taming_jax.encode has written, to train on in place of images
    c.batch_size = 8
    c.steps = 200_000
    c.eval_every = 5_000
    c.ema_decay = 0.999
    c.gpt = common.get_gpt(num_layers=24, num_heads=16, embed_dim=1024, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
    c.canvas = (0, 0)  # height and width in pixels of a larger image, painted and animated at each evaluation; 0: none
    c.sample = common.get_sample(temperature=1.0, top_k=100, top_p=1.0)
    c.optim = common.get_optim(
        learning_rate=4.5e-6 * 8,
        schedule="cosine",
        warmup_steps=1_000,
        b1=0.9,
        b2=0.95,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    return c
