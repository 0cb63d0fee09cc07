"""Quantizers: latents to codes and back.

The contract is `Quantizer`'s; nothing outside of this file knows what a quantizer's parameters are. A new quantizer is
a class below and a line in `QUANTIZERS`.
"""

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from taming_jax import losses
from taming_jax.errors import UserError
from taming_jax.values import Rule, real, several, switch, whole

Stats = dict[str, jax.Array]
LOG_EPS = 1e-10  # keeps the logarithm of a probability of 0 finite; hard-wired in the original


def distances(z: jax.Array, embedding: jax.Array) -> jax.Array:
    """|z - e|^2 without |z|^2, which all codes share: [...,D], [K,D] -> [...,K] float32 at highest precision."""
    products = jnp.einsum("...d,kd->...k", z, embedding, precision="highest")
    return jnp.sum(jnp.square(embedding), -1) - 2 * products


def nearest_codes(z: jax.Array, embedding: jax.Array) -> jax.Array:
    """The closest row for each latent, int32; at a lower precision, a TPU would pick other codes."""
    return jnp.argmin(distances(z, embedding), -1).astype(jnp.int32)


def unit(x: jax.Array) -> jax.Array:
    """Scaled to a norm of 1; 0 stays 0. [...,D] -> [...,D]."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-24))


class Learned(NamedTuple):
    """What a quantizer has learned: its parameters, their running average (None without one), and its statistics."""

    params: dict
    average: dict | None
    stats: Stats


class Quantizer(nn.Module):
    """The contract.

    Fields or properties `codebook_size` (how many ids there are) and `embed_dim` (D, of the latents and of the codes).
    Called with (z [...,D], step [], train) it gives (z_q [...,D], codes): z_q has straight-through gradients, and codes
    are {'ids': [...] int32, 'loss': [] float32, ...}, with what `after_step` reads besides. `lookup(ids [...])` gives
    the codes [...,D]. What is learned without gradients is `init_stats` and `after_step`. Defaults: nothing.
    """

    restarts: ClassVar[bool] = False  # whether `after_step` moves codes that nothing chooses
    RULES: ClassVar[dict[str, Rule]]  # the fields of the config, by their names below `quantizer`

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit each other."""

    def __call__(
        self, z: jax.Array, step: jax.Array | int = 0, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        raise NotImplementedError

    def lookup(self, ids: jax.Array) -> jax.Array:
        raise NotImplementedError

    @nn.nowrap
    def init_stats(self, params: dict) -> Stats:
        """The statistics before the first step."""
        return {}

    @nn.nowrap
    def after_step(
        self,
        learned: Learned,
        codes: dict[str, jax.Array],
        restart_after: int,
        key: jax.Array,
        gather: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> Learned:
        """What follows a gradient step. codes: as the call gave them, of a whole batch, with any leading axes.

        restart_after: steps without a choice after which a code moves; 0 for never. gather: an array that lies in
        shards -> the whole of it on every device.
        """
        return learned


CODEBOOK_RULES: dict[str, Rule] = {"codebook_size": whole(1), "embed_dim": whole(1, 2**16)}


class CodebookQuantizer(Quantizer):
    """What quantizers with a codebook [codebook_size,embed_dim] share; `embedding` is set up by each of them."""

    codebook_size: int
    embed_dim: int

    def lookup(self, ids: jax.Array) -> jax.Array:
        return self.embedding[ids]

    @nn.nowrap
    def init_stats(self, params: dict) -> Stats:
        """'idle' [K]: steps since each code was chosen; 'codebook': running means, where codes are means."""
        return {"idle": jnp.zeros(self.codebook_size, jnp.int32), "codebook": {}}


class NearestCodeQuantizer(CodebookQuantizer):
    """What quantizers share that choose the nearest code: codes without use move onto latents, see `restart`."""

    restarts: ClassVar[bool] = True

    @nn.nowrap
    def compared(self, x: jax.Array) -> jax.Array:
        """Latents or codes [...,D] as they are compared with each other."""
        return x

    @nn.nowrap
    def after_step(
        self,
        learned: Learned,
        codes: dict[str, jax.Array],
        restart_after: int,
        key: jax.Array,
        gather: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> Learned:
        return self.restart(learned, codes, restart_after, key, gather) if restart_after > 0 else learned

    @nn.nowrap
    def restart(
        self,
        learned: Learned,
        codes: dict[str, jax.Array],
        restart_after: int,
        key: jax.Array,
        gather: Callable[[jax.Array], jax.Array],
    ) -> Learned:
        """Dead codes moved, in the codebook and in its averages; see `restart_dead_codes`."""
        latents, ids, embedding = codes["latents"], codes["ids"], learned.params["embedding"]
        errors = jnp.square(latents - self.compared(embedding)[ids]).sum(-1)
        errors = gather(errors)  # or each device would pass its sums to the next
        counts = jnp.zeros(self.codebook_size).at[ids.ravel()].add(1.0)
        dead, goal, idle = restart_dead_codes(learned.stats["idle"], counts, latents, errors, restart_after, key)

        def moved(codebook: jax.Array) -> jax.Array:
            return jnp.where(dead[:, None], goal, codebook)

        means = learned.stats["codebook"]
        if means:
            size = jnp.where(dead, 1, means["cluster_size"])
            means = {"cluster_size": size, "embed_avg": moved(means["embed_avg"])}
        average = None if learned.average is None else {"embedding": moved(learned.average["embedding"])}
        return Learned({"embedding": moved(embedding)}, average, {"idle": idle, "codebook": means})


class VectorQuantizer(NearestCodeQuantizer):
    """Nearest-neighbour vector quantizer (van den Oord et al. 2017; Esser et al. 2021, eq. 2 and 4).

    commitment_weight: beta of eq. 4. The original put it on the codebook term by mistake; `legacy` does the same,
        for its checkpoints.
    """

    RULES: ClassVar[dict[str, Rule]] = CODEBOOK_RULES | {"commitment_weight": real(0), "legacy": switch}

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


class NormalizedVectorQuantizer(NearestCodeQuantizer):
    """Nearest code on the unit sphere: L2-normalized latents and codes of few dimensions (Yu et al. 2022, ViT-VQGAN).

    What LlamaGen's tokenizers have (Sun et al. 2024): the gradient reaches the latents through the normalization, and
    the codes that are given and looked up have unit norm. commitment_weight: beta of Esser et al. 2021, eq. 4.
    entropy_weight: of `losses.entropy_loss` at the temperature beside it, 0 and 0.01 in LlamaGen. The loss of
    evaluation is there, too; LlamaGen has none then.
    """

    RULES: ClassVar[dict[str, Rule]] = CODEBOOK_RULES | {
        "commitment_weight": real(0),
        "entropy_weight": real(0),
        "entropy_temperature": real(above=0),
    }

    commitment_weight: float
    entropy_weight: float
    entropy_temperature: float

    def setup(self) -> None:
        self.embedding = self.param(
            "embedding",
            lambda key, shape: unit(jax.random.uniform(key, shape, minval=-1, maxval=1)),
            (self.codebook_size, self.embed_dim),
        )

    @nn.nowrap
    def compared(self, x: jax.Array) -> jax.Array:
        return unit(x)

    def lookup(self, ids: jax.Array) -> jax.Array:
        return unit(self.embedding)[ids]

    def __call__(
        self, z: jax.Array, step: jax.Array | int = 0, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        z, embedding = unit(z.astype(jnp.float32)), unit(self.embedding)
        ids = nearest_codes(z, embedding)
        z_q = embedding[ids]
        loss = losses.codebook_loss(z, z_q, self.commitment_weight, legacy=False)
        if self.entropy_weight:
            loss += self.entropy_weight * losses.entropy_loss(distances(z, embedding), self.entropy_temperature)
        return z + jax.lax.stop_gradient(z_q - z), {"ids": ids, "loss": loss, "latents": z}


class EMAVectorQuantizer(NearestCodeQuantizer):
    """Codes are running means of the latents that chose them (van den Oord et al. 2017, appendix A.1).

    decay: of the means. eps: smooths the clusters' sizes towards uniform. Departs from the original in its start: a
    cluster begins with size 1, not 0, or codes without a choice in the first batch would be divided by almost nothing
    (in the original they reach 1e5).
    """

    RULES: ClassVar[dict[str, Rule]] = CODEBOOK_RULES | {
        "commitment_weight": real(0),
        "decay": real(0, below=1),
        "eps": real(0),
    }

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
    def init_stats(self, params: dict) -> Stats:
        means = {"cluster_size": jnp.ones(self.codebook_size), "embed_avg": jnp.copy(params["embedding"])}
        return super().init_stats(params) | {"codebook": means}

    @nn.nowrap
    def after_step(
        self,
        learned: Learned,
        codes: dict[str, jax.Array],
        restart_after: int,
        key: jax.Array,
        gather: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> Learned:
        embedding, means = self.follow(learned.params["embedding"], learned.stats["codebook"], codes)
        stats = {**learned.stats, "codebook": means}
        learned = Learned({"embedding": embedding}, learned.average, stats)
        return super().after_step(learned, codes, restart_after, key, gather)

    @nn.nowrap
    def follow(self, embedding: jax.Array, means: Stats, codes: dict[str, jax.Array]) -> tuple[jax.Array, Stats]:
        """Codebook and means after a batch; sizes are smoothed towards uniform by `eps`."""
        latents, ids = codes["latents"].reshape(-1, self.embed_dim), codes["ids"].ravel()
        count = jnp.zeros(self.codebook_size).at[ids].add(1.0)
        total = jnp.zeros_like(embedding).at[ids].add(latents)
        size = self.decay * means["cluster_size"] + (1 - self.decay) * count
        mean = self.decay * means["embed_avg"] + (1 - self.decay) * total
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


def schedule_rules(value: Rule) -> dict[str, Rule]:
    """The fields of `optax.warmup_cosine_decay_schedule`, whose values obey a rule."""
    values = {name: value for name in ("init_value", "peak_value", "end_value")}
    return values | {"warmup_steps": whole(), "decay_steps": whole(1)}


class GumbelQuantizer(CodebookQuantizer):
    """Codes are drawn from logits, with a relaxed gradient (Ramesh et al. 2021, section 2.1).

    straight_through: one-hot draws in training too, as in the original; else they are soft. temperature, kl_weight:
    schedules over the step, the fields of `optax.warmup_cosine_decay_schedule`. The loss is the KL divergence from the
    uniform distribution, of the softmax without noise and temperature. Out of training the likeliest code is taken: the
    original draws there too, so that two encodings of an image differ.
    """

    RULES: ClassVar[dict[str, Rule]] = (
        CODEBOOK_RULES
        | {"straight_through": switch}
        | {f"temperature.{name}": rule for name, rule in schedule_rules(real(above=0)).items()}
        | {f"kl_weight.{name}": rule for name, rule in schedule_rules(real(0)).items()}
    )

    straight_through: bool
    temperature: dict
    kl_weight: dict

    @nn.nowrap
    def check(self) -> None:
        for name, schedule in (("temperature", self.temperature), ("kl_weight", self.kl_weight)):
            if schedule["decay_steps"] <= schedule["warmup_steps"]:
                raise UserError(
                    f"quantizer.{name}.decay_steps={schedule['decay_steps']}: it counts warmup_steps too,"
                    f" so take more than {schedule['warmup_steps']}"
                )

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


class FiniteScalarQuantizer(Quantizer):
    """Each of a few latent channels is rounded to one of a few levels (Mentzer et al. 2023, FSQ): no codebook to learn.

    levels: of each channel, 3 or more; an id is the number that they write, the first channel's digit being the lowest.
    (8, 5, 5, 5) are 1000 ids, about as many as 1024 codes; the paper's table 1 has others. eps: by this share the bound
    of a channel stays within its outermost levels, so that rounding never leaves them.
    Departs from the paper's listing in one thing: what shifts channels with an even number of levels is the inverse of
    tanh, so that a latent of 0 becomes exactly one of the middle levels; the listing has tan, which is close to it.
    """

    RULES: ClassVar[dict[str, Rule]] = {"levels": several(whole(3), 1, 64), "eps": real(above=0, below=1)}

    levels: tuple[int, ...]
    eps: float

    @property
    def codebook_size(self) -> int:
        return math.prod(self.levels)

    @property
    def embed_dim(self) -> int:
        return len(self.levels)

    @nn.nowrap
    def check(self) -> None:
        if self.codebook_size >= 2**31:
            raise UserError(f"quantizer.levels={tuple(self.levels)}: their product must be below 2^31")
        least = min(self.levels)
        if least < 3:
            raise UserError(f"quantizer.levels={tuple(self.levels)}: one whole number for each channel, 3 or more")
        if not 0 < self.eps < 1 - 1 / (least - 1):
            raise UserError(
                f"quantizer.eps={self.eps:g}: it must be in (0, {1 - 1 / (least - 1):g}) for {least} levels"
            )

    @nn.nowrap
    def bound(self, z: jax.Array) -> jax.Array:
        """Latents [...,D] -> within each channel's levels, which are whole numbers; level 0 is in the middle."""
        levels = np.array(self.levels)
        half = (levels - 1) * (1 - self.eps) / 2
        offset = np.where(levels % 2 == 1, 0.0, 0.5)
        return jnp.tanh(z + np.arctanh(offset / half)) * half - offset

    @nn.nowrap
    def lookup(self, ids: jax.Array) -> jax.Array:
        levels = np.array(self.levels)
        digits = ids[..., None] // np.cumprod([1, *levels[:-1]]) % levels
        return (digits - levels // 2) / (levels // 2).astype(np.float32)

    def __call__(
        self, z: jax.Array, step: jax.Array | int = 0, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """There is no loss: nothing pulls latents to codes, or codes to latents."""
        levels = np.array(self.levels)
        bounded = self.bound(z.astype(jnp.float32))
        rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
        digits = jnp.round(bounded).astype(jnp.int32) + levels // 2
        ids = jnp.sum(digits * np.cumprod([1, *levels[:-1]]), -1).astype(jnp.int32)
        return rounded / (levels // 2).astype(np.float32), {"ids": ids, "loss": jnp.zeros(())}


QUANTIZERS = {
    "vq": VectorQuantizer,
    "normalized": NormalizedVectorQuantizer,
    "ema": EMAVectorQuantizer,
    "gumbel": GumbelQuantizer,
    "fsq": FiniteScalarQuantizer,
}


def make_quantizer(fields: dict) -> Quantizer:
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
