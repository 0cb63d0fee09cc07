"""VQGAN+ on any folder of images: 256x256 pixels, f=16, 1024 codes, by the recipe of `imagenet_modern_vq`.

    python -m taming_jax.train --config=configs/custom_modern_vq.py --workdir=runs/custom_modern_vq \\
        --config.data.path=/my/images

What differs from `custom_vq` is what VQGAN+ changed (Weber et al. 2024, MaskBit, section 3.1): no attention, MaskGIT's
blocks, squared errors, a wide, blurred discriminator at a small fixed weight with LeCAM, and a cosine. This config was
not run at full size here.
"""

from ml_collections import ConfigDict

from configs import custom_vq


def get_config() -> ConfigDict:
    c = custom_vq.get_config()
    c.model.update(network="maskgit", attn_resolutions=())
    c.loss.update(pixel="l2", pixel_weight=4.0)
    c.disc.update(network="blurred", ndf=128, n_layers=4, adaptive=False, weight=0.02, lecam_weight=0.001)
    c.optim.update(learning_rate=1e-4, schedule="cosine", final_share=0.1, warmup_steps=5_000)
    c.optim.update(b1=0.9, b2=0.999, weight_decay=1e-4)
    return c
