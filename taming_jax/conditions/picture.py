"""A condition on another image: line art, depth, a segmentation map, fewer pixels, or any image in colours."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from taming_jax.conditions.condition import Condition, number_rows
from taming_jax.data.files import check_labels, open_picture, refusing
from taming_jax.data.transforms import fit
from taming_jax.errors import ArgumentError, UserError
from taming_jax.first_stage import FirstStage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture(Condition):
    """The ids of another image, which has its own first stage, frozen['cond']."""

    ARGUMENTS: ClassVar = {"condition": "Pictures to be conditioned on, files with commas between."}
    HAS_STAGE = True

    label_shift: int
    downscale: int

    @staticmethod
    def check(config: ConfigDict) -> None:
        if not config.cond.workdir:
            raise UserError("cond.name='image' needs cond.workdir, the run directory of that image's first stage")

    @classmethod
    def make(cls, config: ConfigDict, stage: FirstStage | None) -> "Picture":
        seen = config.cond.config.data
        return cls(
            length=stage.side**2,
            vocab_size=stage.codebook_size,
            grid=(stage.side, stage.side),
            stage=stage,
            label_shift=seen.label_shift,
            downscale=seen.downscale,
        )

    def ids(self, frozen: dict, batch: dict) -> jax.Array:
        grid = self.stage.encode(frozen["cond"], batch)
        return grid.reshape(len(grid), -1)

    def rows(self, size: tuple[int, int], condition: Any) -> dict[str, np.ndarray]:
        """condition: files, PIL images or arrays, see `files.open_picture`, one or several, fitted to the size."""
        given = condition if isinstance(condition, (list, tuple)) else [condition]
        if not given:
            raise ArgumentError("condition is empty: name files, with commas between")
        return number_rows([self.read(picture, size) for picture in given])

    def read(self, picture: Any, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """One image as a record of a batch; raises ArgumentError if it cannot be read."""
        low = self.stage.input == "low"
        kind, name = "image" if low else self.stage.input, describe(picture)
        with refusing(f"condition={name}"):
            feature = open_picture(picture, kind, self.label_shift)
        if kind == "segmentation":
            check_labels(feature, name, self.stage.model.out_ch, self.label_shift)
        image = np.zeros((*feature.shape[:2], 3), np.uint8)
        return fit({"image": image, kind: feature, "label": 0}, size, self.downscale if low else 1)

    def pictures(self, rows: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
        return np.asarray(self.stage.to_picture(self.stage.to_input(rows)))


def describe(picture: Any) -> str:
    """Names a user's image for a message."""
    return str(picture) if isinstance(picture, (str, Path)) else type(picture).__name__
