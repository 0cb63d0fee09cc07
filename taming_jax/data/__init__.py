"""Data: a random-access source, transforms on its records, and batches for this process.

A source is any object with `__len__`; `__getitem__(i) -> {'image': uint8 [H,W,3], 'label': int, ...}`, with features of
`features.FEATURES`; `class_names`; `describe(i)`, which names record i in a message; and, if records have texts,
`texts(kind)`, which yields all of them. `config.data.name` picks the source: 'openmoji/px64', 'folder', or the name of
a TFDS data set.
"""

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from taming_jax.data import folder, scenes, tfds_source
from taming_jax.data.transforms import Annotator, Augment
from taming_jax.data.workers import iterate, mark, noting
from taming_jax.errors import UserError, printable, reason, write_line

T = TypeVar("T")


def open_source(data: ConfigDict, split: str) -> "Readable":
    """Opens the records of 'train' or 'validation'. Raises UserError if that fails."""
    if data.resize_factor < 1:
        raise UserError(f"data.resize_factor={data.resize_factor:g}: below 1 a crop of data.size does not fit")
    if data.name == "folder":
        source = folder.source(data, split)
    elif data.name == "openmoji/scenes":
        source = scenes.source(data, split)
    else:
        source = tfds_source.source(data, split, data.name, data.features)
    if not len(source):
        raise UserError(f"data set {data.name!r} has no images in its {split} split")
    return Readable(source, data.max_bad_share)


def in_turn(read: Callable[[], T]) -> T:
    """Returns `read()`. Process 0 calls it first, so that processes that share its disk find what it has prepared."""
    first, result, error = jax.process_index() == 0, None, None
    if first:
        try:
            result = read()
        except Exception as e:  # whatever it is, the others must not wait for this process
            error = e
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("data is prepared")
    if error is not None:
        raise error
    return result if first else read()


class Readable:
    """A source under one roof: whatever goes wrong while a record is read, decoded or made into a row of a batch, the
    record is named on the terminal, counted and left out.

    If there are several of these, and more than `max_bad_share` of all records, reading raises UserError.
    """

    def __init__(self, source, max_bad_share: float):
        self.source, self.max_bad_share = source, max_bad_share
        self.class_names = source.class_names
        self.bad = set()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        return self.read(index)

    def texts(self, kind: str) -> Iterator[str]:
        """The texts of all records for a feature; raises UserError for one that cannot be read."""
        try:
            yield from self.source.texts(kind)
        except UserError:
            raise
        except Exception as e:
            raise UserError(f"data.features: {kind!r} cannot be read: {reason(e)}") from e

    def read(self, index: int, make: Callable[[dict], dict] = dict) -> dict:
        """`make` of that record, or of the next one for which that can be done."""
        for i in range(index, index + len(self)):
            if (made := self.attempt(i % len(self), make)) is not None:
                return made
        raise UserError("no image of the data set can be read")

    def attempt(self, index: int, make: Callable[[dict], dict]) -> dict | None:
        """`make` of that record, or None if that cannot be done."""
        if index in self.bad:
            return None
        name = printable(self.source.describe(index))
        try:
            with noting(name):
                return make(self.source[index])
        except UserError:
            raise
        except Exception as e:
            self.bad.add(index)
            first, count = mark(index) or (True, len(self.bad))
            message = f"{name} cannot be read ({reason(e)})"
            if count > max(1, self.max_bad_share * len(self)):
                raise UserError(
                    f"{message}; that makes {count} of {len(self)} images, more than"
                    f" data.max_bad_share={self.max_bad_share:g}: remove the damaged files or raise that share"
                ) from e
            if first:
                write_line(f"{message}: skipped, {count} of {len(self)} so far")
            return None


def train_batches(
    source, config: ConfigDict, start: int, augment: Callable[[dict, np.random.Generator], dict] | None
) -> Generator[dict, None, None]:
    """This process's part of the global batches `start`, `start + 1`, ... without end, in a new order every epoch.

    {'image': uint8 [B/processes,size,size,3], 'label': int32 [B/processes], ...}: the records as `augment` makes them,
    or as they are without it. The sequence of global batches depends on the seed and on `start` alone: neither on the
    number of processes nor of workers. So the number of batches drawn is the whole state of the iterator. Close it: it
    may own processes.
    """
    count = jax.process_count()
    examples = grain.MapDataset.source(source if augment is None else range(len(source)))
    examples = examples.seed(config.seed).shuffle().repeat(None, reseed_each_epoch=True)
    if augment is not None:
        examples = examples.random_map(functools.partial(read_augmented, source, augment))
    batches = (
        # Slices come last: before the repetition, shards of unequal size would drift apart; before the map, their
        # random numbers would. Whole batches are sliced: the processes' parts, in turn, are a single process's batch.
        examples.batch(config.batch_size // count, drop_remainder=True)
        .slice(slice(jax.process_index(), None, count))
        .slice(slice(start, None))
    )
    return iterate(batches, config.data.workers, len(source))


def read_augmented(source: Readable, augment: Callable, index: int, rng: np.random.Generator) -> dict:
    """A record as `augment` makes it with random numbers; another in its place gets the same ones."""
    state = rng.bit_generator.state

    def make(record: dict) -> dict:
        rng.bit_generator.state = state
        return augment(record, rng)

    return source.read(index, make)


def make_augment(data: ConfigDict, annotator: Annotator | None = None) -> Augment:
    """The crops and flips of a complete config's data."""
    return Augment(
        (data.size, data.size),
        data.resize_factor,
        data.random_crop,
        data.flip,
        coord="coord" in data.features,
        random_scale=data.random_scale,
        downscale=data.downscale if "low" in data.features else 1,
        annotator=annotator,
    )


def eval_batches(source: Readable, config: ConfigDict, augment: Augment) -> grain.MapDataset:
    """This process's part of one pass over a source, in a fixed random order; batches as `train_batches` has them.

    'mask' [B/processes] float32 is 0 in the rows that fill up the last batch or stand for a record that cannot be read.
    """
    count = jax.process_count()
    padded = -(-len(source) // config.batch_size) * config.batch_size
    return (
        grain.MapDataset.source(Padded(source, augment, eval_order(source), padded))
        .batch(config.batch_size // count)
        .slice(slice(jax.process_index(), None, count))
    )


def eval_order(source) -> np.ndarray:
    """The fixed random order in which a source is evaluated and shown: [N] int."""
    return np.random.default_rng(0).permutation(len(source))


@dataclasses.dataclass(frozen=True)
class Padded:
    """The centres of a source's images in a given order, filled up to a length with the first one under mask 0."""

    source: Readable
    augment: Augment
    order: np.ndarray
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        asked = int(self.order[index if index < len(self.order) else 0])
        found = self.source.attempt(asked, self.augment.centered)
        real = index < len(self.order) and found is not None
        return (found or self.source.read(asked, self.augment.centered)) | {"mask": np.float32(real)}
