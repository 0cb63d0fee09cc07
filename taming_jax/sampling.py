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

    decode: (ids [B,T], position of the first [], cache) -> (logits [B,T,V], cache). keys: [B], one per row, folded with
    the position: a row's result depends neither on its neighbours nor on the batch size. temperature: above 0.
    """

    def draw(logits, position):
        logits = filter_logits(logits[:, -1] / temperature, top_k, top_p)
        return jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, position), row))(keys, logits)

    def body(carry, position):
        ids, cache = carry
        logits, cache = decode(ids[:, None], position, cache)
        ids = draw(logits, position)
        return (ids, cache), ids

    s = prefix.shape[1]
    logits, cache = decode(prefix, 0, cache)
    first = draw(logits, s - 1)
    _, rest = jax.lax.scan(body, (first, cache), s + jnp.arange(length - 1))
    return jnp.concatenate([first[:, None], rest.T], 1)


def window_start(i: jax.Array, window: int, size: int) -> jax.Array:
    """Where the window that decodes position `i` of a side of `size` begins: centred, but inside. -> like `i`."""
    return jnp.clip(i - window // 2, 0, size - window)


def sample_windows(
    forward: Callable,
    cond: jax.Array,
    codes: jax.Array,
    known: jax.Array,
    window: int,
    keys: jax.Array,
    temperature: float,
    top_k: int,
    top_p: float,
) -> jax.Array:
    """A grid larger than the transformer's window, row by row (Esser et al. 2021, section 3.3). -> codes [B,H,W] int32.

    forward: ids [B,T] -> logits [B,T,V]. cond [B,H,W] int32: a condition on the same grid, its window goes first.
    codes [B,H,W]: kept where known [H,W] is true; a code that is not yet known counts as 0, as in the original.
    """
    b, h, w = codes.shape

    def body(codes, position):
        i, j = position // w, position % w
        top, left = window_start(i, window, h), window_start(j, window, w)
        patches = [jax.lax.dynamic_slice(x, (0, top, left), (b, window, window)).reshape(b, -1) for x in (cond, codes)]
        at = window * window - 1 + (i - top) * window + j - left
        logits = forward(jnp.concatenate(patches, 1)[:, :-1])[:, at]
        logits = filter_logits(logits / temperature, top_k, top_p)
        drawn = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, position), row))(keys, logits)
        return codes.at[:, i, j].set(jnp.where(known[i, j], codes[:, i, j], drawn)), None

    codes, _ = jax.lax.scan(body, jnp.where(known, codes, 0), jnp.arange(h * w))
    return codes
