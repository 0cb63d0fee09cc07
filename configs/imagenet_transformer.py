"""The paper's class-conditional transformer on ImageNet: 1.4 billion parameters, 48 layers of 1536 (Esser et al. 2021).

    python -m taming_jax.train --config=configs/imagenet_transformer.py --workdir=runs/imagenet_transformer

Its first stage has 16384 codes: --config=configs/imagenet_vq.py --config.quantizer.codebook_size=16384. Sizes and
learning rate (4.5e-6 for each image of the global batch) are the original's; its published run reached FID 15.78, and
5.20 with rejection sampling. This config was compiled for a TPU slice (launch/README.md), not run at full size here.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config()
    c.task = "prior"
    c.dtype = "bfloat16"
    c.mesh.update(data=1, fsdp=-1)
    c.first_stage = common.get_first_stage("runs/imagenet_vq")
    c.cond = common.get_cond("class")
    c.order = "row_major"
    c.pkeep = 1.0
    c.data = common.get_moved_data()
    c.batch_size = 256
    c.steps = 500_000
    c.eval_every = 10_000
    c.checkpoint_every = 2_000
    c.gpt = common.get_gpt(num_layers=48, num_heads=24, embed_dim=1536, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    c.gpt.remat = "dots"
    c.canvas = (0, 0)
    c.sample = ConfigDict(dict(temperature=1.0, top_k=250, top_p=1.0, guidance=1.0))
    c.optim = ConfigDict(
        dict(
            learning_rate=4.5e-6 * 256,
            schedule="cosine",
            warmup_steps=5_000,
            b1=0.9,
            b2=0.95,
            weight_decay=0.01,
            clip_norm=1.0,
        )
    )
    return c
