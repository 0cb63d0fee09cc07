"""Quantizers: latents to codes and back.

The contract: `(z [...,D], step [], train) -> (z_q [...,D], {'ids': [...] int32, 'loss': [] float32, 'latents':
[...,D]})` with straight-through gradients in `z_q` and the latents as they were compared with the codes; `lookup(ids
[...]) -> [...,D]`; and, for what is learned without gradients, `init_stats(embedding) -> stats` and `update(embedding,
stats, codes) -> (embedding, stats)` after each training step. A new quantizer is a module below and a line in
`QUANTIZERS`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from taming_jax import losses

Stats = dict[str, jax.Array]
LOG_EPS = 1e-10  # keeps the logarithm of a probability of 0 finite; hard-wired in the original


def nearest_codes(z: jax.Array, embedding: jax.Array) -> jax.Array:
    """The closest row for each latent, int32; float32 at highest precision, or a TPU would pick other codes."""
    # |z - e|^2 without |z|^2, which is the same for all codes.
    products = jnp.einsum("...d,kd->...k", z, embedding, precision="highest")
    return jnp.argmin(jnp.sum(jnp.square(embedding), -1) - 2 * products, -1).astype(jnp.int32)


class Quantizer(nn.Module):
    """What quantizers share: a codebook [codebook_size,embed_dim], and nothing to learn without gradients."""

    codebook_size: int
    embed_dim: int

    def lookup(self, ids: jax.Array) -> jax.Array:
        return self.embedding[ids]

    @nn.nowrap
    def init_stats(self, embedding: jax.Array) -> Stats:
        return {}

    @nn.nowrap
    def update(self, embedding: jax.Array, stats: Stats, codes: dict[str, jax.Array]) -> tuple[jax.Array, Stats]:
        return embedding, stats


class VectorQuantizer(Quantizer):
    """Nearest-neighbour vector quantizer (van den Oord et al. 2017; Esser et al. 2021, eq. 2 and 4).

    commitment_weight: beta of eq. 4. The original put it on the codebook term by mistake; `legacy` does the same,
        for its checkpoints.
    """

    commitment_weight: float
    legacy: bool

    def setup(self) -> None:
        k = self.codebook_size
        self.embedding = self.param(
            "embedding",
            lambda key, shape: jax.random.uniform(key, shape, minval=-1 / k, maxval=1 / k),
            (k, self.embed_dim),
        )

    def __call__(
        self, z: jax.Array, step: jax.Array | int = 0, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        z = z.astype(jnp.float32)
        ids = nearest_codes(z, self.embedding)
        z_q = self.embedding[ids]
        loss = losses.codebook_loss(z, z_q, self.commitment_weight, self.legacy)
        return z + jax.lax.stop_gradient(z_q - z), {"ids": ids, "loss": loss, "latents": z}


class EMAVectorQuantizer(Quantizer):
    """Codes are running means of the latents that chose them (van den Oord et al. 2017, appendix A.1).

    decay: of the means. eps: smooths the clusters' sizes towards uniform. Departs from the original in its start: a
    cluster begins with size 1, not 0, or codes without a choice in the first batch would be divided by almost nothing
    (in the original they reach 1e5).
    """

    commitment_weight: float
    decay: float
    eps: float

    def setup(self) -> None:
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), (self.codebook_size, self.embed_dim))

    def __call__(
        self, z: jax.Array, step: jax.Array | int = 0, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        z = z.astype(jnp.float32)
        ids = nearest_codes(z, self.embedding)
        z_q = jax.lax.stop_gradient(self.embedding[ids])
        loss = self.commitment_weight * jnp.mean(jnp.square(z_q - z))
        return z + jax.lax.stop_gradient(z_q - z), {"ids": ids, "loss": loss, "latents": z}

    @nn.nowrap
    def init_stats(self, embedding: jax.Array) -> Stats:
        return {"cluster_size": jnp.ones(self.codebook_size), "embed_avg": jnp.copy(embedding)}

    @nn.nowrap
    def update(self, embedding: jax.Array, stats: Stats, codes: dict[str, jax.Array]) -> tuple[jax.Array, Stats]:
        """The means after a batch."""
        latents, ids = codes["latents"].reshape(-1, self.embed_dim), codes["ids"].ravel()
        count = jnp.zeros(self.codebook_size).at[ids].add(1.0)
        total = jnp.zeros_like(embedding).at[ids].add(latents)
        size = self.decay * stats["cluster_size"] + (1 - self.decay) * count
        mean = self.decay * stats["embed_avg"] + (1 - self.decay) * total
        n = size.sum()
        smoothed = (size + self.eps) / (n + self.codebook_size * self.eps) * n
        return mean / smoothed[:, None], {"cluster_size": size, "embed_avg": mean}


def gumbel_softmax(logits: jax.Array, noise: jax.Array, temperature: jax.Array, hard: bool) -> jax.Array:
    """A relaxed draw (Jang et al. 2017): logits, Gumbel noise [...,K] -> [...,K]; `hard` is one-hot forwards only."""
    soft = jax.nn.softmax((logits + noise) / temperature, -1)
    if not hard:
        return soft
    one_hot = jax.nn.one_hot(jnp.argmax(soft, -1), soft.shape[-1])
    return soft + jax.lax.stop_gradient(one_hot - soft)


class GumbelQuantizer(Quantizer):
    """Codes are drawn from logits, with a relaxed gradient (Ramesh et al. 2021, section 2.1).

    straight_through: one-hot draws in training too, as in the original; else they are soft. temperature, kl_weight:
    schedules over the step, the fields of `optax.warmup_cosine_decay_schedule`. The loss is the KL divergence from the
    uniform distribution, of the softmax without noise and temperature. Out of training the likeliest code is taken: the
    original draws there too, so that two encodings of an image differ.
    """

    straight_through: bool
    temperature: dict
    kl_weight: dict

    def setup(self) -> None:
        self.proj = nn.Dense(self.codebook_size, precision="highest")
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), (self.codebook_size, self.embed_dim))

    def __call__(
        self, z: jax.Array, step: jax.Array | int = 0, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Draws 'gumbel' noise in training."""
        logits = self.proj(z.astype(jnp.float32))
        p = jax.nn.softmax(logits, -1)
        kl = jnp.sum(p * jnp.log(p * self.codebook_size + LOG_EPS), -1).mean()
        loss = optax.warmup_cosine_decay_schedule(**self.kl_weight)(step) * kl
        if not train:
            ids = jnp.argmax(logits, -1).astype(jnp.int32)
            return self.embedding[ids], {"ids": ids, "loss": loss, "latents": logits}
        noise = jax.random.gumbel(self.make_rng("gumbel"), logits.shape)
        temperature = optax.warmup_cosine_decay_schedule(**self.temperature)(step)
        draw = gumbel_softmax(logits, noise, temperature, self.straight_through)
        z_q = jnp.einsum("...k,kd->...d", draw, self.embedding, precision="highest")
        return z_q, {"ids": jnp.argmax(draw, -1).astype(jnp.int32), "loss": loss, "latents": logits}


QUANTIZERS = {"vq": VectorQuantizer, "ema": EMAVectorQuantizer, "gumbel": GumbelQuantizer}


def make_quantizer(fields: dict) -> nn.Module:
    """`name`, and the fields of that module above."""
    return QUANTIZERS[fields["name"]](**{key: value for key, value in fields.items() if key != "name"})


def restart_dead_codes(
    idle: jax.Array, counts: jax.Array, latents: jax.Array, errors: jax.Array, restart_after: int, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes that nothing chose for `restart_after` steps move onto latents of this batch that lie far from any code.

    counts [K]: choices in this batch; idle [K] int32: steps without a choice before it; latents [...,D], errors [...]:
    the squared distance of each to its code. -> (dead [K] bool, where they go [K,D], idle). After Dhariwal et al. 2020
    (Jukebox, section 3.1), who draw latents uniformly: many codes then share a plain background. Here a latent's chance
    is its error, as k-means++ draws its centres (Arthur and Vassilvitskii 2007). The original lets dead codes lie.
    """
    idle = jnp.where(counts > 0, 0, idle + 1)
    dead = idle >= restart_after
    drawn = jax.random.choice(key, latents.reshape(-1, latents.shape[-1]), idle.shape, p=errors.ravel())
    return dead, drawn, jnp.where(dead, 0, idle)


def remap(ids: jax.Array, used: jax.Array, unknown: str | int, key: jax.Array | None = None) -> jax.Array:
    """Codes as positions in `used` [U], a smaller codebook of the codes that occur. ids [...] -> [...] int32.

    unknown: what a code outside becomes: 'random' (drawn with `key`), 'extra' (position U, one more) or a position.
    """
    match = ids[..., None] == used
    if unknown == "random":
        other = jax.random.randint(key, ids.shape, 0, len(used))
    else:
        other = len(used) if unknown == "extra" else unknown
    return jnp.where(match.any(-1), jnp.argmax(match, -1), other).astype(jnp.int32)


def unmap(ids: jax.Array, used: jax.Array) -> jax.Array:
    """Positions in `used` back to codes; the extra one becomes the first of them, as in the original."""
    return used[jnp.where(ids < len(used), ids, 0)].astype(jnp.int32)
