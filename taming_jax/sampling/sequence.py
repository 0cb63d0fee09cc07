"""Samples codes one by one or by guesses, in any order; each code sees all codes before it."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from taming_jax.sampling.cache import resize
from taming_jax.sampling.draw import Sampling, draw
from taming_jax.sampling.painter import Painter
from taming_jax.sampling.speculative import sample_speculative

LENGTHS, LEAST = 2, 64  # in how many lengths the cache grows, and at least by how many codes: each is compiled


def sample_full(
    decode: Callable,
    cache,
    prefix: jax.Array,
    codes: jax.Array,
    known: jax.Array,
    places: jax.Array,
    keys: jax.Array,
    sampling: Sampling,
) -> jax.Array:
    """Ids after a prefix, one at a time, with a cache. prefix [B,S] int32 -> ids [B,N] int32.

    The cache is never much longer than what is in it, since each code reads all of it.

    decode: (ids [B,T], position of the first [], cache) -> (logits [B,T,V], cache). codes [B,N] int32 stay where known
    [N]. places [N]: the cells' numbers, with which the keys [B] are folded.
    """

    def choose(logits, given):
        code, given, place = given
        return jnp.where(given, code, draw(logits[:, -1], keys, place, sampling))

    def body(carry, x):
        ids, cache = carry
        logits, cache = decode(ids[:, None], x[0], cache)
        ids = choose(logits, x[1:])
        return (ids, cache), ids

    s, n = prefix.shape[1], codes.shape[1]
    xs = (s - 1 + jnp.arange(n), codes.T, known, places)
    step = max(LEAST, -(-n // LENGTHS))
    whole = cache
    logits, cache = decode(prefix, 0, resize(cache, whole, n - 1))
    ids = choose(logits, jax.tree.map(lambda x: x[0], xs[1:]))
    parts = [ids[None]]
    for start in range(1, n, step):
        stop = min(start + step, n)
        carry = ids, resize(cache, whole, n - stop)
        (ids, cache), drawn = jax.lax.scan(body, carry, jax.tree.map(lambda x, a=start, b=stop: x[a:b], xs))
        parts.append(drawn)
    return jnp.concatenate(parts).T


def make_sequence_painter(decode: Callable, init_cache: Callable, order: np.ndarray) -> Painter:
    """A painter of a single window, in any order of its codes: order [N] holds their cells, numbered row by row.

    Its arguments and results are those of `painter.make_painter`'s painter, but it gives the whole grid at once.
    """

    @jax.jit
    def sequence(params, cond, codes, known, keys, sampling):
        flat = codes.reshape(len(codes), -1)[:, order]
        cache = init_cache(len(codes))
        ids = sample_full(
            functools.partial(decode, params), cache, cond, flat, known.ravel()[order], order, keys, sampling
        )
        return ids[:, np.argsort(order)].reshape(codes.shape)

    def paint(params, cond, codes, known, keys, sampling) -> Iterator[tuple[jax.Array, int]]:
        yield sequence(params, cond, codes, known, keys, sampling), order.size

    return paint


def make_speculative_painter(
    decode: Callable, init_cache: Callable, order: np.ndarray, guesses: int, num_ids: int
) -> Painter:
    """A painter of a single window; arguments and results are those of `make_sequence_painter`'s painter.

    Its draws are others than that painter's, of the same distribution. guesses, num_ids: see `sample_speculative`.
    """

    @jax.jit
    def sequence(params, cond, codes, known, keys, sampling):
        read = functools.partial(decode, params)

        def one(cond, codes, key):
            _, cache = read(cond[None], 0, init_cache(1))
            drawn = sample_speculative(
                read, cache, cond[-1], len(cond) - 1, codes.ravel()[order], known.ravel()[order], key, sampling,
                guesses, num_ids,
            )  # fmt: skip
            return drawn[0][np.argsort(order)].reshape(codes.shape)

        # One after another: as a batch, each pass would copy the caches of those that are done.
        return jax.lax.map(lambda row: one(*row), (cond, codes, keys))

    def paint(params, cond, codes, known, keys, sampling) -> Iterator[tuple[jax.Array, int]]:
        yield sequence(params, cond, codes, jnp.asarray(known), keys, sampling), order.size

    return paint
