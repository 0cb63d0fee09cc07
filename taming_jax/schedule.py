"""When the codes of a grid are written, and which of them each code sees: one definition for both.

`t(i, j) = j + lag * i` is the step that writes the code in row i and column j. A lag beyond the reach's columns is
raster order; 1 writes whole diagonals.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SEEN_ROWS = 16  # rows of a front whose slots ask together


class Schedule(NamedTuple):
    """When codes are written, and which they see.

    lag: how many columns a row is behind the one above it. reach: rows and columns that a code sees around it.
    """

    lag: int
    reach: tuple[int, int]

    def times(self, h: int, w: int) -> np.ndarray:
        """The step that writes each code, [h,w] int."""
        i, j = np.indices((h, w))
        return j + self.lag * i

    def sees(self, di: jax.Array, dj: jax.Array) -> jax.Array:
        """Whether a code sees another one that lies di rows and dj columns further: written by then, and near."""
        return (dj + self.lag * di <= 0) & (abs(di) <= self.reach[0]) & (abs(dj) <= self.reach[1])

    def mask(self, h: int, w: int, asks: slice, near: slice) -> np.ndarray:
        """Which codes of a grid see which, of two slices of its codes, numbered row by row: [asks,near] bool."""
        i, j = (place.ravel() for place in np.indices((h, w)))
        return self.sees(i[near] - i[asks, None], j[near] - j[asks, None])

    def steps(self, h: int, w: int) -> int:
        """For how many steps a code of a grid may be seen."""
        return min(self.reach[1], w - 1) + self.lag * min(self.reach[0], h - 1) + 1

    def rows(self, h: int, w: int) -> int:
        """The most rows that are written at once."""
        return min(h, -(-w // self.lag))


class Front(NamedTuple):
    """The slots of one step of the schedule: rows numbered modulo `rows`, so that a row keeps its place in the cache.

    i, j: where each slot lies, [rows] int. inside: whether that is in the grid. mask: [rows,steps,rows] bool, which
    slots of the last steps each sees. plane: where the cache keeps this step. groups: which rows ask together, and
    which rows they may see, static.
    """

    i: jax.Array
    j: jax.Array
    inside: jax.Array
    mask: jax.Array
    plane: jax.Array
    groups: tuple[tuple[np.ndarray, np.ndarray], ...]


def make_front(schedule: Schedule, t: jax.Array, h: int, w: int) -> Front:
    """The front of step `t` [] over a grid of h x w codes."""
    rows, steps, (reach, _) = schedule.rows(h, w), schedule.steps(h, w), schedule.reach

    def places(t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        first = jnp.maximum(0, -((w - 1 - t) // schedule.lag))  # the first row that is not finished
        i = first + (jnp.arange(rows) - first) % rows
        j = t - schedule.lag * i
        return i, j, (0 <= j) & (j < w) & (i < h)

    planes = jnp.arange(steps)
    then = t - (t - planes) % steps
    i, j, inside = places(t)
    their_i, their_j, written = jax.vmap(places)(then)
    itself = (planes == t % steps)[:, None] & jnp.eye(rows, dtype=bool)[:, None]  # what lies outside must see something
    near = schedule.sees(their_i - i[:, None, None], their_j - j[:, None, None])
    mask = near & written & (then >= 0)[:, None] | itself
    asks = [np.arange(first, min(first + SEEN_ROWS, rows)) for first in range(0, rows, SEEN_ROWS)]
    if rows <= SEEN_ROWS + 2 * reach:
        asks = [np.arange(rows)]
    around = [np.arange(rows) if len(asks) == 1 else np.arange(a[0] - reach, a[-1] + reach + 1) % rows for a in asks]
    return Front(i, j, inside, mask, t % steps, tuple(zip(asks, around, strict=True)))
