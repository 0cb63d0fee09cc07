"""First stage on OpenMoji: 48x48 pixels, f=4, 1024 codes, small enough for two CPU cores. That of `make demo`.

    python -m taming_jax.train --config=configs/openmoji_vq.py --workdir=runs/openmoji_vq

What two cores do in some minutes (docs/recipes.md has what was tried): the network takes squares of 2x2 pixels for one
(`model.patch`), and has norms of single places, which keep white paper white. On a CPU, LPIPS costs more than the whole
generator: so the autoencoder first learns on pixels alone, and then LPIPS sees a part of each drawing. There is no
discriminator: so few steps of it cost clean colours. The pixel loss is the squared error, which punishes a wrong colour
more than the paper's L1 does.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = get_base()
    c.data.size = 48
    c.model.update(network="local", ch_mult=(1, 2), patch=2)
    # 21.1 dB after 500 steps at 32 pixels, and 19.9 with Adam at the best rate that was tried (docs/recipes.md).
    c.optim.update(name="muon", learning_rate=4e-3)
    c.update(steps=1500, eval_every=500)
    c.loss.update(perceptual_start=1200, perceptual_crop=32)
    c.disc.weight = 0.0
    return c


def get_base() -> ConfigDict:
    """What all first stages on OpenMoji begin with: 32 pixels, a discriminator, and Adam, as they were measured."""
    c = common.get_config()
    c.task = "vqgan"
    c.input = "image"
    # The drawings keep to one template: without jitter, the same stroke falls into the same cell of the grid.
    c.data = common.get_data("openmoji/px64", size=32)
    c.data.random_crop = False
    c.data.flip = False
    c.batch_size = 8
    c.steps = 3000
    c.log_every = 100
    c.eval_every = 1200
    c.ema_decay = 0.99
    c.model = common.get_model(ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=64, out_ch=3)
    c.quantizer = ConfigDict(dict(name="vq", codebook_size=1024, embed_dim=16, commitment_weight=0.25, legacy=False))
    c.restart_codes_after = 20  # steps without use, after which a code moves to where it is needed; 0: never
    c.loss = ConfigDict(
        dict(
            pixel="l2",
            pixel_weight=1.0,
            perceptual_weight=0.3,
            perceptual_start=2400,
            perceptual_crop=0,
            codebook_weight=1.0,
        )
    )
    c.disc = common.get_disc(
        ndf=32,
        n_layers=2,
        start=2400,
        gen_start=2500,
        ramp_steps=300,
        weight=0.8,
        max_weight=1.0,
    )
    c.optim = common.get_optim(
        learning_rate=1.5e-3,
        schedule="cosine",
        warmup_steps=50,
        b1=0.5,
        b2=0.99,
        weight_decay=0.0,
        clip_norm=1.0,
    )
    return c
