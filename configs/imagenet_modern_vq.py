"""VQGAN+ on ImageNet: the recipe that took 1024 codes of 256 pixels from rFID 7.9 to 1.7 (Weber et al. 2024, MaskBit).

    python -m taming_jax.train --config=imagenet_modern_vq --workdir=runs/imagenet_modern_vq

What it has of the paper's section 3.1: no attention, MaskGIT's blocks, Adam with a warm-up and a cosine, averaged
weights, and a wide, blurred discriminator at a small fixed weight, with LeCAM. What it has not: the loss on a ResNet's
logits beside LPIPS, whose weights are not to be had without a network; there it took rFID from 4.0 to 2.4. Numbers are
those of 1d-tokenizer's config. This config was not run at full size here; what slices can do is in launch/README.md.
"""

from ml_collections import ConfigDict

from configs import common, imagenet_vq

SLICES = {
    "v5e-16": {"dtype": "bfloat16"},
    "v5e-256": {"dtype": "bfloat16", "batch_size": 4096},
}


def get_config(slice_name: str = "") -> ConfigDict:
    c = imagenet_vq.get_config()
    c.batch_size = 256
    c.steps = 1_350_000
    c.ema_decay = 0.999
    c.data.flip = True
    c.model.update(network="maskgit", attn_resolutions=(), z_channels=256)
    c.disc.update(network="blurred", ndf=128, adaptive=False, weight=0.1, lecam_weight=0.001)
    c.disc.update(start=20_000, gen_start=20_000)
    c.optim.update(learning_rate=1e-4, schedule="cosine", final_share=0.1, warmup_steps=5_000)
    c.optim.update(b1=0.9, b2=0.999, weight_decay=1e-4, clip_norm=1.0)
    if slice_name:
        common.use_slice(c, slice_name, SLICES)
    return c
