"""The paper's class-conditional transformer on ImageNet: 1.4 billion parameters, 48 layers of 1536 (Esser et al. 2021).

    python -m taming_jax.train --config=configs/imagenet_transformer.py --workdir=runs/imagenet_transformer

Its first stage has 16384 codes: --config=configs/imagenet_vq.py --config.quantizer.codebook_size=16384
--workdir=runs/imagenet_16384_vq. The sizes are the original's (its file for this model is not public; they are quoted
in its issues); learning rate and batch size are usual for this size. Its published run reached FID 15.78, and 5.20
with rejection sampling; this config was compiled for TPU slices, not run at full size here.

On a TPU slice, --config=configs/imagenet_transformer.py:v5e-256 takes that slice's line of the table below. What it can
reach there is in launch/README.md, from `taming_jax.compile_ahead`.
"""

from ml_collections import ConfigDict

from configs import common

# Parameters and optimizer are split over up to 16 chips; more chips hold copies.
SLICES = {
    "v4-8": {"batch_size": 64},
    "v5e-16": {"batch_size": 128},
    "v5e-256": {"batch_size": 2048, "mesh.data": 16, "mesh.fsdp": 16},
    "v5p-64": {"batch_size": 512, "mesh.data": 2, "mesh.fsdp": 16},
    "v6e-256": {"batch_size": 2048, "mesh.data": 16, "mesh.fsdp": 16},
}


def get_config(slice_name: str = "") -> ConfigDict:
    c = common.get_config()
    c.task = "transformer"
    c.dtype = "bfloat16"
    c.mesh.update(data=1, fsdp=-1)
    c.first_stage = common.get_first_stage("runs/imagenet_16384_vq")
    c.cond = common.get_cond("class")
    c.order = "row_major"
    c.pkeep = 1.0
    c.noise_until = 0
    c.vector_weight = 0.0
    c.vector_init = 0.0
    c.data = common.get_moved_data()
    c.codes = ""  # folder that taming_jax.encode has written, to train on in place of images
    c.batch_size = 256
    c.steps = 500_000
    c.eval_every = 10_000
    c.checkpoint_every = 2_000
    c.gpt = common.get_gpt(num_layers=48, num_heads=24, embed_dim=1536, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    c.gpt.remat = "dots"
    c.canvas = (0, 0)
    c.sample = common.get_sample(temperature=1.0, top_k=250, top_p=1.0)
    c.optim = common.get_optim(
        learning_rate=3e-4,
        schedule="cosine",
        warmup_steps=5_000,
        b1=0.9,
        b2=0.95,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    if slice_name:
        common.use_slice(c, slice_name, SLICES)
    return c
