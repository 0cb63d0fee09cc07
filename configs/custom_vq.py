"""VQGAN on any folder of images: 256x256 pixels, f=16, 1024 codes.

    python -m taming_jax.train --config=configs/custom_vq.py --workdir=runs/custom_vq --config.data.path=/my/images

The model is the original's configs/custom_vqgan.yaml. The rest avoids the most common failures: the discriminator
learns for 5,000 steps before it acts on the generator, then its weight ramps up over 10,000 and stays capped; there are
random crops and flips, a warm-up, and averaged weights. On a GPU with less memory, lower --config.batch_size.

The comments here say what each field means, in all configs of first stages.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_config()
    c.task = "vqgan"  # vqgan, a first stage, or transformer, a second
    c.input = "image"  # what it encodes: image, segmentation, depth, line, other or low
    c.data = common.get_data("folder", size=256)
    c.data.resize_factor = 1.125
    c.batch_size = 8  # images of a step, over all devices
    c.steps = 200_000  # of the optimizer, each on one batch
    c.eval_every = 5_000
    c.ema_decay = 0.999
    c.model = common.get_model(
        ch=128,  # channels at full resolution
        ch_mult=(1, 1, 2, 2, 4),  # multiples of them, level by level; each level after the first halves the sides
        num_res_blocks=2,  # in each level
        attn_resolutions=(16,),  # places on a side of the levels that have attention
        z_channels=256,  # at the lowest level
        out_ch=3,  # channels of what is encoded: 3 for images, a segmentation map's labels
    )
    c.quantizer = ConfigDict(
        dict(
            name="vq",  # vq, ema, gumbel or fsq; each has other fields
            codebook_size=1024,  # codes
            embed_dim=256,  # numbers of a code
            commitment_weight=0.25,  # β of the paper's eq. 4
            legacy=False,  # True: β weights the codebook's loss, as in the original's code
        )
    )
    c.restart_codes_after = 100  # steps without use, after which a code moves to where it is needed; 0: never
    c.loss = ConfigDict(
        dict(
            pixel="l1",  # l1 or l2; bce for segmentation maps
            pixel_weight=1.0,  # of the pixel loss
            perceptual_weight=1.0,  # of LPIPS; 0: without
            perceptual_start=0,  # step from which on LPIPS is computed
            perceptual_crop=0,  # pixels on a side of the square that LPIPS sees of each image; 0: all
            codebook_weight=1.0,  # of the quantizer's loss
        )
    )
    c.disc = common.get_disc(
        ndf=64,  # channels of the discriminator's first layer
        n_layers=3,  # how often it halves the sides
        start=10_000,  # step from which on the discriminator learns
        gen_start=15_000,  # step from which on the generator feels the discriminator
        ramp_steps=10_000,  # over which its weight then rises; 0: at once, as in the paper
        weight=0.8,  # of the adversarial loss, times λ; 0: no discriminator
        max_weight=10.0,  # bound of the adaptive weight λ, eq. 7
    )
    c.optim = common.get_optim(
        learning_rate=4.5e-6 * 8,  # the original has 4.5e-6 for each image of the batch
        schedule="constant",  # constant or cosine
        warmup_steps=1_000,  # over which the learning rate rises from 0
        b1=0.5,  # Adam's, of the gradient's mean
        b2=0.9,  # Adam's, of its square
        weight_decay=0.0,  # of kernels
        clip_norm=1.0,  # bound of the gradient's norm; 0: none
    )
    return c
