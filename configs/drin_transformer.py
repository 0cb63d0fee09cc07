"""Depth to image on ImageNet's animals (D-RIN), over the codes of `imagenet_vq`.

    python -m taming_jax.train --config=configs/drin_transformer.py --workdir=runs/drin_transformer

Numbers from the original's configs/drin_transformer.yaml. Its animals are ImageNet's classes 30, 31, 33 to 36, 80 to
99, 118 to 120, 151 to 267, 281 to 284, 300 to 318, 365 to 381 and 389 to 396: images/ and depths/ hold those.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_transformer("runs/imagenet_vq", "image")
    c.cond.workdir = "runs/drin_depth_vq"
    c.data.update(name="folder", path="data/drin", flip=True, splits=ConfigDict(dict(train="train", validation="val")))
    return c
