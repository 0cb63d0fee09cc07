"""The paper's VQGAN on ImageNet: 256x256 pixels, f=16, 1024 codes (Esser et al. 2021, section 4 and table 7).

    python -m taming_jax.train --config=configs/imagenet_vq.py --workdir=runs/imagenet_vq

Numbers from the original's configs/imagenet_vqgan.yaml: its learning rate is 4.5e-6 for each image of the global
batch, here 8 devices of 12. ImageNet must have been prepared by TFDS (its docs say how to get the archives). The
published run reached rFID 7.94 on the validation set; this config was not run at full size here.

On a TPU slice, --config=configs/imagenet_vq.py:v5e-16 takes that slice's line of the table below. What it can reach
there is in launch/README.md, from `taming_jax.compile_ahead`.
"""

from ml_collections import ConfigDict

from configs import common

# Half precision, and at least 16 images per chip: the compiler lays them next to the channels in memory, so fewer
# images would fill only part of each tile and move as many bytes. 32 images fill 14.5 of a v5e's 15.75 GiB. Nothing was
# trained with such batches.
SLICES = {
    "v4-8": {"dtype": "bfloat16", "batch_size": 128},
    "v5e-16": {"dtype": "bfloat16", "batch_size": 256},
    "v5e-256": {"dtype": "bfloat16", "batch_size": 8192, "optim.warmup_steps": 1000},
    "v5p-64": {"dtype": "bfloat16", "batch_size": 1024, "optim.warmup_steps": 1000},
    "v6e-256": {"dtype": "bfloat16", "batch_size": 8192, "optim.warmup_steps": 1000},
}


def get_config(slice_name: str = "") -> ConfigDict:
    c = common.get_config()
    c.task = "vqgan"
    c.input = "image"
    c.data = common.get_data("imagenet2012", size=256)
    c.data.flip = False
    c.data.workers = 8
    c.batch_size = 96
    c.steps = 1_000_000
    c.eval_every = 10_000
    c.checkpoint_every = 5_000
    c.model = common.get_model(
        ch=128, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, attn_resolutions=(16,), z_channels=256, out_ch=3
    )
    # legacy=True would weight the codebook loss as the original's code does, against the paper's eq. 4.
    c.quantizer = ConfigDict(dict(name="vq", codebook_size=1024, embed_dim=256, commitment_weight=0.25, legacy=False))
    c.restart_codes_after = 0  # steps without use; the paper leaves unused codes alone
    c.loss = ConfigDict(
        dict(
            pixel="l1",
            pixel_weight=1.0,
            perceptual_weight=1.0,
            perceptual_start=0,
            perceptual_crop=0,
            codebook_weight=1.0,
        )
    )
    # The paper's hard switch: the discriminator starts to learn and gets its full weight in the same step.
    c.disc = common.get_disc(
        ndf=64,
        n_layers=3,
        start=250_001,
        gen_start=250_001,
        ramp_steps=0,
        weight=0.8,
        max_weight=1e4,
    )
    c.optim = common.get_optim(
        learning_rate=4.5e-6 * 96,
        schedule="constant",
        warmup_steps=0,
        b1=0.5,
        b2=0.9,
        weight_decay=0.0,
        clip_norm=0.0,
    )
    if slice_name:
        common.use_slice(c, slice_name, SLICES)
    return c
