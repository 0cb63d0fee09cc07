"""Attention with a fixed mask in TPUs' own kernel, which leaves out blocks of keys that no query of a block sees."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec

from taming_jax.backend import platform
from taming_jax.sharding import BATCH

BLOCK = 128  # queries and keys of a block: the fewest that the kernel takes, so that the most is left out


def takes(q: jax.Array) -> bool:
    """Whether the kernel takes queries [B,T,N,D] here: on TPUs, where the mesh divides images and heads."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = (1, 1) if mesh.empty else (mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["tensor"])
    return platform() == "tpu" and q.shape[0] % parts[0] == 0 and q.shape[2] % parts[1] == 0


def attend_splash(q: jax.Array, k: jax.Array, v: jax.Array, mask: np.ndarray) -> jax.Array:
    """Attention as `gpt.attend` has it, but for keys that come time before heads, and without scores in memory.

    q [B,T,N,D] that it `takes`, k and v [B,S,N,D], mask [T,S] bool, of which every row has one that is seen ->
    [B,T,N,D]. On a mesh, each device does its own images and heads.
    """
    t, sides = len(mask), [-n % BLOCK for n in mask.shape]
    mask = np.pad(mask, [(0, side) for side in sides])
    mask[t:, 0] = True  # of nothing, the kernel's softmax would be NaN
    masks = splash.MultiHeadMask([splash.NumpyMask(mask)] * q.shape[2])

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        heads = q.shape[2]
        own = splash.MultiHeadMask(masks.masks[:heads])
        kernel = splash.make_splash_mha_single_device(own, block_sizes=splash.BlockSizes.get_default())
        q, k, v = (
            jnp.swapaxes(jnp.pad(x, [(0, 0), (0, side), (0, 0), (0, 0)]), 1, 2)
            for x, side in ((q * q.shape[-1] ** -0.5, sides[0]), (k, sides[1]), (v, sides[1]))
        )
        return jnp.swapaxes(jax.vmap(kernel)(q, k, v), 1, 2)[:, :t]

    if not jax.sharding.get_abstract_mesh().empty:
        spec = PartitionSpec(*BATCH, None, "tensor")
        attend = jax.shard_map(attend, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return attend(q, k, v)
