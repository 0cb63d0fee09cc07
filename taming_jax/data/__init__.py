"""Data: a random-access source, transforms on its records, and batches for this process.

A source is any object with `__len__`; `__getitem__(i) -> {'image': uint8 [H,W,3], 'label': int, ...}`, with features of
`features.FEATURES`; `class_names`; `describe(i)`, which names record i in a message; and, if records have texts,
`texts(kind)`, which yields all of them. `config.data.name` picks the source: 'openmoji/px64', 'folder', or the name of
a TFDS data set.
"""

import dataclasses
import signal
from collections.abc import Callable, Iterator
from typing import TypeVar

import grain
import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from taming_jax.data import folder, scenes, tfds_source
from taming_jax.data.files import UNREADABLE
from taming_jax.data.transforms import Annotator, Augment
from taming_jax.errors import UserError

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
    """A source that replaces an unreadable record by the next one that can be read.

    Each unreadable record is named on the terminal. If there are several, and more than `max_bad_share` of all
    records, reading raises UserError.
    """

    def __init__(self, source, max_bad_share: float):
        self.source, self.max_bad_share = source, max_bad_share
        self.class_names = source.class_names
        self.bad = set()

    def __len__(self) -> int:
        return len(self.source)

    def texts(self, kind: str) -> Iterator[str]:
        """The texts of all records for a feature; raises UserError for one that cannot be read."""
        try:
            yield from self.source.texts(kind)
        except UNREADABLE as e:
            raise UserError(f"data.features: {kind!r} cannot be read: {' '.join(str(e).split())}") from e

    def __repr__(self) -> str:  # grain compares sources by this when it restores
        return f"Readable({self.source!r})"

    def __getitem__(self, index: int) -> dict:
        for i in range(index, index + len(self)):
            i %= len(self)
            if i in self.bad:
                continue
            try:
                return self.source[i]
            except UNREADABLE as e:
                self.bad.add(i)
                reason = (str(e).splitlines() or [type(e).__name__])[0]
                message = f"{self.source.describe(i)} cannot be read ({reason})"
                if len(self.bad) > max(1, self.max_bad_share * len(self)):
                    raise UserError(
                        f"{message}; that makes {len(self.bad)} of {len(self)} images, more than"
                        f" data.max_bad_share={self.max_bad_share:g}: remove the damaged files or raise that share"
                    ) from e
                print(f"{message}: skipped, {len(self.bad)} of {len(self)} so far", flush=True)
        raise UserError("no image of the data set can be read")


def train_batches(
    source, config: ConfigDict, start: int, augment: Callable[[dict, np.random.Generator], dict] | None
) -> grain.DatasetIterator:
    """This process's part of the global batches `start`, `start + 1`, ... without end, in a new order every epoch.

    {'image': uint8 [B/processes,size,size,3], 'label': int32 [B/processes], ...}: the records as `augment` makes them,
    or as they are without it. The sequence of global batches depends on the seed and on `start` alone: neither on the
    number of processes nor of workers. So the number of batches drawn is the whole state of the iterator. Close it: it
    may own processes.
    """
    count = jax.process_count()
    examples = grain.MapDataset.source(source).seed(config.seed).shuffle().repeat(None, reseed_each_epoch=True)
    if augment is not None:
        examples = examples.random_map(augment)
    batches = (
        # Slices come last: before the repetition, shards of unequal size would drift apart; before the map, their
        # random numbers would. Whole batches are sliced: the processes' parts, in turn, are a single process's batch.
        examples.batch(config.batch_size // count, drop_remainder=True)
        .slice(slice(jax.process_index(), None, count))
        .slice(slice(start, None))
    )
    return iterate(batches, config.data.workers)


def iterate(batches: grain.MapDataset, workers: int) -> grain.DatasetIterator:
    """Iterates over batches in order; reads ahead in `workers` processes, or in a thread. Close the iterator."""
    batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=16))
    if workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), ignore_interrupt)
    return iter(batches)


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


def ignore_interrupt(*_) -> None:
    """Leaves Ctrl-C to the training process, which saves before it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def eval_batches(source, config: ConfigDict, augment: Augment) -> grain.MapDataset:
    """This process's part of one pass over a source, in a fixed random order; batches as `train_batches` has them.

    'mask' [B/processes] float32 is 0 in the rows that fill up the last batch.
    """
    count = jax.process_count()
    padded = -(-len(source) // config.batch_size) * config.batch_size
    return (
        grain.MapDataset.source(Padded(source, eval_order(source), padded))
        .map(augment.centered)
        .batch(config.batch_size // count)
        .slice(slice(jax.process_index(), None, count))
    )


def eval_order(source) -> np.ndarray:
    """The fixed random order in which a source is evaluated and shown: [N] int."""
    return np.random.default_rng(0).permutation(len(source))


@dataclasses.dataclass(frozen=True)
class Padded:
    """A source in a given order, filled up to a length with its first record under mask 0."""

    source: Readable
    order: np.ndarray
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        real = index < len(self.order)
        return {**self.source[int(self.order[index if real else 0])], "mask": np.float32(real)}
