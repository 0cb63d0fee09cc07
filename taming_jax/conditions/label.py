"""A condition on a class."""

import csv
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from taming_jax.conditions.condition import Condition
from taming_jax.errors import LISTED, ArgumentError, nearest, printable, show
from taming_jax.first_stage import FirstStage
from taming_jax.values import to_whole

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


def parse_classes(asked: str | Sequence[str | int] | None, names: tuple[str, ...]) -> list[int]:
    """'flags, 3' or ['flags', 3] -> label numbers. None gives all classes, or 16 spread evenly if there are more.

    A name may hold commas: alone, or in double quotes in a text. Raises ArgumentError for an unknown class.
    """
    count = max(1, len(names))
    if asked is None:
        return sorted({round(i) for i in np.linspace(0, count - 1, min(count, MOST_CLASSES))})
    words = split_names(asked, names)
    if not any(words):
        raise ArgumentError("classes is empty: name some, or leave it out for all")
    labels = []
    for word in words:
        label = find_class("classes", word, names or ("0",))
        if label is None:
            lower = {name.lower(): name for name in names}
            raise ArgumentError(
                f"classes: there is no class {show(word)}{nearest(word.lower(), lower)}; classes are 0 to {count - 1}"
                + (f": {printable(', '.join(names))[:LISTED]}" if 0 < len(names) <= 20 else "")
            )
        labels.append(label)
    return labels


def find_class(argument: str, word: str, names: Sequence[str]) -> int | None:
    """The number of a class by its name, in any case where that leaves one, or by its number; None if there is none.

    Raises ArgumentError, with the argument's name, for a word that names several.
    """
    if word in names:
        return names.index(word)
    alike = [i for i, name in enumerate(names) if name.lower() == word.lower()]
    if len(alike) > 1:
        raise ArgumentError(f"{argument}: {show(word)} may be {' or '.join(show(names[i]) for i in alike[:8])}")
    return alike[0] if alike else to_whole(word, len(names))


def split_names(asked: str | Sequence[str | int], names: tuple[str, ...]) -> list[str]:
    """The words of a request; all of it is one word if it is the name of a class with commas."""
    given = asked if isinstance(asked, (str, list, tuple, np.ndarray)) else [asked]
    words = [asked] if isinstance(given, str) else [word if isinstance(word, str) else show(word) for word in given]
    whole = [name for name in names if "," in name and squeezed(name) == squeezed(",".join(words))]
    if whole:
        return whole[:1]
    if isinstance(asked, str):
        try:
            words = next(csv.reader([asked], skipinitialspace=True), [])
        except csv.Error as e:
            raise ArgumentError(f"classes={show(asked)}: {e}") from e
    return [word.strip() for word in words]


def squeezed(text: str) -> str:
    """A text without blanks beside its commas, as a flag's list loses them."""
    return ",".join(part.strip().lower() for part in text.split(","))
