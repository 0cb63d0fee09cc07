"""Transformer on faces, told where each code lies (the original's FacesHQ): it follows unaligned crops.

    python -m taming_jax.train --config=configs/faceshq_transformer.py --workdir=runs/faceshq_transformer

Numbers from the original's configs/faceshq_transformer.yaml, for 8 devices of 2 images.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config()
    c.task = "prior"
    c.first_stage = common.get_first_stage("runs/faceshq_vq")
    c.cond = common.get_cond("coordinates")
    c.order = "row_major"
    c.pkeep = 1.0
    c.data = common.get_moved_data()
    c.codes = ""  # folder that taming_jax.encode has written, to train on in place of images
    c.batch_size = 16
    c.steps = 1_000_000
    c.eval_every = 10_000
    c.checkpoint_every = 5_000
    c.gpt = common.get_gpt(num_layers=24, num_heads=16, embed_dim=1024, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    c.gpt.update(vocab_size=1024, block_size=512)
    c.canvas = (0, 0)  # height and width in pixels of a larger image, painted and animated at each evaluation; 0: none
    c.sample = ConfigDict(dict(temperature=1.0, top_k=100, top_p=1.0, guidance=1.0))
    c.optim = ConfigDict(
        dict(
            learning_rate=4.5e-6 * 16,
            schedule="constant",
            warmup_steps=0,
            final_share=0.01,
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.01,
            clip_norm=0.0,
        )
    )
    return c
