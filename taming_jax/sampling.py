"""Sampling: loops over a model's step function. Nothing here knows the model."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def filter_logits(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Top-k, then nucleus (Holtzman et al. 2020) on what is left. [...,V] -> [...,V], -inf outside the kept set.

    top_k: int [] in [1, V], all ties at the k-th value stay. top_p: float [] in (0, 1], the first id that passes p
    stays. Both may be traced, so that changing them compiles nothing.
    """
    ranked = jnp.flip(jnp.sort(logits, -1), -1)
    kth = jnp.take(ranked, top_k - 1, -1)[..., None]
    ranked = jnp.where(ranked < kth, -jnp.inf, ranked)
    before = jnp.cumsum(jax.nn.softmax(ranked, -1), -1) - jax.nn.softmax(ranked, -1)
    # At top_p = 1 nothing goes, though the float32 sum may pass 1 early (the original does drop ids there).
    kept = (before <= top_p) | (top_p >= 1)
    smallest = jnp.min(jnp.where(kept & (ranked > -jnp.inf), ranked, jnp.inf), -1, keepdims=True)
    return jnp.where(logits < smallest, -jnp.inf, logits)


def sample_full(
    decode: Callable,
    cache,
    prefix: jax.Array,
    length: int,
    keys: jax.Array,
    temperature: float,
    top_k: int,
    top_p: float,
) -> jax.Array:
    """Ids after a prefix, one at a time, with a cache. prefix [B,S] int32 -> ids [B,length] int32.

    decode: (ids [B], position [], cache) -> (logits [B,V], cache). keys: [B], one per row, folded with the position:
    a row's result depends neither on its neighbours nor on the batch size. temperature: above 0.
    """
    b, s = prefix.shape
    ids = jnp.concatenate([prefix, jnp.zeros((b, length), jnp.int32)], 1)

    def body(carry, position):
        ids, cache = carry
        logits, cache = decode(ids[:, position], position, cache)
        logits = filter_logits(logits / temperature, top_k, top_p)
        drawn = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, position), row))(keys, logits)
        following = jnp.where(position + 1 < s, ids[:, position + 1], drawn)
        return (ids.at[:, position + 1].set(following), cache), None

    (ids, _), _ = jax.lax.scan(body, (ids, cache), jnp.arange(s + length - 1))
    return ids[:, s:]
