"""Reads ahead in other processes, which end with the one that they read for; says which record killed one."""

import gc
import os
import re
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing import connection, parent_process
from multiprocessing.shared_memory import SharedMemory
from typing import TypeVar

import grain
import numpy as np
from absl import flags

from taming_jax.errors import UserError

T = TypeVar("T")

NOTE = 1024  # bytes in which a worker notes what it reads
# In a worker: the notes of all, and where its own begin, and the marks of all records, a byte for each.
_noted: tuple[SharedMemory, int, int] | None = None


def iterate(batches: grain.MapDataset, workers: int, records: int) -> Generator[dict, None, None]:
    """Yields batches in order; reads ahead in `workers` processes, or in a thread. Close the generator.

    records: how many of them workers may `mark`.
    Raises UserError where a worker was killed, with the name of the record that it was reading.
    """
    batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=16))
    if not workers:
        with closing(iter(batches)) as batches:
            yield from batches
        return
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain has flags of its own, and a notebook parses none
    notes, turn, mistake = SharedMemory(create=True, size=workers * NOTE + records), 0, None
    try:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), partial(begin, notes.name))
        with closing(iter(batches)) as batches:
            batch = own(unsignalled(partial(next, batches, None)))
            while batch is not None:
                yield batch
                turn = (turn + 1) % workers  # they yield in turn
                batch = own(next(batches, None))
    except UserError as e:
        mistake = e.with_traceback(None)
    except RuntimeError as e:
        if (ended := re.search(r"terminated unexpectedly with exit code (-?\d+)", str(e))) is None:
            raise
        reading = bytes(notes.buf[turn * NOTE : (turn + 1) * NOTE]).split(b"\0")[0].decode(errors="ignore")
        mistake = UserError(
            f"{reading or 'data'}: the process that read it ended with code {ended[1]}"
            + (", most likely killed for want of memory" if ended[1] == str(-signal.SIGKILL) else "")
            + f"; lower data.workers={workers}"
            + (", or take that file away" if reading else "")
        )
    finally:
        notes.close()
        notes.unlink()
    if mistake is not None:
        # What is read ahead lies in shared memory up to its last reference, which else is the error's traceback: at
        # the end, Python would complain of it.
        batches = None
        gc.collect()
        raise mistake


def own(batch: dict | None) -> dict | None:
    """Copies a batch out of the memory that workers share.

    An error's traceback keeps the last batches alive up to the end, when Python complains of such memory.
    """
    return None if batch is None else {name: np.array(value) for name, value in batch.items()}


def unsignalled(start: Callable[[], T]) -> T:
    """Returns `start()`. The processes that it starts are deaf to Ctrl-C and SIGTERM from their first moment.

    Such a signal reaches them too, but the training process still needs them, and ends them once it has saved.
    """
    with ThreadPoolExecutor(1) as pool:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            started = pool.submit(start)  # its thread inherits what is blocked, as do the thread's processes
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return started.result()


def begin(notes: str, number: int, workers: int) -> None:
    """Prepares a worker process, the one with this number; `notes` names the shared memory of all notes."""
    global _noted
    threading.Thread(target=end_with_parent, daemon=True).start()
    _noted = SharedMemory(notes), number * NOTE, workers * NOTE


def end_with_parent() -> None:
    """Waits for the end of the process that started this one, however it comes, and ends this one."""
    connection.wait([parent_process().sentinel])
    os._exit(1)


@contextmanager
def noting(what: str) -> Iterator[None]:
    """Within, a worker has noted what it reads, where others see it even if the worker is killed."""
    if _noted is None:
        yield
        return
    memory, start, _ = _noted
    memory.buf[start : start + NOTE] = what.encode(errors="replace")[: NOTE - 1].ljust(NOTE, b"\0")
    try:
        yield
    finally:
        memory.buf[start] = 0


def mark(record: int) -> tuple[bool, int] | None:
    """Marks a record for all workers -> (whether it is the first to do so, the number of those marked); else None."""
    if _noted is None:
        return None
    memory, _, marks = _noted
    first, memory.buf[marks + record] = not memory.buf[marks + record], 1
    return first, bytes(memory.buf[marks:]).count(1)
