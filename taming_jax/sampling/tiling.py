"""Decoding grids of codes that are too large for the decoder's memory."""

from collections.abc import Callable

import jax
import numpy as np

TILE = 64  # codes a side: 1024 pixels of a model with f=16


def decode_tiled(decode: Callable[[jax.Array], jax.Array], grid: jax.Array, tile: int = TILE) -> np.ndarray:
    """Decodes a grid of codes in overlapping tiles. [B,h,w] int32 -> float32 [B,H,W,C].

    decode: [B,h',w'] -> [B,H',W',C]; it sees at most `tile` codes on a side. A grid that is no larger is decoded whole.
    Neighbours overlap by a quarter of a tile and fade into each other there. The decoder's GroupNorm and attention see
    a tile, not the whole grid, so the result is close to that of decoding at once, but not the same; a 'local' decoder
    has neither, and sees the difference at the borders of tiles alone.
    """
    _, h, w = grid.shape
    if max(h, w) <= tile:
        return np.asarray(jax.device_get(decode(grid)))
    sides = min(tile, h), min(tile, w)
    total = weight = None
    for top in starts(h, tile):
        for left in starts(w, tile):
            part = np.asarray(jax.device_get(decode(grid[:, top : top + sides[0], left : left + sides[1]])))
            factor = part.shape[1] // sides[0]
            if total is None:
                total = np.zeros((len(part), h * factor, w * factor, part.shape[-1]), np.float32)
                weight = np.zeros((h * factor, w * factor, 1), np.float32)
            fade = np.outer(ramp(part.shape[1], tile * factor // 4), ramp(part.shape[2], tile * factor // 4))
            place = np.s_[top * factor : (top + sides[0]) * factor, left * factor : (left + sides[1]) * factor]
            total[:, *place] += part * fade[..., None]
            weight[place] += fade[..., None]
    return total / weight


def starts(size: int, tile: int) -> list[int]:
    """Where tiles begin: evenly spread, with overlaps of at least a quarter of a tile. -> from 0 to size - tile."""
    if size <= tile:
        return [0]
    count = -(-(size - tile) // (tile - tile // 4)) + 1
    return [round(i) for i in np.linspace(0, size - tile, count)]


def ramp(size: int, overlap: int) -> np.ndarray:
    """A weight that rises from above 0 to 1 within `overlap`, and falls again at the end: [size] float32."""
    position = np.arange(size) + 0.5
    return np.minimum(1, np.minimum(position, size - position) / max(overlap, 1)).astype(np.float32)
