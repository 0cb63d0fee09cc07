"""Numbers: metric collections on the device."""

import functools

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


def collection(
    averages: dict[str, jax.Array], mask: jax.Array | None = None, **metrics: clu.metrics.Metric
) -> clu.metrics.Collection:
    """A clu collection of averages ([], or [B] under a mask [B]) and other metrics, to be merged with other steps'."""
    values = {
        name: clu.metrics.Average.from_model_output(value, mask=mask if jnp.ndim(value) else None)
        for name, value in averages.items()
    }
    fields = {**values, **metrics}
    return _collection_class(tuple((name, type(metric)) for name, metric in fields.items())).empty().replace(**fields)


@functools.cache
def _collection_class(fields: tuple[tuple[str, type], ...]) -> type[clu.metrics.Collection]:
    """One class per set of fields: of many classes, `jax.jit` (0.10.2) mistook one for another with as many fields."""
    return clu.metrics.Collection.create(**dict(fields))


@jax.jit
def merge(a: clu.metrics.Collection, b: clu.metrics.Collection) -> clu.metrics.Collection:
    """Both steps' metrics as one, on the device."""
    return a.merge(b)


def summarize(collected: clu.metrics.Collection) -> dict[str, float]:
    """Waits for the device and returns plain numbers by name."""
    result = {}
    for name, value in jax.device_get(collected.compute()).items():
        result.update({k: float(v) for k, v in value.items()} if isinstance(value, dict) else {name: float(value)})
    return result
