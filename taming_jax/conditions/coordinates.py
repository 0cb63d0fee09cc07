"""A condition on where a crop lies in its image."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from taming_jax.conditions.condition import Condition
from taming_jax.data.transforms import coordinates
from taming_jax.errors import UserError
from taming_jax.first_stage import FirstStage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coordinates(Condition):
    """batch['coord'] [B,H,W] float in [0, 1] as ids, one for down x down pixels (the original's CoordStage).

    An id counts steps of 1/levels.
    """

    FEATURES = ("coord",)
    FIELDS = ("levels", "down")
    NEEDS_DATA = False
    WHOLE = True
    SHOWS = False

    levels: int
    down: int

    @classmethod
    def make(cls, config: ConfigDict, stage: FirstStage | None) -> "Coordinates":
        cond, size = config.cond, config.data.size
        if size % cond.down:
            raise UserError(f"cond.down={cond.down} does not divide data.size={size}")
        side = size // cond.down
        return cls(length=side**2, vocab_size=cond.levels, grid=(side, side), levels=cond.levels, down=cond.down)

    def ids(self, frozen: dict, batch: dict) -> jax.Array:
        # The original's id for 1.0 lies outside of its vocabulary.
        grid = jnp.minimum(quantize_coordinates(batch["coord"], self.levels, self.down), self.levels - 1)
        return grid.reshape(len(grid), -1)

    def rows(self, size: tuple[int, int], **asked: Any) -> dict[str, np.ndarray]:
        return {"label": np.zeros(1, np.int32), "coord": coordinates(*size)[None]}

    def pictures(self, rows: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
        """Draws the first pixel of an image dark, and later ones lighter."""
        return 2 * rows["coord"][..., None].repeat(3, -1) - 1


def quantize_coordinates(coord: jax.Array, levels: int, down: int) -> jax.Array:
    """Means over down x down pixels, in steps of 1/levels, rounded half to even. [B,H,W] -> [B,H/down,W/down] int32."""
    b, h, w = coord.shape
    means = coord.reshape(b, h // down, down, w // down, down).mean((2, 4))
    return jnp.round(jnp.clip(means, 0, 1) * levels).astype(jnp.int32)
