"""Painters: condition and codes that stay -> the whole grid, a part at a time."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from taming_jax.sampling.cache import resize
from taming_jax.sampling.wavefront import paint_wavefront
from taming_jax.sampling.window import Grid, Sampler, column_groups, paint_row, window_start

KEPT_BYTES = 2**32  # of keys and values kept from row to row, for all images of a batch; above, each row makes its own
METHODS = ("cached", "wavefront")

# (params, cond, codes, known, keys, sampling) -> an iterator of (the grid [B,H,W] int32 so far, the number of codes of
# each image that are painted).
Painter = Callable[..., Iterator[tuple[jax.Array, int]]]


def make_painter(
    decode: Callable, init_cache: Callable, window: int, method: str = "cached", stride: int = 1, guesses: int = 1
) -> Painter:
    """A painter of grids as large as the transformer's window or larger (Esser et al. 2021, section 3.3).

    decode: (params, ids [B,T], position of the first [], cache, at [B] or None) -> (logits [B,T or 1,V], cache).
    init_cache: (batch size) -> an empty cache. method: 'cached' (row by row) or 'wavefront' (as many rows at once as
    possible, for accelerators), which give the same codes. stride: columns that the window moves at once, 1 to
    window/2; above 1 it is an approximation, and only 'cached' has it. guesses: see `window.Sampler`.

    The painter's cond: ids [B,S] that precede each window; a grid [B,h,w], of which each window reads its part; or
    [B,h-window+1,w-window+1,S], the ids for each place of the window.
    codes [B,H,W] int32 stay where known [H,W] is true; unpainted codes count as 0, as in the original. keys: [B].
    Other arguments of the same shapes compile nothing. Raises ValueError for shapes and numbers that do not fit.
    """
    if not 1 <= stride <= window // 2:
        raise ValueError(f"stride={stride}: it must be 1 to {window // 2}, half the window")
    if method not in METHODS or (method == "wavefront" and stride > 1):
        raise ValueError(f"method={method!r}: 'cached', or 'wavefront' with stride=1")

    def sampler(params, keys, sampling) -> Sampler:
        return Sampler(functools.partial(decode, params), init_cache, window, keys, sampling, guesses)

    def row(params, keys, sampling, cond, grid, i, caches, seen, keep):
        return paint_row(sampler(params, keys, sampling), cond, grid, i, caches, stride, seen, keep)

    # A row writes over the caches of the row above if it passes them on.
    rows = {
        keep: jax.jit(row, static_argnames=("seen", "keep"), donate_argnames="caches" if keep else ())
        for keep in (False, True)
    }

    @jax.jit
    def steps(params, keys, sampling, cond, grid, start, stop):
        one = sampler(params, keys, sampling)
        return jax.lax.fori_loop(start, stop, lambda t, grid: paint_wavefront(one, cond, grid, t), grid)

    def paint(params, cond, codes, known, keys, sampling) -> Iterator[tuple[jax.Array, int]]:
        b, h, w = codes.shape
        check_grid(cond, codes, known, window)
        grid = Grid(jnp.where(known, codes, 0).astype(jnp.int32), jnp.asarray(known))
        if method == "wavefront":
            order = painting_order(h, w, window, method)
            total = int(order.max()) + 1
            for start in range(0, total, w):
                stop = min(start + w, total)
                grid = steps(params, keys, sampling, cond, grid, start, stop)
                yield grid.codes, int((order < stop).sum())
        else:
            tops, caches = window_start(np.arange(h), window, h), None
            whole = jax.eval_shape(lambda: init_cache(b))
            cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(whole))
            fits = cache * len(column_groups(w, window, stride)) <= KEPT_BYTES
            for i in range(h):
                keep = fits and i + 1 < h and bool(tops[i + 1] == tops[i])
                # The window's rows down to this one are at most half of it and one, unless it rests at the bottom.
                seen = window // 2 + 1 if i - tops[i] <= window // 2 else window
                seen = min(seen * window, window**2 - 1)
                caches = caches and [resize(cache, whole, window**2 - 1 - seen) for cache in caches]
                grid, caches = rows[keep](params, keys, sampling, cond, grid, i, caches, seen=seen, keep=keep)
                yield grid.codes, (i + 1) * w

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


def painting_order(h: int, w: int, window: int, method: str) -> np.ndarray:
    """The step at which each code is painted, [H,W] int."""
    i, j = np.indices((h, w))
    return j + window * i if method == "wavefront" else i * w + j
