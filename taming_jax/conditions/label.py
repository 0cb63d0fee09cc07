"""A condition on a class."""

import csv
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from taming_jax.conditions.condition import Condition
from taming_jax.errors import ArgumentError, nearest
from taming_jax.first_stage import FirstStage
from taming_jax.images import legible

MOST_CLASSES = 16  # painted when a user names none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label(Condition):
    """batch['label'] [B] as one id (the original's Labelator)."""

    ARGUMENTS: ClassVar = {
        "classes": f"Names or numbers, with commas between; default: all, or {MOST_CLASSES} spread evenly."
    }
    WORD = "class"
    NEEDS_DATA = False
    FINITE = True
    COUNTS_CLASSES = True

    class_names: tuple[str, ...]

    @classmethod
    def make(cls, config: ConfigDict, stage: FirstStage | None) -> "Label":
        names = tuple(config.data.class_names)
        return cls(length=1, vocab_size=max(1, len(names)), class_names=names)

    def ids(self, frozen: dict, batch: dict) -> jax.Array:
        return batch["label"][:, None]

    def rows(self, size: tuple[int, int], classes: str | Sequence[str | int] | None = None) -> dict[str, np.ndarray]:
        return {"label": np.int32(parse_classes(classes, self.class_names))}

    def names(self, rows: dict[str, np.ndarray]) -> tuple[str, ...]:
        return tuple(self.class_names[label] for label in rows["label"]) if self.class_names else ()

    def captions(self, rows: dict[str, np.ndarray]) -> tuple[str, ...]:
        return legible(self.names(rows), rows["label"]) if self.class_names else ()


def parse_classes(asked: str | Sequence[str | int] | None, names: tuple[str, ...]) -> list[int]:
    """'flags, 3' or ['flags', 3] -> label numbers. None gives all classes, or 16 spread evenly if there are more.

    A name may hold commas: alone, or in double quotes in a text. Raises ArgumentError for an unknown class.
    """
    count = max(1, len(names))
    if asked is None:
        return sorted({round(i) for i in np.linspace(0, count - 1, min(count, MOST_CLASSES))})
    labels = []
    for word in split_names(asked, names):
        by_name = [i for i, name in enumerate(names) if name == word]
        by_name += [i for i, name in enumerate(names) if name.lower() == word.lower()]
        if not by_name and not (word.isdecimal() and int(word) < count):
            lower = {name.lower(): name for name in names}
            raise ArgumentError(
                f"classes: there is no class {word!r}{nearest(word.lower(), lower)}; classes are 0 to {count - 1}"
                + (f": {', '.join(names)}" if 0 < len(names) <= 20 else "")
            )
        labels.append(by_name[0] if by_name else int(word))
    if not labels:
        raise ArgumentError("classes is empty: name some, or leave it out for all")
    return labels


def split_names(asked: str | Sequence[str | int], names: tuple[str, ...]) -> list[str]:
    """The words of a request; all of it is one word if it is the name of a class with commas."""
    words = [asked] if isinstance(asked, str) else [str(word).strip() for word in np.atleast_1d(asked)]
    whole = [name for name in names if "," in name and squeezed(name) == squeezed(",".join(words))]
    if whole:
        return whole[:1]
    if isinstance(asked, str):
        try:
            words = [word.strip() for word in next(csv.reader([asked], skipinitialspace=True), [])]
        except csv.Error as e:
            raise ArgumentError(f"classes={asked!r}: {e}") from e
    return words


def squeezed(text: str) -> str:
    """A text without blanks beside its commas, as a flag's list loses them."""
    return ",".join(part.strip().lower() for part in text.split(","))
