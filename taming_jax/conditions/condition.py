"""The contract of a condition: it turns a batch into ids that precede the codes or go with them, and reads requests."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from taming_jax.first_stage import FirstStage
from taming_jax.images import legible


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """One kind of condition, built from a complete config by `make`. Each kind overrides what it has.

    length: the number of ids. vocab_size: all ids are below it. grid: (rows, columns), if the ids lie on a grid as the
    codes do. stage: the condition's own first stage, whose parameters are frozen['cond'].
    """

    FEATURES: ClassVar[tuple[str, ...]] = ()  # of a batch, besides the image
    FIELDS: ClassVar[tuple[str, ...]] = ()  # of `config.cond`, which determine the ids, besides a stage's weights
    LEARNED: ClassVar[tuple[str, ...]] = ()  # those of FIELDS that `learn` fills in
    ARGUMENTS: ClassVar[dict[str, str]] = {}  # a user's arguments for it: name -> help, see `rows`
    WORD: ClassVar[str] = "condition"  # a user's word for one condition
    DROPS: ClassVar[bool] = True  # whether training may leave it out, for guidance
    ANNOTATES: ClassVar[bool] = False  # whether `shuffle` and `see` make its ids from a record's annotations
    NEEDS_DATA: ClassVar[bool] = True  # whether it comes from held-out images, unless a user asks for one
    FINITE: ClassVar[bool] = False  # whether `rows` without arguments gives all that there is to choose from
    COUNTS_CLASSES: ClassVar[bool] = False  # whether its ids number the classes of the data
    HAS_STAGE: ClassVar[bool] = False  # whether it has a first stage of its own, `config.cond.workdir`
    WHOLE: ClassVar[bool] = False  # whether whole images are painted, not crops, unless a user asks for a size
    SHOWS: ClassVar[bool] = True  # whether its pictures show what a sample was asked for

    length: int
    vocab_size: int
    grid: tuple[int, int] | None = None
    stage: FirstStage | None = None

    @staticmethod
    def check(config: ConfigDict) -> None:
        """Raises UserError for fields of `config.cond` that do not fit, before the data are known."""

    @staticmethod
    def learn(config: ConfigDict, source) -> None:
        """Fills in the fields of `config.cond` that follow from the training data, once, before the first run."""

    @classmethod
    def make(cls, config: ConfigDict, stage: FirstStage | None) -> "Condition":
        """Makes the condition of a complete config; raises UserError where its parts do not fit."""
        raise NotImplementedError

    @property
    def feature_length(self) -> int:
        """The number of ids of its feature in a batch, from which `ids` follows."""
        return self.length

    def ids(self, frozen: dict, batch: dict) -> jax.Array:
        """The ids of a batch, [B,length] int32, or more of a larger image, see `of_size`; a pure function."""
        raise NotImplementedError

    def places(self, side: int) -> np.ndarray | None:
        """Where its ids lie, for `gpt.align`: [length,2], in cells of a grid of side x side; None if nowhere."""
        if self.grid is None:
            return None
        return np.indices(self.grid).reshape(2, -1).T * (side / np.array(self.grid))

    def named_places(self, side: int) -> np.ndarray | None:
        """The places that the first N ids name, [N,2] in cells of that grid; None if ids name no places."""
        return None

    @property
    def annotator(self) -> "Condition | None":
        """The condition as a `transforms.Annotator` if it `ANNOTATES`, or else None."""
        return self if self.ANNOTATES else None

    def shuffle(self, record: dict, rng: np.random.Generator) -> dict:
        """See `transforms.Annotator`."""
        return record

    def see(self, record: dict, crop: tuple[float, ...], flip: bool) -> dict[str, np.ndarray]:
        """See `transforms.Annotator`."""
        return {}

    def of_size(self, grid: tuple[int, int], window: int, share: tuple[float, float] = (1.0, 1.0)) -> "Condition":
        """The condition for an image of a grid of codes, over which the transformer's window may have to slide; `see`,
        `rows` and `ids` are then of that image.

        share: the shares of its sides that its upper left part has, which people asked for.
        """
        return self

    def rows(self, size: tuple[int, int], **asked: Any) -> dict[str, np.ndarray]:
        """A user's request -> the features of a batch that `ids` reads, and int32 'label' [N].

        size: (height, width) of the image to paint, in pixels. asked: values for ARGUMENTS; without any, the usual
        ones. Raises ArgumentError.
        """
        raise NotImplementedError

    def names(self, rows: dict[str, np.ndarray]) -> tuple[str, ...]:
        """A name for each row, to stand beside its images; () if rows have none."""
        return ()

    def captions(self, rows: dict[str, np.ndarray]) -> tuple[str, ...]:
        """The names as a sheet shows them."""
        names = self.names(rows)
        return legible(names, rows["label"]) if names else ()

    def pictures(self, rows: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray | None:
        """The conditions as pictures, [N,H,W,3], uint8 or float in [-1, 1]; None if they cannot be drawn."""
        return None


def number_rows(records: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Records of equal shapes as the rows of a batch, with int32 'label' [N]: their numbers."""
    batch = {name: np.stack([record[name] for record in records]) for name in records[0]}
    return batch | {"label": np.arange(len(records), dtype=np.int32)}


class Unconditional(Condition):
    """The same start id before every image (the original's SOSProvider)."""

    FIELDS = ("sos",)
    DROPS = False
    NEEDS_DATA = False

    @classmethod
    def make(cls, config: ConfigDict, stage: FirstStage | None) -> "Unconditional":
        return cls(length=1, vocab_size=config.cond.sos + 1)

    def ids(self, frozen: dict, batch: dict) -> jax.Array:
        return jnp.full((len(batch["label"]), 1), self.vocab_size - 1, jnp.int32)

    def rows(self, size: tuple[int, int], **asked: Any) -> dict[str, np.ndarray]:
        return {"label": np.zeros(1, np.int32)}
