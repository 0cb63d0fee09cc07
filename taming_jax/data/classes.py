"""Classes by their names: a run's numbers for the classes of any data."""

import unicodedata
from collections.abc import Sequence


def number_classes(found: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """A run's numbers for the classes that data have, None for one that it lacks.

    known: the run's classes in their order. Where it has none, or as many that are numbers alone (those of converted
    checkpoints), the order of the data's is all that there is.
    """
    nameless = (
        len(found) == len(known) and list(known) == [str(i) for i in range(len(known))] and set(found) - set(known)
    )
    if not known or nameless or list(found) == list(known):
        return list(range(len(found)))
    numbers = {plain(name): number for number, name in reversed(list(enumerate(known)))}
    return [numbers.get(plain(name)) for name in found]


def plain(name: str) -> str:
    """A name in one of the ways in which systems store its accents."""
    return unicodedata.normalize("NFC", name)
