"""What a network sees in a set of pictures: on all devices, kept part by part, to go on where it was stopped."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from taming_jax import images, sharding
from taming_jax.console import bar
from taming_jax.errors import UserError
from taming_jax.quality.networks import Network
from taming_jax.quality.options import BATCH_SIZE
from taming_jax.quality.pictures import Pictures

PART = 1024  # pictures that are kept in one file


class Seen(NamedTuple):
    """Features of `count` pictures, in parts: files of arrays, or arrays [n,D] by name."""

    count: int
    parts: tuple[Path | dict[str, np.ndarray], ...]

    def names(self) -> tuple[str, ...]:
        """'pool', and 'spatial' and 'logits' where the network has them."""
        with open_part(self.parts[0]) as part:
            return tuple(part)

    def each(self, name: str) -> Iterator[np.ndarray]:
        """The parts of one kind of features, [n,D] float32, one after another."""
        for part in self.parts:
            with open_part(part) as found:
                yield found[name]

    def all(self, name: str) -> np.ndarray:
        """[count,D] float32."""
        return np.concatenate(list(self.each(name)))

    def first(self, name: str, most: int) -> np.ndarray:
        """The first features of one kind, [at most `most`,D] float32."""
        found, count = [], 0
        for part in self.each(name):
            found.append(part[: most - count])
            count += len(found[-1])
            if count >= most:
                break
        return np.concatenate(found)

    def split(self, labels: np.ndarray) -> dict[int, "Seen"]:
        """The features of each class, by its label; labels: int [count]. All of them are held in memory."""
        found, start = {}, 0
        for part in self.parts:
            with open_part(part) as opened:
                arrays = {name: opened[name] for name in self.names()}
            own = labels[start : start + len(arrays["pool"])]
            start += len(own)
            for label in np.unique(own):
                found.setdefault(int(label), []).append({n: value[own == label] for n, value in arrays.items()})
        return {label: Seen(sum(len(p["pool"]) for p in parts), tuple(parts)) for label, parts in found.items()}


@functools.cache
def program(see: Callable, mesh: Mesh) -> Callable:
    """A network's `see`, compiled once for each mesh and shape; what it sees is on every device."""
    return jax.jit(see, out_shardings=NamedSharding(mesh, PartitionSpec()))


def open_part(part: Path | dict[str, np.ndarray]) -> AbstractContextManager[Mapping[str, np.ndarray]]:
    return np.load(part, allow_pickle=False) if isinstance(part, Path) else nullcontext(part)


def see(
    network: Network,
    pictures: Pictures,
    mesh: Mesh,
    batch_size: int = BATCH_SIZE,
    store: Path | None = None,
    word: str = "pictures",
) -> Seen:
    """Shows all pictures to a network. word: what the bar of progress calls them.

    store: a folder in which parts are kept, under a name that follows from the network and the pictures; parts that are
    there already are not made again. Raises UserError for features that are not finite.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    batch_size = -(-min(batch_size, pictures.count) // devices) * devices
    whole = NamedSharding(mesh, PartitionSpec())
    weights = jax.device_put(network.weights, whole)
    look = program(network.see, mesh)
    folder = store / key_of(network, pictures) if store is not None else None
    parts = []
    quiet = jax.process_index() > 0
    progress = bar(total=pictures.count, desc=f"{network.name} sees {word}", unit="image", leave=False, disable=quiet)
    with jax.set_mesh(mesh), progress:
        for start in range(0, pictures.count, PART):
            stop = min(start + PART, pictures.count)
            file = folder / f"{start:08}.npz" if folder is not None else None
            if file is None or not file.exists():
                found = []
                for begin in range(start, stop, batch_size):
                    shown = pictures.read(begin, min(begin + batch_size, stop))
                    for batch, count in sharding.filled_batches(shown, batch_size, mesh):
                        seen = jax.device_get(look(weights, batch))
                        found.append({name: value[:count] for name, value in seen.items()})
                    progress.update(len(shown))
                part = {name: np.concatenate([f[name] for f in found]) for name in found[0]}
                check_finite(part, network, word)
                if file is not None:
                    folder.mkdir(parents=True, exist_ok=True)
                    images.write_npz(file, **part)
            else:
                progress.update(stop - start)
            parts.append(part if file is None else file)
    return Seen(pictures.count, tuple(parts))


def check_finite(part: dict[str, np.ndarray], network: Network, word: str) -> None:
    for name, value in part.items():
        if not np.isfinite(value).all():
            raise UserError(
                f"the {name} features that {network.name} has of {word} are not finite: are its weights damaged?"
            )


def key_of(network: Network, pictures: Pictures) -> str:
    """A name that is equal for equal pictures and networks."""
    told = json.dumps([network.name, network.digest, network.dtype, pictures.about], sort_keys=True)
    return f"{network.name}-{hashlib.blake2b(told.encode(), digest_size=8).hexdigest()}"
