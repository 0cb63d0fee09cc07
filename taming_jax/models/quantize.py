"""Quantizers: latents to codes and back.

The contract: `(z [...,D]) -> (z_q [...,D], {'ids': [...] int32, 'loss': [] float32, 'latents': [...,D]})` with
straight-through gradients in `z_q` and the latents as they were compared with the codes, and `lookup(ids [...]) ->
[...,D]`. A new quantizer is a module below and a line in `QUANTIZERS`.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from taming_jax import losses


class VectorQuantizer(nn.Module):
    """Nearest-neighbour vector quantizer (van den Oord et al. 2017; Esser et al. 2021, eq. 2 and 4).

    commitment_weight: beta of eq. 4. The original put it on the codebook term by mistake; `legacy` does the same,
        for its checkpoints.

    The search runs in float32 at highest precision whatever the compute type is: a TPU's default would pick
    other codes.
    """

    codebook_size: int
    embed_dim: int
    commitment_weight: float
    legacy: bool

    def setup(self) -> None:
        k = self.codebook_size
        self.embedding = self.param(
            "embedding",
            lambda key, shape: jax.random.uniform(key, shape, minval=-1 / k, maxval=1 / k),
            (k, self.embed_dim),
        )

    def __call__(self, z: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        z = z.astype(jnp.float32)
        # |z - e|^2 without |z|^2, which is the same for all codes.
        products = jnp.einsum("...d,kd->...k", z, self.embedding, precision="highest")
        ids = jnp.argmin(jnp.sum(jnp.square(self.embedding), -1) - 2 * products, -1).astype(jnp.int32)
        z_q = self.embedding[ids]
        loss = losses.codebook_loss(z, z_q, self.commitment_weight, self.legacy)
        return z + jax.lax.stop_gradient(z_q - z), {"ids": ids, "loss": loss, "latents": z}

    def lookup(self, ids: jax.Array) -> jax.Array:
        return self.embedding[ids]


def restart_dead_codes(
    idle: jax.Array, counts: jax.Array, latents: jax.Array, restart_after: int, key: jax.Array
) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
    """Codes that nothing chose for `restart_after` steps move onto latents of this batch, drawn at random.

    counts [K]: choices in this batch; idle [K] int32: steps without a choice before it; latents [...,D].
    -> (what moves the dead rows of any codebook [K,D], idle). After Dhariwal et al. 2020 (Jukebox, section 3.1); the
    original lets such codes lie.
    """
    idle = jnp.where(counts > 0, 0, idle + 1)
    dead = idle >= restart_after
    latents = latents.reshape(-1, latents.shape[-1])
    drawn = latents[jax.random.randint(key, idle.shape, 0, len(latents))]
    return lambda codebook: jnp.where(dead[:, None], drawn, codebook), jnp.where(dead, 0, idle)


QUANTIZERS = {"vq": VectorQuantizer}
