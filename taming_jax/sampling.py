"""Sampling: loops over a model's step function. Nothing here knows the model."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


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


def draw(logits: jax.Array, keys: jax.Array, place: jax.Array, temperature, top_k, top_p) -> jax.Array:
    """One id for each row: [B,V], keys [B] folded with place [] or [B] -> [B] int32.

    A row's result depends neither on its neighbours nor on the batch size, nor on when it is drawn.
    """
    logits = filter_logits(logits / temperature, top_k, top_p)
    keys = jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(place, len(logits)))
    return jax.vmap(jax.random.categorical)(keys, logits)


def sample_full(
    decode: Callable,
    cache,
    prefix: jax.Array,
    codes: jax.Array,
    known: jax.Array,
    places: jax.Array,
    keys: jax.Array,
    temperature: float,
    top_k: int,
    top_p: float,
) -> jax.Array:
    """Ids after a prefix, one at a time, with a cache. prefix [B,S] int32 -> ids [B,N] int32.

    decode: (ids [B,T], position of the first [], cache) -> (logits [B,T,V], cache). codes [B,N] int32 stay where known
    [N]. places [N]: what the keys [B] are folded with. temperature: above 0.
    """

    def choose(logits, given):
        code, given, place = given
        return jnp.where(given, code, draw(logits[:, -1], keys, place, temperature, top_k, top_p))

    def body(carry, x):
        ids, cache = carry
        logits, cache = decode(ids[:, None], x[0], cache)
        ids = choose(logits, x[1:])
        return (ids, cache), ids

    s, n = prefix.shape[1], codes.shape[1]
    xs = (s - 1 + jnp.arange(n), codes.T, known, places)
    logits, cache = decode(prefix, 0, cache)
    first = choose(logits, jax.tree.map(lambda x: x[0], xs[1:]))
    _, rest = jax.lax.scan(body, (first, cache), jax.tree.map(lambda x: x[1:], xs))
    return jnp.concatenate([first[:, None], rest.T], 1)


def guide(decode: Callable, init_cache: Callable, length: int, null: int) -> tuple[Callable, Callable]:
    """Classifier-free guidance (Ho & Salimans 2022): `decode` and `init_cache` for twice the batch, seen as once.

    Each sequence goes along with one whose first `length` ids, the condition, are `null`. The parameters become
    (parameters, scale): a scale of 1 changes nothing, above 1 the condition weighs more.
    """

    def guided(params, ids, position, cache, at=None):
        params, scale = params
        b, t = ids.shape
        dropped = jnp.where(position + jnp.arange(t) < length, null, ids)
        both = jnp.stack([ids, dropped], 1).reshape(2 * b, t)  # neighbours, so that both stay on their device
        logits, cache = decode(params, both, position, cache, None if at is None else jnp.repeat(at, 2))
        logits = logits.reshape(b, 2, *logits.shape[1:])
        return logits[:, 1] + scale * (logits[:, 0] - logits[:, 1]), cache

    return guided, lambda batch_size: init_cache(2 * batch_size)


def window_start(i: jax.Array, window: int, size: int) -> jax.Array:
    """Where the window that decodes position `i` of a side of `size` begins: centred, but inside. -> like `i`.

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


KEPT_BYTES = 2**32  # of keys and values from row to row, for all images of a batch; with more, they are made anew


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
    options: tuple  # temperature, top_k, top_p


def prefix_at(cond: jax.Array, top: jax.Array, left: jax.Array, window: int, height: int) -> jax.Array:
    """The condition of a window: [B,S] stands before every one, a grid [B,h,w] is cut like the codes, and of
    [B,rows,columns,S] each place of the window has its own.

    height: of the grid of codes. The condition's grid, and so its window, may be finer or coarser. -> [B,S].
    """
    if cond.ndim == 2:
        return cond
    if cond.ndim == 4:
        return cond[:, top, left]
    side = cond.shape[1] * window // height
    return cut(cond, top * side // window, left * side // window, side)


def cut(grid: jax.Array, top: jax.Array, left: jax.Array, window: int) -> jax.Array:
    """A window row by row. [B,H,W] -> [B,window^2]."""
    return jax.lax.dynamic_slice(grid, (0, top, left), (len(grid), window, window)).reshape(len(grid), -1)


def paint_row(
    sampler: Sampler, cond: jax.Array, grid: Grid, i: jax.Array, caches, stride: int, seen: int, keep: bool
) -> tuple[Grid, list | None]:
    """Row `i` of a grid, the rows above it painted; with the caches of its windows, if `keep`.

    A window that stands still keeps its keys and values: between its columns, and from row to row where it rests at the
    top or the bottom. caches: what the row above kept, or None where there are none. Then each window reads its
    condition and the codes above first, of itself `seen` codes, which must be enough for that.
    """
    b, h, w = grid.codes.shape
    n = sampler.window
    top = window_start(i, n, h)
    kept = []

    def paint_group(codes, left, start, count, cache):
        patch, prefix = cut(codes, top, left, n), prefix_at(cond, top, left, n, h)
        s = prefix.shape[1]
        before = (i - top) * n + start - left  # codes of this window that are known
        if cache is None:
            tokens, position, at = jnp.concatenate([prefix, patch[:, :seen]], 1), 0, s + before - 1
            cache = sampler.init_cache(b)
        else:
            tokens, position, at = jax.lax.dynamic_slice_in_dim(patch, before - n, n, 1), s + before - n, n - 1
        logits, cache = sampler.decode(tokens, position, cache, jnp.broadcast_to(at, b))

        def put(codes, logits, j):
            drawn = jnp.where(
                grid.known[i, j], codes[:, i, j], draw(logits[:, 0], sampler.keys, i * w + j, *sampler.options)
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
    # Slots after the batch, so that a batch that is split over devices stays so.
    tokens = jax.vmap(
        lambda top, left: jnp.concatenate([prefix_at(cond, top, left, n, h), cut(grid.codes, top, left, n)[:, :-1]], 1),
        out_axes=1,
    )(top, left)
    s = tokens.shape[-1] - (n * n - 1)
    at = jnp.tile(s + (i - top) * n + j - left - 1, b)
    flat = tokens.reshape(b * slots, -1)
    logits, _ = sampler.decode(flat, 0, sampler.init_cache(len(flat)), at)
    drawn = draw(logits[:, 0], jnp.repeat(sampler.keys, slots), jnp.tile(i * w + j, b), *sampler.options)
    ids = jnp.where(active & ~grid.known[i, j], drawn.reshape(b, slots), grid.codes[:, i, j])
    # What is not active is written to a row outside, which drops it.
    codes = grid.codes.at[:, jnp.where(active, i, h), j].set(ids, mode="drop")
    return grid._replace(codes=codes)


def painting_order(h: int, w: int, window: int, method: str) -> np.ndarray:
    """At which step each code is painted, [H,W] int."""
    i, j = np.indices((h, w))
    return j + window * i if method == "wavefront" else i * w + j


# (params, cond, codes, known, keys, temperature, top_k, top_p) -> (the whole grid [B,H,W] int32 so far, codes of each
# image that are done) again and again.
Painter = Callable[..., Iterator[tuple[jax.Array, int]]]


def make_painter(
    decode: Callable, init_cache: Callable, window: int, method: str = "cached", stride: int = 1
) -> Painter:
    """A painter of grids as large as the transformer's window or larger (Esser et al. 2021, section 3.3).

    decode: (params, ids [B,T], position of the first [], cache, at [B] or None) -> (logits [B,T or 1,V], cache).
    init_cache: (batch size) -> an empty cache. method: 'cached' (row by row) or 'wavefront' (as many rows at once as
    can be, for accelerators), which give the same codes. stride: columns that the window moves at once, 1 to window/2;
    above 1 it is an approximation, and 'cached' alone.

    The painter's cond: [B,S] ids that stand before each window, a grid [B,h,w] of which each window has its part, or
    [B,h-window+1,w-window+1,S], the ids of each place of the window.
    codes [B,H,W] int32 stay where known [H,W] is true; what is not yet known counts as 0, as in the original. keys:
    [B]. Other arguments of the same shapes compile nothing. Raises ValueError for shapes and numbers that do not fit.
    """
    if not 1 <= stride <= window // 2:
        raise ValueError(f"stride={stride}: it must be 1 to {window // 2}, half the window")
    if method not in ("cached", "wavefront") or (method == "wavefront" and stride > 1):
        raise ValueError(f"method={method!r}: 'cached', or 'wavefront' with stride=1")

    def sampler(params, keys, options) -> Sampler:
        return Sampler(functools.partial(decode, params), init_cache, window, keys, options)

    def row(params, keys, options, cond, grid, i, caches, seen, keep):
        return paint_row(sampler(params, keys, options), cond, grid, i, caches, stride, seen, keep)

    # Caches that go on to the next row are written over.
    rows = {
        keep: jax.jit(row, static_argnames=("seen", "keep"), donate_argnames="caches" if keep else ())
        for keep in (False, True)
    }

    @jax.jit
    def steps(params, keys, options, cond, grid, start, stop):
        one = sampler(params, keys, options)
        return jax.lax.fori_loop(start, stop, lambda t, grid: paint_wavefront(one, cond, grid, t), grid)

    def paint(params, cond, codes, known, keys, *options) -> Iterator[tuple[jax.Array, int]]:
        b, h, w = codes.shape
        check_grid(cond, codes, known, window)
        grid = Grid(jnp.where(known, codes, 0).astype(jnp.int32), jnp.asarray(known))
        if method == "wavefront":
            order = painting_order(h, w, window, method)
            total = int(order.max()) + 1
            for start in range(0, total, w):
                stop = min(start + w, total)
                grid = steps(params, keys, options, cond, grid, start, stop)
                yield grid.codes, int((order < stop).sum())
        else:
            tops, caches = window_start(np.arange(h), window, h), None
            cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(lambda: init_cache(b))))
            fits = cache * len(column_groups(w, window, stride)) <= KEPT_BYTES
            for i in range(h):
                keep = fits and i + 1 < h and bool(tops[i + 1] == tops[i])
                # Half the window's rows and one are above and in this row, unless it rests at the bottom.
                seen = window // 2 + 1 if caches is not None or i - tops[i] <= window // 2 else window
                seen = min(seen * window, window**2 - 1)
                grid, caches = rows[keep](params, keys, options, cond, grid, i, caches, seen=seen, keep=keep)
                yield grid.codes, (i + 1) * w

    return paint


def make_sequence_painter(decode: Callable, init_cache: Callable, order: np.ndarray) -> Painter:
    """A painter of the window alone, in any order of its codes: order [N] holds their places, row by row.

    Arguments and result as of `make_painter`, but at once.
    """

    @jax.jit
    def sequence(params, cond, codes, known, *options):
        flat = codes.reshape(len(codes), -1)[:, order]
        cache = init_cache(len(codes))
        ids = sample_full(functools.partial(decode, params), cache, cond, flat, known.ravel()[order], order, *options)
        return ids[:, np.argsort(order)].reshape(codes.shape)

    def paint(params, cond, codes, known, *options) -> Iterator[tuple[jax.Array, int]]:
        yield sequence(params, cond, codes, known, *options), order.size

    return paint


def check_grid(cond: jax.Array, codes: jax.Array, known: jax.Array, window: int) -> None:
    """Raises ValueError where condition, codes and mask do not fit together."""
    b, h, w = codes.shape
    if min(h, w) < window:
        raise ValueError(f"a grid of {h}x{w} codes is smaller than the window of {window}x{window}")
    if known.shape != (h, w):
        raise ValueError(f"the mask of known codes is {known.shape}, the grid {(h, w)}")
    if cond.ndim == 3:
        fits = cond.shape[1] * w == cond.shape[2] * h and cond.shape[1] * window % h == 0
    else:
        fits = cond.ndim == 2 or cond.shape[1:3] == (h - window + 1, w - window + 1)
    if len(cond) != b or not fits:
        raise ValueError(f"the condition is {cond.shape}, which does not fit the codes {codes.shape}")
