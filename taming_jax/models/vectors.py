"""What a transformer knows of the codebook: ids say nothing of which codes are alike, their vectors do."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from taming_jax.models.gpt import dense, gelu


def spread(vectors: jax.Array, dim: int, key: jax.Array) -> jax.Array:
    """Codes' directions from their mean, turned at random into more dimensions: [K,D] -> [K,dim] of variance 1.

    Of two codes, the cosine stays about what it was.
    """
    centred = vectors - vectors.mean(0)
    lengths = jnp.linalg.norm(centred, axis=-1, keepdims=True)
    return centred / jnp.maximum(lengths, 1e-6) @ jax.random.normal(key, (vectors.shape[-1], dim))


class VectorGuesses(nn.Module):
    """reAR's guesses of the codebook's vectors (He et al. 2025, arXiv 2510.04450, eq. 6), for training alone: after the
    first layer those of the codes that a position reads, after three quarters of the layers that of the one it writes.

    dim: of a code's vector. reads: codes that a position reads. Two layers each, as wide as the transformer.
    """

    dim: int
    reads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What comes out of each layer, [L,B,T,D] -> codes that are read, [B,T,reads,dim], and written, [B,T,dim]."""

        def guess(x: jax.Array, name: str, dim: int) -> jax.Array:
            x = dense(x.shape[-1], self.dtype, f"{name}_in")(x.astype(self.dtype))
            return dense(dim, self.dtype, f"{name}_out")(gelu(x)).astype(jnp.float32)

        first, deep = outputs[0], outputs[max(0, 3 * len(outputs) // 4 - 1)]
        read = guess(first, "read", self.reads * self.dim)
        return read.reshape(*read.shape[:2], self.reads, self.dim), guess(deep, "written", self.dim)
