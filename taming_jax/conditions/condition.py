"""The contract of a condition: a batch in, ids out that stand before the codes; and how people ask for it."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from taming_jax.first_stage import FirstStage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """One kind of condition, built from a complete config by `make`. Each kind overrides what it has.

    length: how many ids. vocab_size: ids are below it. grid: (rows, columns), where ids lie on a grid as the codes do.
    stage: a first stage of its own, whose parameters are frozen['cond'].
    """

    FEATURES: ClassVar[tuple[str, ...]] = ()  # of a batch, beside the image
    FIELDS: ClassVar[tuple[str, ...]] = ()  # of `config.cond`, what ids follow from beside a stage's weights
    LEARNED: ClassVar[tuple[str, ...]] = ()  # of those, what `learn` fills in
    ARGUMENTS: ClassVar[dict[str, str]] = {}  # what people ask with: name -> help, see `rows`
    WORD: ClassVar[str] = "condition"  # what people call one of them
    DROPS: ClassVar[bool] = True  # whether training may leave it out, for guidance
    ANNOTATES: ClassVar[bool] = False  # whether `shuffle` and `see` make its ids of a record's annotations
    NEEDS_DATA: ClassVar[bool] = True  # whether, unless asked for, it comes with held-out pictures
    FINITE: ClassVar[bool] = False  # whether `rows`, asked for nothing, are all that there is to choose from
    COUNTS_CLASSES: ClassVar[bool] = False  # whether its ids number the classes of the data
    HAS_STAGE: ClassVar[bool] = False  # whether it has a first stage of its own, `config.cond.workdir`
    WHOLE: ClassVar[bool] = False  # whether, unless a size is asked for, whole pictures are painted and no crops
    SHOWS: ClassVar[bool] = True  # whether its pictures tell people what a sample was asked for

    length: int
    vocab_size: int
    grid: tuple[int, int] | None = None
    stage: FirstStage | None = None

    @staticmethod
    def check(config: ConfigDict) -> None:
        """Raises UserError for fields of `config.cond` that do not fit, before the data are known."""

    @staticmethod
    def learn(config: ConfigDict, source) -> None:
        """Fills in fields of `config.cond` that follow from the data to train on, once, before a first run."""

    @classmethod
    def make(cls, config: ConfigDict, stage: FirstStage | None) -> "Condition":
        """Of a complete config; raises UserError where its parts do not fit."""
        raise NotImplementedError

    def ids(self, frozen: dict, batch: dict) -> jax.Array:
        """[B,length] int32 of a batch; pure."""
        raise NotImplementedError

    def places(self, side: int) -> np.ndarray | None:
        """Where its ids lie, for `gpt.align`: [length,2], in codes of a grid of side x side; None: nowhere."""
        if self.grid is None:
            return None
        return np.indices(self.grid).reshape(2, -1).T * (side / np.array(self.grid))

    def named_places(self, side: int) -> np.ndarray | None:
        """Where its ids themselves name places: [N,2] those of the first N ids, in codes; None: they name none."""
        return None

    def shuffle(self, record: dict, rng: np.random.Generator) -> dict:
        """See `transforms.Annotator`, which a condition is where it `ANNOTATES`."""
        return record

    def see(self, record: dict, crop: tuple[float, ...], flip: bool) -> dict[str, np.ndarray]:
        """See `transforms.Annotator`."""
        return {}

    def of_size(self, grid: tuple[int, int], window: int) -> "Condition":
        """The condition of a picture of a grid of codes, over which the transformer's window may have to slide."""
        return self

    def rows(self, size: tuple[int, int], **asked: Any) -> dict[str, np.ndarray]:
        """What people ask for -> the features of a batch that `ids` reads, and int32 'label' [N].

        size: (height, width) in pixels of the picture to be. asked: of ARGUMENTS; without any, what is usual. Raises
        ArgumentError.
        """
        raise NotImplementedError

    def names(self, rows: dict[str, np.ndarray]) -> tuple[str, ...]:
        """A word for each row, beside its pictures; () where there are none."""
        return ()

    def pictures(self, rows: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray | None:
        """The conditions as people see them, [N,H,W,3], uint8 or float in [-1, 1]; None where they are no pictures."""
        return None


class Unconditional(Condition):
    """The same start id before every picture (the original's SOSProvider)."""

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
