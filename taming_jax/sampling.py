"""Sampling: loops over a model's step function. Nothing here knows the model."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

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


def column_groups(size: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Which window decodes which columns: (its left edge, first column, number of columns), from left to right.

    The window moves every `stride` columns; with 1 it is centred on each, as in the original.
    """
    lefts = [min(max(j // stride * stride - window // 2, 0), size - window) for j in range(size)]
    starts = [j for j in range(size) if j == 0 or lefts[j] != lefts[j - 1]]
    return [(lefts[a], a, b - a) for a, b in zip(starts, [*starts[1:], size], strict=True)]


class Grid(NamedTuple):
    """What is painted, and how far it is."""

    codes: jax.Array  # [B,H,W] int32
    known: jax.Array  # [H,W] bool: codes that were given and stay


class Sampler(NamedTuple):
    """A transformer and a way of drawing. All but `decode`, `init_cache` and `window` may be traced.

    decode: (ids [B,T], position of the first [], cache, at [B] or None) -> (logits [B,T or 1,V], cache).
    init_cache: (batch size) -> an empty cache.
    """

    decode: Callable
    init_cache: Callable
    window: int
    keys: jax.Array  # [B], one per image, folded with the position in the grid
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array

    def draw(self, logits: jax.Array, position: jax.Array) -> jax.Array:
        """[B,V], position [] or [B] -> ids [B]."""
        logits = filter_logits(logits / self.temperature, self.top_k, self.top_p)
        position = jnp.broadcast_to(position, len(logits))
        return jax.vmap(lambda key, p, row: jax.random.categorical(jax.random.fold_in(key, p), row))(
            self.keys, position, logits
        )


def prefix_at(cond: jax.Array, top: jax.Array, left: jax.Array, window: int) -> jax.Array:
    """The condition of a window: [B,S] stands before every one, [B,H,W] is cut like the codes. -> [B,S or window^2]."""
    return cond if cond.ndim == 2 else cut(cond, top, left, window)


def cut(grid: jax.Array, top: jax.Array, left: jax.Array, window: int) -> jax.Array:
    """A window row by row. [B,H,W] -> [B,window^2]."""
    return jax.lax.dynamic_slice(grid, (0, top, left), (len(grid), window, window)).reshape(len(grid), -1)


def paint_row(
    sampler: Sampler, cond: jax.Array, grid: Grid, i: jax.Array, caches, stride: int, keep: bool
) -> tuple[Grid, list | None]:
    """Row `i` of a grid, the rows above it painted; with the caches of its windows, if `keep`.

    A window that stands still keeps its keys and values: between its columns, and from row to row where it rests at the
    top or the bottom. caches: what the row above kept, or None where the windows have moved down since. Then each
    window reads its condition and the codes above first, and no more of itself than that.
    """
    b, h, w = grid.codes.shape
    n = sampler.window
    top = window_start(i, n, h)
    kept = []

    def paint_group(codes, left, start, count, cache):
        patch, prefix = cut(codes, top, left, n), prefix_at(cond, top, left, n)
        s = prefix.shape[1]
        before = (i - top) * n + start - left  # codes of this window that are known
        if cache is None:
            # Of itself half its rows and one: where more rows are above, the window rests and has a cache.
            length = min(n // 2 * n + n, n * n - 1)
            tokens, position, at = jnp.concatenate([prefix, patch[:, :length]], 1), 0, s + before - 1
            cache = sampler.init_cache(b)
        else:
            tokens, position, at = jax.lax.dynamic_slice_in_dim(patch, before - n, n, 1), s + before - n, n - 1
        logits, cache = sampler.decode(tokens, position, cache, jnp.broadcast_to(at, b))

        def put(codes, logits, j):
            drawn = jnp.where(grid.known[i, j], codes[:, i, j], sampler.draw(logits[:, 0], i * w + j))
            return codes.at[:, i, j].set(drawn), drawn

        def following(carry, k):
            codes, logits, cache = carry
            codes, drawn = put(codes, logits, start + k)
            logits, cache = sampler.decode(drawn[:, None], s + before + k, cache, None)
            return (codes, logits, cache), None

        if count > 1:
            (codes, logits, cache), _ = jax.lax.scan(following, (codes, logits, cache), jnp.arange(count - 1))
        return put(codes, logits, start + count - 1)[0], cache

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


def wavefront_rows(h: int, w: int, window: int) -> int:
    """How many rows advance together."""
    return min(h, -(-w // window))


def wavefront_length(h: int, w: int, window: int) -> int:
    """How many steps paint a whole grid."""
    return w + window * (h - 1)


def paint_wavefront(sampler: Sampler, cond: jax.Array, grid: Grid, t: jax.Array) -> Grid:
    """One step of many rows: row i stands at column t - window i, which is as far as it can see of the row above.

    The same codes as row by row, since keys follow the position. Each window reads all that it needs anew.
    """
    b, h, w = grid.codes.shape
    n, slots = sampler.window, wavefront_rows(h, w, sampler.window)
    i = t // n - jnp.arange(slots)
    j = t - n * i
    active = (i >= 0) & (i < h) & (j >= 0) & (j < w)
    i, j = jnp.where(active, i, 0), jnp.where(active, j, 0)
    top, left = window_start(i, n, h), window_start(j, n, w)
    tokens = jax.vmap(
        lambda top, left: jnp.concatenate([prefix_at(cond, top, left, n), cut(grid.codes, top, left, n)[:, :-1]], 1)
    )(top, left)
    s = tokens.shape[-1] - (n * n - 1)
    at = jnp.repeat(s + (i - top) * n + j - left - 1, b)
    flat = tokens.reshape(slots * b, -1)
    logits, _ = sampler.decode(flat, 0, sampler.init_cache(len(flat)), at)
    many = sampler._replace(keys=jnp.tile(sampler.keys, slots))
    drawn = many.draw(logits[:, 0], jnp.repeat(i * w + j, b)).reshape(slots, b)
    ids = jnp.where((active & ~grid.known[i, j])[:, None], drawn, grid.codes[:, i, j].T)
    # What is not active is written to a row outside, which drops it.
    codes = grid.codes.at[:, jnp.where(active, i, h), j].set(ids.T, mode="drop")
    return grid._replace(codes=codes)


def make_painter(
    decode: Callable, init_cache: Callable, window: int, method: str = "cached", stride: int = 1
) -> Callable[..., Iterator[jax.Array]]:
    """A painter of grids larger than the transformer's window (Esser et al. 2021, section 3.3).

    decode: (params, ids [B,T], position of the first [], cache, at [B] or None) -> (logits [B,T or 1,V], cache).
    init_cache: (batch size) -> an empty cache. method: 'cached' (row by row) or 'wavefront' (as many rows at once as
    can be, for accelerators), which give the same codes. stride: columns that the window moves at once, 1 to window/2;
    above 1 it is an approximation, and 'cached' alone.

    The painter: (params, cond, codes, known, keys, temperature, top_k, top_p) -> the whole grid [B,H,W] int32 so far,
    again and again. cond: [B,S] ids that stand before each window, or [B,H,W] of which each window has its part. codes
    [B,H,W] int32 stay where known [H,W] is true; what is not yet known counts as 0, as in the original. keys: [B].
    Other arguments of the same shapes compile nothing. Raises ValueError for shapes and numbers that do not fit.
    """
    if not 1 <= stride <= window // 2:
        raise ValueError(f"stride={stride}: it must be 1 to {window // 2}, half the window")
    if method not in ("cached", "wavefront") or (method == "wavefront" and stride > 1):
        raise ValueError(f"method={method!r}: 'cached', or 'wavefront' with stride=1")

    def sampler(params, *options) -> Sampler:
        return Sampler(functools.partial(decode, params), init_cache, window, *options)

    @functools.partial(jax.jit, static_argnames="keep")
    def row(params, options, cond, grid, i, caches, keep):
        return paint_row(sampler(params, *options), cond, grid, i, caches, stride, keep)

    @jax.jit
    def steps(params, options, cond, grid, start, stop):
        one = sampler(params, *options)
        return jax.lax.fori_loop(start, stop, lambda t, grid: paint_wavefront(one, cond, grid, t), grid)

    def paint(params, cond, codes, known, keys, temperature, top_k, top_p) -> Iterator[jax.Array]:
        _, h, w = codes.shape
        check_grid(cond, codes, known, window)
        options = (keys, temperature, top_k, top_p)
        grid = Grid(jnp.where(known, codes, 0).astype(jnp.int32), jnp.asarray(known))
        if method == "wavefront":
            total, chunk = wavefront_length(h, w, window), w
            for start in range(0, total, chunk):
                grid = steps(params, options, cond, grid, start, min(start + chunk, total))
                yield grid.codes
        else:
            tops = [min(max(i - window // 2, 0), h - window) for i in range(h)]
            caches = None
            for i in range(h):
                keep = i + 1 < h and tops[i + 1] == tops[i]
                grid, caches = row(params, options, cond, grid, i, caches, keep=keep)
                yield grid.codes

    return paint


def check_grid(cond: jax.Array, codes: jax.Array, known: jax.Array, window: int) -> None:
    """Raises ValueError where condition, codes and mask do not fit together."""
    b, h, w = codes.shape
    if min(h, w) < window:
        raise ValueError(f"a grid of {h}x{w} codes is smaller than the window of {window}x{window}")
    if known.shape != (h, w):
        raise ValueError(f"the mask of known codes is {known.shape}, the grid {(h, w)}")
    if len(cond) != b or (cond.ndim == 3 and cond.shape != codes.shape):
        raise ValueError(f"the condition is {cond.shape}, the codes {codes.shape}")
