"""LlamaGen's tokenizer VQ-16 on ImageNet: 16384 codes of 8 dimensions on the unit sphere (Sun et al. 2024).

    python -m taming_jax.train --config=configs/imagenet_llamagen_vq.py --workdir=runs/imagenet_llamagen_vq

The network is the paper's, with attention at the lowest level. Numbers are those published with LlamaGen's code: 40
epochs of 128 images, which reached rFID 2.19. Departs from it in one thing: the discriminator's weight is adaptive, as
in the paper. This config was not run at full size here.
"""

from ml_collections import ConfigDict

from configs import imagenet_vq


def get_config() -> ConfigDict:
    c = imagenet_vq.get_config()
    c.batch_size = 128
    c.steps = 400_000
    c.quantizer = ConfigDict(dict(name="normalized", codebook_size=16384, embed_dim=8, commitment_weight=0.25))
    c.quantizer.entropy_weight = 0.0  # of the entropy of codes in the loss; 0: none
    c.quantizer.entropy_temperature = 0.01  # of the distances in that entropy
    c.loss.pixel = "l2"
    c.disc.update(weight=0.5, start=20_000, gen_start=20_000)
    c.optim.update(learning_rate=1e-4, b1=0.9, b2=0.95, weight_decay=0.05, clip_norm=1.0)
    return c
