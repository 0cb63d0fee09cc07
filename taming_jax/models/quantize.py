"""Quantizers: latents to codes and back.

The contract: `(z [...,D]) -> (z_q [...,D], {'ids': [...] int32, 'loss': [] float32})` with straight-through
gradients in `z_q`, and `lookup(ids [...]) -> [...,D]`. A new quantizer is a module below and a line in `QUANTIZERS`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from taming_jax import losses


def normalize(x: jax.Array) -> jax.Array:
    """Unit length along the last axis; the gradient at 0 is finite."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)


class VectorQuantizer(nn.Module):
    """Nearest-neighbour vector quantizer (van den Oord et al. 2017; Esser et al. 2021, eq. 2 and 4).

    commitment_weight: beta of eq. 4. The original put it on the codebook term by mistake; `legacy` does the same,
        for its checkpoints.
    l2_normalize: latents and codes are compared and passed on at unit length (Yu et al. 2022, ViT-VQGAN, sec. 3.2),
        which keeps a small codebook in use. The original has no such option.
    entropy_weight: of `losses.code_entropy_loss`, which keeps all codes in use; 0 in the original.

    The search runs in float32 at highest precision whatever the compute type is: a TPU's default would pick
    other codes.
    """

    codebook_size: int
    embed_dim: int
    commitment_weight: float
    legacy: bool
    l2_normalize: bool
    entropy_weight: float

    def setup(self) -> None:
        k = self.codebook_size
        self.embedding = self.param(
            "embedding",
            lambda key, shape: jax.random.uniform(key, shape, minval=-1 / k, maxval=1 / k),
            (k, self.embed_dim),
        )

    def codebook(self) -> jax.Array:
        return normalize(self.embedding) if self.l2_normalize else self.embedding

    def __call__(self, z: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        z = z.astype(jnp.float32)
        if self.l2_normalize:
            z = normalize(z)
        codes = self.codebook()
        # |z - e|^2 without |z|^2, which is the same for all codes.
        distance = jnp.sum(jnp.square(codes), -1) - 2 * jnp.einsum("...d,kd->...k", z, codes, precision="highest")
        ids = jnp.argmin(distance, -1).astype(jnp.int32)
        z_q = codes[ids]
        loss = losses.codebook_loss(z, z_q, self.commitment_weight, self.legacy)
        if self.entropy_weight > 0:
            loss += self.entropy_weight * losses.code_entropy_loss(distance)
        return z + jax.lax.stop_gradient(z_q - z), {"ids": ids, "loss": loss}

    def lookup(self, ids: jax.Array) -> jax.Array:
        return self.codebook()[ids]


QUANTIZERS = {"vq": VectorQuantizer}
