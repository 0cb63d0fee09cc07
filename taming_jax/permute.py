"""Orders in which the transformer writes the cells of a grid of codes.

Each function gives the cells of an h x w grid, numbered row by row, in the order in which they are written: int32
[h*w]. `sequence = grid[order]` and `grid = sequence[np.argsort(order)]`. All orders take any h and w; the original's
spirals need squares and its sub-sampling needs powers of two. Where the original works, the results are equal.
"""

import numpy as np


def row_major(h: int, w: int) -> np.ndarray:
    return np.arange(h * w, dtype=np.int32)


def alternate(h: int, w: int) -> np.ndarray:
    """Rows, every second one backwards."""
    grid = row_major(h, w).reshape(h, w)
    grid[1::2] = grid[1::2, ::-1]
    return grid.ravel()


def z_curve(h: int, w: int) -> np.ndarray:
    """Along Morton's curve."""
    return _by_bits(h, w, lowest_first=False)


def subsample(h: int, w: int) -> np.ndarray:
    """From coarse to fine: first every cell whose row and column are multiples of the largest power of two."""
    return _by_bits(h, w, lowest_first=True)


def _by_bits(h: int, w: int, lowest_first: bool) -> np.ndarray:
    """Sorted by the bits of row and column in turn."""
    i, j = np.indices((h, w)).reshape(2, -1)
    bits = range((max(h, w) - 1).bit_length())
    keys = [(x >> bit) & 1 for bit in (bits if lowest_first else reversed(bits)) for x in (i, j)]
    return np.lexsort(keys[::-1]).astype(np.int32) if keys else row_major(h, w)


def spiral_out(h: int, w: int) -> np.ndarray:
    """From the middle: up, right, down, left; each arm is as long as it needs to be to go round the cells before it."""
    i, j = h // 2, (w - 1) // 2
    cells, arm = [(i, j)], 0
    while len(cells) < 4 * max(h, w) ** 2:
        for k, (di, dj) in enumerate(((-1, 0), (0, 1), (1, 0), (0, -1))):
            arm += k % 2 == 0
            for _ in range(arm):
                i, j = i + di, j + dj
                cells.append((i, j))
    return np.array([i * w + j for i, j in cells if 0 <= i < h and 0 <= j < w], np.int32)


def spiral_in(h: int, w: int) -> np.ndarray:
    return spiral_out(h, w)[::-1]


def random(h: int, w: int) -> np.ndarray:
    """Shuffled once and for all, with the original's seed."""
    return np.random.RandomState(1).permutation(h * w).astype(np.int32)


ORDERS = {f.__name__: f for f in (row_major, subsample, z_curve, spiral_out, spiral_in, alternate, random)}
