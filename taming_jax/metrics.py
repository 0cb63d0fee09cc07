"""Numbers on their way from the step to the files: metrics by name, merged on the device."""

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class CodeUse(clu.metrics.Metric):
    """How often each code was chosen. Takes 'code_counts' [codebook_size] from the step."""

    counts: jax.Array

    @classmethod
    def from_model_output(cls, code_counts: jax.Array, **_) -> "CodeUse":
        return cls(code_counts)

    @classmethod
    def empty(cls) -> "CodeUse":
        return cls(jnp.zeros(()))

    def merge(self, other: "CodeUse") -> "CodeUse":
        return CodeUse(self.counts + other.counts)

    def compute(self) -> dict[str, jax.Array]:
        """code_use: share of the codebook chosen at least once. code_entropy: nats of the unigram distribution."""
        p = self.counts / jnp.maximum(self.counts.sum(), 1)
        entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0))
        return {"code_use": jnp.mean(self.counts > 0), "code_entropy": entropy, "code_perplexity": jnp.exp(entropy)}


def count_codes(ids: jax.Array, codebook_size: int, weight: jax.Array | None = None) -> jax.Array:
    """ids [B,...] int32, weight [B] -> how often each code was chosen [codebook_size] float32."""
    weight = jnp.ones(ids.shape[0]) if weight is None else weight
    weights = jnp.broadcast_to(weight.reshape(-1, *[1] * (ids.ndim - 1)), ids.shape)
    return jnp.zeros(codebook_size).at[ids.ravel()].add(weights.ravel())


@flax.struct.dataclass
class Metrics:
    """Metrics by name: one class and a dict in it, not a class of clu's Collection for each set of names.

    The trees of two dataclasses with as many fields compare equal in jax 0.10.2, so that `jit` could take one
    collection for another. Keys of a dict are compared as they are.
    """

    by_name: dict[str, clu.metrics.Metric]

    def merge(self, other: "Metrics") -> "Metrics":
        return Metrics({name: metric.merge(other.by_name[name]) for name, metric in self.by_name.items()})

    def reduce(self) -> "Metrics":
        """Merges metrics along their first axis."""
        return Metrics({name: metric.reduce() for name, metric in self.by_name.items()})

    def compute(self) -> dict[str, jax.Array | dict[str, jax.Array]]:
        return {name: metric.compute() for name, metric in self.by_name.items()}


@flax.struct.dataclass
class Skips(clu.metrics.Metric):
    """How many steps were skipped, and how many of them at the end, in a row. All float32 []."""

    steps: jax.Array
    skipped: jax.Array
    in_row: jax.Array

    @classmethod
    def from_model_output(cls, finite: jax.Array, **_) -> "Skips":
        skipped = 1 - finite.astype(jnp.float32)
        return cls(jnp.ones(()), skipped, skipped)

    def merge(self, other: "Skips") -> "Skips":
        in_row = jnp.where(other.in_row < other.steps, other.in_row, self.in_row + other.in_row)
        return Skips(self.steps + other.steps, self.skipped + other.skipped, in_row)

    def compute(self) -> dict[str, jax.Array]:
        return {"steps": self.steps, "skipped": self.skipped, "skipped_in_row": self.in_row}


def collection(averages: dict[str, jax.Array], mask: jax.Array | None = None, **metrics: clu.metrics.Metric) -> Metrics:
    """Averages ([], or [B] under a mask [B]) and other metrics of a step, to be merged with those of other steps."""
    found = {
        name: clu.metrics.Average.from_model_output(value, mask=mask if jnp.ndim(value) else None)
        for name, value in averages.items()
    }
    return Metrics(found | metrics)


def where_finite(finite: jax.Array, collected: Metrics) -> Metrics:
    """The metrics of a step, which count nothing if it was skipped; and whether it was. finite: bool []."""
    kept = jax.tree.map(lambda x: jnp.where(finite, x, jnp.zeros_like(x)), collected.by_name)
    return Metrics(kept | {"skips": Skips.from_model_output(finite)})


@jax.jit
def merge(a: Metrics, b: Metrics) -> Metrics:
    """Both steps' metrics as one, on the device."""
    return a.merge(b)


def summarize(collected: Metrics) -> dict[str, float]:
    """Waits for the device and returns plain numbers by name."""
    result = {}
    for name, value in jax.device_get(collected.compute()).items():
        result.update({k: float(v) for k, v in value.items()} if isinstance(value, dict) else {name: float(value)})
    return result
