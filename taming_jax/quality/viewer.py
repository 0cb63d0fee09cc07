"""A network that looks at pictures and judges them, and what comes of it."""

from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from taming_jax.console import say
from taming_jax.images import Sheet
from taming_jax.quality.features import Seen, see
from taming_jax.quality.judge import FEW, Reference, judge, protocol, read_statistics, refer
from taming_jax.quality.networks import Network
from taming_jax.quality.options import BATCH_SIZE
from taming_jax.quality.pictures import Pictures, open_pictures


class Judged(NamedTuple):
    """What came of an evaluation: numbers by name, the protocol that they follow, and maybe more.

    by_class: the same numbers for each class. sheet: a picture for people.
    """

    numbers: dict[str, float]
    protocol: dict
    by_class: dict[str, dict[str, float]] | None = None
    sheet: Sheet | None = None


class Viewer(NamedTuple):
    """A network on the devices of a mesh. store: where what it sees is kept, None for nowhere."""

    network: Network
    mesh: Mesh
    store: Path | None = None
    batch_size: int = BATCH_SIZE

    def see(self, pictures: Pictures, word: str) -> Seen:
        """What the network sees in pictures; word: what they are called in messages."""
        return see(self.network, pictures, self.mesh, self.batch_size, self.store, word)

    def refer(self, pictures: Pictures, word: str) -> Reference:
        """A reference of pictures."""
        return refer(self.see(pictures, word), pictures.about)

    def judge(self, seen: Seen, about: dict, reference: Reference) -> Judged:
        """Judges what was seen of samples by a reference; says where there are few. about: as in `Pictures`."""
        if seen.count < FEW:
            say(
                f"{seen.count} samples: a Fréchet distance of so few is too large, and comparable to those of as many"
                " alone"
            )
        return Judged(judge(self.network, seen, reference), protocol(self.network, about, reference.about))


def compare(viewer: Viewer, samples: Path, reference: Path) -> Judged:
    """Judges pictures of a folder or archive by those of another, or by saved statistics. Raises ArgumentError."""
    found = open_pictures("samples", samples)
    other = read_reference(viewer, reference)
    return viewer.judge(viewer.see(found, "samples"), found.about, other)


def read_reference(viewer: Viewer, path: Path) -> Reference:
    """A reference of a folder's or archive's pictures, or of saved statistics. Raises ArgumentError."""
    if path.suffix == ".npz" and path.is_file():
        if (told := read_statistics("reference", path, viewer.network)) is not None:
            return told
    return viewer.refer(open_pictures("reference", path), "reference")
