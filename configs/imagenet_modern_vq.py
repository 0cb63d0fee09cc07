"""VQGAN+ on ImageNet: the recipe that took 1024 codes of 256 pixels from rFID 7.9 to 1.7 (Weber et al. 2024, MaskBit).

    python -m taming_jax.train --config=imagenet_modern_vq --workdir=runs/imagenet_modern_vq

What it has of the paper's section 3.1: no attention, MaskGIT's blocks, Adam with a warm-up and a cosine, averaged
weights, squared errors, and a wide, blurred discriminator at a small fixed weight, with LeCAM. What it has not: the
loss on a ResNet's logits, whose weights are not to be had without a network; LPIPS is in its place. With LPIPS, the
paper has rFID 4.0, and 2.4 with the logits. This config was not run at full size here.
"""

from ml_collections import ConfigDict

from configs import common, imagenet_vq

SLICES = {
    "v5e-16": {"dtype": "bfloat16"},
    "v5e-256": {"dtype": "bfloat16", "batch_size": 4096, "optim.warmup_steps": 1000},
}


def get_config(slice_name: str = "") -> ConfigDict:
    c = imagenet_vq.get_config()
    c.batch_size = 256
    c.steps = 1_350_000
    c.ema_decay = 0.999
    c.data.flip = True
    c.model.update(network="maskgit", attn_resolutions=(), z_channels=256)
    c.loss.update(pixel="l2", pixel_weight=4.0)
    c.disc.update(network="blurred", ndf=128, n_layers=4, adaptive=False, weight=0.02, lecam_weight=0.001)
    c.disc.update(start=20_000, gen_start=20_000)
    c.optim.update(learning_rate=1e-4, schedule="cosine", final_share=0.1, warmup_steps=5_000)
    c.optim.update(b1=0.9, b2=0.999, weight_decay=1e-4, clip_norm=1.0)
    if slice_name:
        common.use_slice(c, slice_name, SLICES)
    return c
