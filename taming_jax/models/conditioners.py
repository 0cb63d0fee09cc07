"""Conditions of the second stage: a batch in, prefix ids out.

The contract: `Conditioner(length, vocab_size, grid, tokens)` with `tokens(frozen, batch) -> [B,length] int32` below
`vocab_size`, and `grid` (h, w) where the ids lie on a grid as the codes do. A new conditioner is a function below, its
line in `make_conditioner` of `tasks/prior.py` and its name in `CONDITIONS` there.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Conditioner(NamedTuple):
    """What stands before the codes."""

    length: int
    vocab_size: int
    grid: tuple[int, int] | None
    tokens: Callable[[dict, dict], jax.Array]


def none(sos: int) -> Conditioner:
    """The same start id before every image (the original's SOSProvider)."""
    return Conditioner(1, sos + 1, None, lambda frozen, batch: jnp.full((len(batch["label"]), 1), sos, jnp.int32))


def label(num_classes: int) -> Conditioner:
    """The class, batch['label'] [B] int32, as one id (the original's Labelator)."""
    return Conditioner(1, num_classes, None, lambda frozen, batch: batch["label"][:, None])


def coordinates(levels: int, side: int, down: int) -> Conditioner:
    """Where a crop lies in its image (the original's CoordStage): batch['coord'] [B,side,side] float in [0, 1]."""
    grid = (side // down, side // down)

    def tokens(frozen, batch):
        ids = quantize_coordinates(batch["coord"], levels, down)
        # The original's id for 1.0 lies outside of its vocabulary.
        return jnp.minimum(ids, levels - 1).reshape(len(ids), -1)

    return Conditioner(grid[0] * grid[1], levels, grid, tokens)


def quantize_coordinates(coord: jax.Array, levels: int, down: int) -> jax.Array:
    """Means over down x down pixels, in steps of 1/levels, rounded half to even. [B,H,W] -> [B,H/down,W/down] int32."""
    b, h, w = coord.shape
    means = coord.reshape(b, h // down, down, w // down, down).mean((2, 4))
    return jnp.round(jnp.clip(means, 0, 1) * levels).astype(jnp.int32)


def image(encode: Callable[[dict, dict], jax.Array], codebook_size: int, grid: tuple[int, int]) -> Conditioner:
    """The codes of another picture under a first stage of its own. encode: (frozen, batch) -> [B,h,w] int32."""

    def tokens(frozen, batch):
        ids = encode(frozen, batch)
        return ids.reshape(len(ids), -1)

    return Conditioner(grid[0] * grid[1], codebook_size, grid, tokens)


def objects(length: int, vocab_size: int) -> Conditioner:
    """A scene's objects, already ids: batch['objects'] [B,length] int32."""
    return Conditioner(length, vocab_size, None, lambda frozen, batch: batch["objects"])
