"""The sliding window at many places at once, for accelerators; the same codes as row by row."""

import jax
import jax.numpy as jnp

from taming_jax.sampling.draw import draw
from taming_jax.sampling.window import Grid, Sampler, cut, prefix_at, window_start


def wavefront_rows(h: int, w: int, window: int) -> int:
    """How many rows advance together."""
    return min(h, -(-w // window))


def paint_wavefront(sampler: Sampler, cond: jax.Array, grid: Grid, t: jax.Array) -> Grid:
    """One step of many rows: row i is at column t - window * i, where all that it sees of the row above is painted.

    The codes are those of row by row, since keys follow the cell. Each window reads all that it needs anew.
    """
    b, h, w = grid.codes.shape
    n, slots = sampler.window, wavefront_rows(h, w, sampler.window)
    i = t // n - jnp.arange(slots)
    j = t - n * i
    active = (i >= 0) & (i < h) & (j >= 0) & (j < w)
    i, j = jnp.where(active, i, 0), jnp.where(active, j, 0)
    top, left = window_start(i, n, h), window_start(j, n, w)
    # The axis of slots follows that of the batch, so that a batch that is split over devices stays split.
    tokens = jax.vmap(
        lambda top, left: jnp.concatenate([prefix_at(cond, top, left, n, h), cut(grid.codes, top, left, n)[:, :-1]], 1),
        out_axes=1,
    )(top, left)
    s = tokens.shape[-1] - (n * n - 1)
    at = jnp.tile(s + (i - top) * n + j - left - 1, b)
    flat = tokens.reshape(b * slots, -1)
    logits, _ = sampler.decode(flat, 0, sampler.init_cache(len(flat)), at)
    drawn = draw(logits[:, 0], jnp.repeat(sampler.keys, slots), jnp.tile(i * w + j, b), sampler.sampling)
    ids = jnp.where(active & ~grid.known[i, j], drawn.reshape(b, slots), grid.codes[:, i, j])
    # Inactive slots write to a row outside of the grid, which drops them.
    codes = grid.codes.at[:, jnp.where(active, i, h), j].set(ids, mode="drop")
    return grid._replace(codes=codes)
