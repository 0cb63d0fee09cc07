"""VQGAN on OpenMoji, small enough for two CPU cores."""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config()
    c.task = "vqgan"
    c.data = common.get_data("openmoji/px64", size=32)
    c.data.resize = 36
    c.batch_size = 16
    c.steps = 1200
    c.log_every = 25
    c.eval_every = 400
    c.ema_decay = 0.99
    c.model = ConfigDict(dict(ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=(), z_channels=64))
    c.quantizer = ConfigDict(dict(name="vq", codebook_size=512, embed_dim=16, commitment_weight=0.25, legacy=False))
    c.restart_codes_after = 20  # steps without use
    c.loss = ConfigDict(dict(perceptual_weight=1.0, perceptual_start=600, codebook_weight=1.0))
    c.disc = ConfigDict(
        dict(ndf=32, n_layers=2, loss="hinge", start=700, gen_start=800, ramp_steps=200, weight=0.8, max_weight=1.0)
    )
    c.optim = ConfigDict(
        dict(learning_rate=1e-3, schedule="cosine", warmup_steps=50, b1=0.5, b2=0.9, weight_decay=0.0, clip_norm=1.0)
    )
    return c
