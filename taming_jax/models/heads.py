"""What a transformer guesses beside the next code's id, in training alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from taming_jax.models.gpt import dense, gelu


class VectorHeads(nn.Module):
    """reAR's guesses of vectors of the codebook (He et al. 2025, arXiv 2510.04450, eq. 6): from the state after the
    first layer those of the codes that a position reads, from the one at three quarters of the depth that of the code
    that it writes.

    So that states know which codes are alike, of which ids say nothing. dim: of a code's vector. reads: codes that a
    position reads. Two layers each, as wide as the transformer.
    """

    dim: int
    reads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, states: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The states after each layer, [L,B,T,D] -> codes that are read, [B,T,reads,dim], and written, [B,T,dim]."""

        def guess(x: jax.Array, name: str, dim: int) -> jax.Array:
            x = dense(x.shape[-1], self.dtype, f"{name}_in")(x.astype(self.dtype))
            return dense(dim, self.dtype, f"{name}_out")(gelu(x)).astype(jnp.float32)

        first, deep = states[0], states[max(0, 3 * len(states) // 4 - 1)]
        read = guess(first, "read", self.reads * self.dim)
        return read.reshape(*read.shape[:2], self.reads, self.dim), guess(deep, "written", self.dim)
