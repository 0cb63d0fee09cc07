"""VQGAN on depth maps of ImageNet. The first stage of `drin_transformer`'s condition.

    python -m taming_jax.train --config=configs/drin_depth_vq.py --workdir=runs/drin_depth_vq

Numbers from the original's configs/imagenetdepth_vqgan.yaml, for 8 devices of 3 maps; docs/data.md has the folder. The
original's saw all of ImageNet; data/drin holds the animals of `drin_transformer`. --config.data.path names another
folder.
"""

from ml_collections import ConfigDict

from configs import imagenet_vq


def get_config() -> ConfigDict:
    c = imagenet_vq.get_config()
    c.input = "depth"
    c.data.update(name="folder", path="data/drin", flip=True, splits=ConfigDict(dict(train="train", validation="val")))
    c.data.features = ("image", "depth")
    c.batch_size = 24
    c.model.out_ch = 1
    c.disc.update(start=50_001, gen_start=50_001, weight=0.75)
    c.optim.learning_rate = 4.5e-6 * c.batch_size
    return c
