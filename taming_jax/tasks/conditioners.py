"""Conditions of the second stage: a batch in, prefix ids out.

The contract: `Conditioner(length, vocab_size, grid, tokens)` with `tokens(frozen, batch) -> [B,length] int32` below
`vocab_size`, and `grid` (h, w) where the ids lie on a grid as the codes do. A new condition is a line in `FEATURES` and
`FIELDS`, and a branch in `make`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from taming_jax.data import layouts
from taming_jax.errors import UserError
from taming_jax.tasks import vqgan

# By name: the features of records that each reads, beside the image.
FEATURES = {"none": set(), "class": set(), "coordinates": {"coord"}, "image": set(), "objects": {"objects"}}
# By name: the fields of `config.cond` that its ids follow from, beside a first stage's weights.
FIELDS = {"none": ("sos",), "class": (), "coordinates": ("levels", "down"), "image": (), "objects": ("layout",)}


class Conditioner(NamedTuple):
    """What stands before the codes."""

    length: int
    vocab_size: int
    grid: tuple[int, int] | None
    tokens: Callable[[dict, dict], jax.Array]


def make(config: ConfigDict) -> Conditioner:
    """The condition of a completed config.

    none: the same start id before every image (the original's SOSProvider).
    class: batch['label'] [B] as one id (its Labelator).
    coordinates: where a crop lies in its image (its CoordStage), batch['coord'] [B,H,W] float in [0, 1].
    image: the codes of another picture under a first stage of its own, frozen['cond'].
    objects: a scene's objects, already ids, batch['objects'] [B,length]; for each place of a window that slides over a
    larger picture its own, batch['windows'] [B,rows,columns,length], which `tokens` then returns.
    """
    cond = config.cond
    if cond.name == "none":
        return Conditioner(
            1, cond.sos + 1, None, lambda frozen, batch: jnp.full((len(batch["label"]), 1), cond.sos, jnp.int32)
        )
    if cond.name == "class":
        return Conditioner(1, num_classes(config), None, lambda frozen, batch: batch["label"][:, None])
    if cond.name == "objects":
        layout, count = cond.layout, num_classes(config)
        if count * (1 + layout.use_group) >= layout.num_tokens:
            raise UserError(f"cond.layout.num_tokens={layout.num_tokens} are too few for {count} classes of objects")
        return Conditioner(
            layouts.length(layout),
            layout.num_tokens,
            None,
            lambda frozen, batch: batch["windows"] if "windows" in batch else batch["objects"],
        )
    if cond.name == "coordinates":
        side, vocab_size = config.data.size // cond.down, cond.levels

        def ids(frozen, batch):
            # The original's id for 1.0 lies outside of its vocabulary.
            return jnp.minimum(quantize_coordinates(batch["coord"], cond.levels, cond.down), cond.levels - 1)
    else:
        side, vocab_size = vqgan.side(cond.config), cond.config.quantizer.codebook_size

        def ids(frozen, batch):
            return vqgan.encode(cond.config, frozen["cond"], vqgan.to_input(cond.config, batch))

    def tokens(frozen, batch):
        grid = ids(frozen, batch)
        return grid.reshape(len(grid), -1)

    return Conditioner(side**2, vocab_size, (side, side), tokens)


def num_classes(config: ConfigDict) -> int:
    """Of the data of a completed config, 1 where they have none."""
    return max(1, len(config.data.class_names))


def quantize_coordinates(coord: jax.Array, levels: int, down: int) -> jax.Array:
    """Means over down x down pixels, in steps of 1/levels, rounded half to even. [B,H,W] -> [B,H/down,W/down] int32."""
    b, h, w = coord.shape
    means = coord.reshape(b, h // down, down, w // down, down).mean((2, 4))
    return jnp.round(jnp.clip(means, 0, 1) * levels).astype(jnp.int32)
