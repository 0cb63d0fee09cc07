"""VQGAN on faces, CelebA-HQ and FFHQ together: 256x256 pixels, f=16, 1024 codes.

    python -m taming_jax.train --config=configs/faceshq_vq.py --workdir=runs/faceshq_vq

Numbers from the original's configs/faceshq_vqgan.yaml, for 8 devices of 3 images; the rest is as in `imagenet_vq`.
data/faceshq/ has the folders train/ and validation/, each with celebahq/ and ffhq/.
"""

from ml_collections import ConfigDict

from configs import common, imagenet_vq


def get_config() -> ConfigDict:
    c = imagenet_vq.get_config()
    c.data = common.get_data("folder", size=256)
    c.data.update(path="data/faceshq", flip=False, workers=8)
    c.batch_size = 24
    c.disc.update(start=30_001, gen_start=30_001)
    c.optim.learning_rate = 4.5e-6 * c.batch_size
    return c
