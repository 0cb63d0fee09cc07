"""Depth to image on ImageNet's animals (D-RIN), over the codes of `imagenet_vq`.

    python -m taming_jax.train --config=configs/drin_transformer.py --workdir=runs/drin_transformer

Numbers from the original's configs/drin_transformer.yaml. Its animals are ImageNet's classes 30-37, 80-100, 118-121,
151-268, 281-285, 300-319, 365-382 and 389-397: images/ and depths/ hold those.
"""

from ml_collections import ConfigDict

from configs import common, faceshq_transformer


def get_config() -> ConfigDict:
    c = faceshq_transformer.get_config()
    c.first_stage = common.get_first_stage("runs/imagenet_vq")
    c.cond = common.get_cond("image")
    c.cond.workdir = "runs/drin_depth_vq"
    c.data.update(name="folder", path="data/drin", splits=ConfigDict(dict(train="train", validation="val")))
    return c
