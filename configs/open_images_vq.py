"""VQGAN on Open Images: 256x256 pixels, f=16, 8192 codes. The first stage of `open_images_scenes_transformer`.

    python -m taming_jax.train --config=configs/open_images_vq.py --workdir=runs/open_images_vq

Sizes from the original's configs/open_images_scene_images_transformer.yaml; the training is that of `imagenet_vq`.
"""

from ml_collections import ConfigDict

from configs import common, imagenet_vq


def get_config() -> ConfigDict:
    c = imagenet_vq.get_config()
    c.data = common.get_data("folder", size=256)
    c.data.update(path="data/open_images/images", flip=False, workers=8)
    c.quantizer.codebook_size = 8192
    return c
