"""Transformer on the codes of custom_vq, with the folder's classes if it has some.

    python -m taming_jax.train --config=configs/custom_transformer.py --workdir=runs/custom_transformer

The sizes are those of the original's configs/faceshq_transformer.yaml, with dropout, since a folder is smaller.
The comments here and in `common` say what each field means, in all configs of transformers.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config()
    c.task = "transformer"
    c.first_stage = common.get_first_stage("runs/custom_vq")
    c.cond = common.get_cond("class")
    c.order = "row_major"  # in which codes are written: row_major, spiral_out, spiral_in, z_curve, subsample, ...
    c.pkeep = 1.0  # share of the codes before that training leaves as they are; the others become random ones
    c.noise_until = 0  # step until which more of them become random ones, at first up to all (reAR); 0: none
    c.vector_weight = 0.0  # of guesses of the codebook's vectors, in training alone (reAR has 1); 0: none
    c.vector_init = 0.0  # deviation of what codes' vectors add to embeddings at the start; 0: nothing, as in the paper
    c.data = common.get_moved_data()
    c.codes = ""  # folder that taming_jax.encode has written, to train on in place of images
    c.batch_size = 8  # images of a step, over all devices
    c.steps = 200_000  # of the optimizer, each on one batch
    c.eval_every = 5_000
    c.ema_decay = 0.999
    c.gpt = common.get_gpt(
        num_layers=24,  # blocks of attention and MLP
        num_heads=16,  # of attention
        embed_dim=1024,  # width of the layers
        embd_pdrop=0.1,  # dropout of embeddings
        attn_pdrop=0.1,  # dropout of attention
        resid_pdrop=0.1,  # dropout of what a layer adds
    )
    c.canvas = (0, 0)  # height and width in pixels of a larger image, painted and animated at each evaluation; 0: none
    c.sample = common.get_sample(
        temperature=1.0,  # above 1 is wilder, below 1 is tamer
        top_k=100,  # draw from the k likeliest codes
        top_p=1.0,  # draw from the likeliest codes that hold this share of the probability
    )
    c.optim = common.get_optim(
        learning_rate=4.5e-6 * 8,  # the original has 4.5e-6 for each image of the batch
        schedule="cosine",  # constant or cosine
        warmup_steps=1_000,  # over which the learning rate rises from 0
        b1=0.9,  # Adam's, of the gradient's mean
        b2=0.95,  # Adam's, of its square
        weight_decay=0.01,  # of kernels
        clip_norm=1.0,  # bound of the gradient's norm; 0: none
    )
    return c
