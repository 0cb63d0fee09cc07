"""VQGAN on any folder of images: 256x256 pixels, f=16, 1024 codes.

    python -m taming_jax.train --config=configs/custom_vq.py --workdir=runs/custom_vq --config.data.path=/my/images

The model is the original's configs/custom_vqgan.yaml. The rest avoids the most common failures: the discriminator
learns for 5,000 steps before it acts on the generator, then its weight ramps up over 10,000 and stays capped; there are
random crops and flips, a warm-up, and averaged weights. On a GPU with less memory, lower --config.batch_size.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config()
    c.task = "vqgan"
    c.input = "image"
    c.data = common.get_data("folder", size=256)
    c.data.resize_factor = 1.125
    c.batch_size = 8
    c.steps = 200_000
    c.eval_every = 5_000
    c.ema_decay = 0.999
    c.model = ConfigDict(
        dict(ch=128, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, attn_resolutions=(16,), z_channels=256, out_ch=3)
    )
    c.model.network = "vqgan"  # or maskgit, see taming_jax/models/maskgit.py
    c.model.remat = False  # True: less memory, more arithmetic
    c.quantizer = ConfigDict(dict(name="vq", codebook_size=1024, embed_dim=256, commitment_weight=0.25, legacy=False))
    c.restart_codes_after = 100  # steps without use
    c.loss = ConfigDict(
        dict(pixel="l1", pixel_weight=1.0, perceptual_weight=1.0, perceptual_start=0, codebook_weight=1.0)
    )
    c.disc = ConfigDict(
        dict(
            ndf=64,
            n_layers=3,
            use_actnorm=False,
            loss="hinge",
            start=10_000,
            gen_start=15_000,
            ramp_steps=10_000,
            weight=0.8,
            delta=1e-4,  # beside the divisor of the adaptive weight; the paper has 1e-6
            max_weight=10.0,
        )
    )
    c.optim = common.get_optim(
        learning_rate=4.5e-6 * 8,
        schedule="constant",
        warmup_steps=1_000,
        b1=0.5,
        b2=0.9,
        weight_decay=0.0,
        clip_norm=1.0,
    )
    return c
