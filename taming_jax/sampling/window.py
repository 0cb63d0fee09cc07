"""The sliding window: grids of codes larger than what a transformer sees at once (Esser et al. 2021, section 3.3)."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from taming_jax.sampling.cache import resize
from taming_jax.sampling.draw import Sampling, draw
from taming_jax.sampling.speculative import sample_speculative


def window_start(i: jax.Array, window: int, size: int) -> jax.Array:
    """Where the window begins that decodes row or column `i` of `size`: centred, but inside the grid. -> like `i`.

    i: an array of JAX, or of NumPy where it must be known before tracing.
    """
    return (i - window // 2).clip(0, size - window)


def column_groups(size: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Which window decodes which columns: (its left edge, first column, number of columns), from left to right.

    The window moves every `stride` columns; with 1 it is centred on each, as in the original.
    """
    lefts = window_start(np.arange(size) // stride * stride, window, size)
    starts = [0, *(np.flatnonzero(np.diff(lefts)) + 1), size]
    return [(int(lefts[a]), int(a), int(b - a)) for a, b in itertools.pairwise(starts)]


class Grid(NamedTuple):
    """A grid of codes while it is painted."""

    codes: jax.Array  # [B,H,W] int32
    known: jax.Array  # [H,W] bool: codes that were given and stay


class Sampler(NamedTuple):
    """A transformer and a way of drawing. All but `decode`, `init_cache`, `window` and `guesses` may be traced.

    decode: (ids [B,T], position of the first [], cache, at [B] or None) -> (logits [B,T or 1,V], cache).
    init_cache: (batch size) -> an empty cache. guesses: codes that are guessed at once where the window rests, 1 for
    none, see `sampling.speculative`.
    """

    decode: Callable
    init_cache: Callable
    window: int
    keys: jax.Array  # [B], one per image, folded with the number of the cell
    sampling: Sampling
    guesses: int = 1


def prefix_at(cond: jax.Array, top: jax.Array, left: jax.Array, window: int, height: int) -> jax.Array:
    """The condition of a window: every window gets [B,S], a grid [B,h,w] is cut like the codes, and
    [B,rows,columns,S] has its own ids for each place of the window.

    height: that of the grid of codes. The condition's grid, and so its window, may be finer or coarser. -> [B,S].
    """
    if cond.ndim == 2:
        return cond
    if cond.ndim == 4:
        return cond[:, top, left]
    side = cond.shape[1] * window // height
    return cut(cond, top * side // window, left * side // window, side)


def cut(grid: jax.Array, top: jax.Array, left: jax.Array, window: int) -> jax.Array:
    """Cuts a window out of a grid, row by row. [B,H,W] -> [B,window^2]."""
    return jax.lax.dynamic_slice(grid, (0, top, left), (len(grid), window, window)).reshape(len(grid), -1)


def paint_row(
    sampler: Sampler, cond: jax.Array, grid: Grid, i: jax.Array, caches, stride: int, seen: int, keep: bool
) -> tuple[Grid, list | None]:
    """Paints row `i` of a grid whose rows above are painted; also gives the caches of its windows, if `keep`.

    A window that stands still keeps its keys and values: between its columns, and from row to row where it rests at the
    top or the bottom. caches: those that the row above kept, or None. With None, each window first reads its condition
    and its own first `seen` codes, which must include all painted ones. Caches have no places for codes beyond.
    """
    b, h, w = grid.codes.shape
    n = sampler.window
    top = window_start(i, n, h)
    kept = []

    def paint_group(codes, left, start, count, cache):
        patch, prefix = cut(codes, top, left, n), prefix_at(cond, top, left, n, h)
        s = prefix.shape[1]
        before = (i - top) * n + start - left  # codes of this window that are painted
        if cache is None:
            tokens, position, at = jnp.concatenate([prefix, patch[:, :seen]], 1), 0, s + before - 1
            whole = sampler.init_cache(b)
            cache = resize(whole, whole, n * n - 1 - seen)
        else:
            tokens, position, at = jax.lax.dynamic_slice_in_dim(patch, before - n, n, 1), s + before - n, n - 1
        logits, cache = sampler.decode(tokens, position, cache, jnp.broadcast_to(at, b))
        if min(sampler.guesses, count) > 1:
            last = jax.lax.dynamic_index_in_dim(tokens, at, 1, keepdims=False)
            return guess_group(codes, start, count, cache, last, s + before - 1, logits.shape[-1])

        def put(codes, logits, j):
            drawn = jnp.where(
                grid.known[i, j], codes[:, i, j], draw(logits[:, 0], sampler.keys, i * w + j, sampler.sampling)
            )
            return codes.at[:, i, j].set(drawn), drawn

        def following(carry, k):
            codes, logits, cache = carry
            codes, drawn = put(codes, logits, start + k)
            logits, cache = sampler.decode(drawn[:, None], s + before + k, cache, None)
            return (codes, logits, cache), None

        if count > 1:
            (codes, logits, cache), _ = jax.lax.scan(following, (codes, logits, cache), jnp.arange(count - 1))
        return put(codes, logits, start + count - 1)[0], cache

    def guess_group(codes, start, count, cache, last, position, num_ids):
        """The same codes of a resting window, several in a pass; one image after another, each at its own pace."""

        def one(x):
            codes, last, key, cache = x
            ids, cache, _ = sample_speculative(
                sampler.decode, cache, last, position, codes, known, jax.random.fold_in(key, i * w + start),
                sampler.sampling, min(sampler.guesses, count), num_ids,
            )  # fmt: skip
            return ids, cache

        known = jax.lax.dynamic_slice(grid.known, (i, start), (1, count))[0]
        given = jax.lax.dynamic_slice(codes, (0, i, start), (b, 1, count))[:, 0]
        apart = jax.tree.map(lambda x: x.reshape(b, -1, *x.shape[1:]), cache)
        ids, filled = jax.lax.map(one, (given, last, sampler.keys, apart))
        cache = jax.tree.map(lambda x, like: x.reshape(like.shape), filled, cache)
        return jax.lax.dynamic_update_slice(codes, ids[:, None], (0, i, start)), cache

    codes = grid.codes
    runs = itertools.groupby(column_groups(w, n, stride), key=lambda group: group[2])
    for number, (count, groups) in enumerate(runs):
        lefts, starts, _ = (jnp.array(x) for x in zip(*groups, strict=True))

        def body(codes, x, count=count):
            codes, cache = paint_group(codes, x[0], x[1], count, x[2] if caches is not None else None)
            return codes, cache if keep else None

        xs = (lefts, starts, caches[number]) if caches is not None else (lefts, starts)
        codes, cache = jax.lax.scan(body, codes, xs)
        kept.append(cache)
    return grid._replace(codes=codes), kept if keep else None
