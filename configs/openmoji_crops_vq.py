"""First stage on crops: 32 of the 64 pixels of an OpenMoji drawing. Transformers paint drawings of any size with it.

    python -m taming_jax.train --config=configs/openmoji_crops_vq.py --workdir=runs/openmoji_crops_vq

That of `openmoji_line_transformer`, `openmoji_segmentation_transformer`, `openmoji_superres_transformer` and
`openmoji_coordinates_transformer`. Its codes are running means of the latents.
"""

from ml_collections import ConfigDict

from configs import common, openmoji_vq


def get_config() -> ConfigDict:
    c = openmoji_vq.get_base()
    c.quantizer = common.get_ema(1024)
    common.use_crops(c, resize_factor=2.0)
    c.update(steps=1700, eval_every=1700)
    c.loss.perceptual_start = 1550
    return c
