"""Transformer on the codes of openmoji_vq, conditioned on the Unicode group. The second stage of `make demo`.

    python -m taming_jax.train --config=configs/openmoji_transformer.py --workdir=runs/openmoji_transformer

The first stage is found by its run directory; model and data come from there.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = get_base()
    # Fewer nats and a smaller Fréchet distance than the paper's at equal steps (docs/recipes.md).
    c.gpt.architecture = "modern"
    c.gpt.context.update(kind="wavefront", places=True)  # each drawing is in the middle of its square
    c.update(vector_weight=1.0, vector_init=0.1)
    c.optim.update(name="muon", learning_rate=3e-3)
    # Smaller steps without dropout: more nats of held-out drawings, but better samples (docs/recipes.md).
    c.gpt.update(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    c.update(batch_size=8, steps=1050, eval_every=1050)
    c.cond.drop = 0.1  # for guidance
    c.sample.update(temperature=0.8, top_p=0.95, guidance=1.5)
    return c


def get_base() -> ConfigDict:
    """What all transformers on OpenMoji begin with: the paper's, and Adam, as they were measured."""
    c = common.get_config()
    c.task = "transformer"
    c.first_stage = common.get_first_stage("runs/openmoji_vq")
    c.cond = common.get_cond("class")
    c.order = "row_major"
    c.pkeep = 1.0
    c.noise_until = 0
    c.vector_weight = 0.0
    c.vector_init = 0.0
    c.data = common.get_moved_data()
    c.codes = ""  # folder that taming_jax.encode has written, to train on in place of images
    c.batch_size = 16
    c.steps = 1500
    c.log_every = 100
    c.eval_every = 750
    c.ema_decay = 0.99
    c.gpt = common.get_gpt(num_layers=4, num_heads=8, embed_dim=256, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
    c.canvas = (0, 0)  # height and width in pixels of a larger image, painted and animated at each evaluation; 0: none
    c.sample = common.get_sample(temperature=0.8, top_k=1024, top_p=0.9)
    c.optim = common.get_optim(
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=50,
        b1=0.9,
        b2=0.95,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    return c


def get_on_grid(cond: str) -> ConfigDict:
    """A wavefront transformer on whole drawings of 64 pixels, whose condition, another image, lies where codes lie."""
    c = get_config()
    c.first_stage = common.get_first_stage("runs/openmoji_crops_vq")
    c.cond = common.get_cond("image")
    c.cond.workdir = f"runs/{cond}"
    c.data.update(size=64, resize_factor=1.0, random_crop=False, flip=True)
    c.gpt.context.places = False
    c.gpt.update(embd_pdrop=0.1, resid_pdrop=0.1)
    c.update(steps=600, eval_every=600)
    c.sample.update(temperature=0.6, top_p=0.9, guidance=1.0)
    return c
