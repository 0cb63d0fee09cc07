"""Layout to image on Open Images: boxes of the original's 340 categories.

    python -m taming_jax.train --config=configs/open_images_scenes_transformer.py \\
        --workdir=runs/open_images_scenes_transformer

Numbers from the original's configs/open_images_scene_images_transformer.yaml, for 8 devices of 6 images.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.get_transformer("runs/open_images_vq", "objects")
    c.cond.layout.update(min_area=1e-4, categories="open_images")
    c.data.update(path="data/open_images", flip=True, random_scale=True)
    c.batch_size = 48
    c.gpt.update(num_layers=36, embed_dim=1536, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
    c.gpt.update(vocab_size=8192, block_size=348)
    c.optim.learning_rate = 4.5e-6 * c.batch_size
    return c
