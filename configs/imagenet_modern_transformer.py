"""Class-conditional wavefront transformer with modern layers on ImageNet, in the size of the paper's smaller ones.

    python -m taming_jax.train --config=imagenet_modern_transformer --workdir=runs/imagenet_modern_transformer

24 layers of 1024 with RMSNorm, SwiGLU and norms of queries and keys, which write 16x16 codes in 61 steps, and larger
images at the same work for each code. Embeddings of codes begin with the codebook's vectors, and training guesses
those, too. On OpenMoji, all that had fewer nats and a smaller Fréchet distance than the paper's at equal steps
(docs/recipes.md). A tenth of the conditions is dropped, for guidance. This config was not run at full size here.
"""

from ml_collections import ConfigDict

from configs import common, imagenet_transformer

SLICES = {
    "v5e-16": {"batch_size": 256},
    "v5e-256": {"batch_size": 2048, "mesh.data": 16, "mesh.fsdp": 16},
}


def get_config(slice_name: str = "") -> ConfigDict:
    c = imagenet_transformer.get_config()
    c.first_stage = common.get_first_stage("runs/imagenet_modern_vq")
    c.cond.drop = 0.1
    c.gpt.update(architecture="modern", num_layers=24, num_heads=16, embed_dim=1024)
    c.gpt.update(embd_pdrop=0.1, attn_pdrop=0.0, resid_pdrop=0.1)
    c.gpt.context.kind = "wavefront"
    c.gpt.context.reach = (8, 8)
    c.update(vector_weight=1.0, vector_init=0.1)
    c.ema_decay = 0.9999
    if slice_name:
        common.use_slice(c, slice_name, SLICES)
    return c
