"""Layout to image on COCO: boxes of things and stuff.

    python -m taming_jax.train --config=configs/coco_scenes_transformer.py --workdir=runs/coco_scenes_transformer

Numbers from the original's configs/coco_scene_images_transformer.yaml, for 8 devices of 6 images. Its first stage has
8192 codes: --config=configs/coco_vq.py --config.quantizer.codebook_size=8192 --workdir=runs/coco_8192_vq.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_transformer("runs/coco_8192_vq", "objects")
    c.cond.layout.categories = "coco"
    c.data.update(path="data/coco", flip=True, resize_factor=1.0)
    c.batch_size = 48
    c.gpt.update(num_layers=40, embed_dim=1408, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
    c.gpt.update(vocab_size=8192, block_size=348)
    c.optim.learning_rate = 4.5e-6 * c.batch_size
    return c
