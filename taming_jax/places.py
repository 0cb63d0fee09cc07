"""Folders that a command writes into: looked at, made and claimed before anything is computed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from filelock import SoftFileLease, Timeout
from jax.experimental import multihost_utils

from taming_jax.console import say
from taming_jax.errors import ArgumentError, UserError

CLAIM = "claim"  # the file that says who has a folder
LEASE = 60.0  # seconds after which a claim that nobody renews is nobody's, where its process cannot be seen from here
ROOM = 1 << 16  # bytes that are written, to see that the disk takes them


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Within, this job alone writes into a folder, which is made if needed. Process 0 claims it for all processes.

    A file `claim` names host and process and is renewed by a thread, so that claims of processes that were killed are
    seen as such, on this host at once, on others of a shared file system after `LEASE` seconds. Raises UserError, in
    every process, where the folder cannot be made or written, or where another command has it.
    """
    lease = SoftFileLease(folder / CLAIM, lease_duration=LEASE, on_compromise=lambda _: lose(folder))
    error, made = None, not folder.exists()
    if jax.process_index() == 0:
        try:
            prepare(folder)
            acquire(lease, folder)
        except OSError as e:
            error = UserError(f"{folder} cannot be written: {e.strerror or e}")
        except UserError as e:
            error = e
    if jax.process_count() > 1:
        refused = bool(multihost_utils.broadcast_one_to_all(np.array(error is not None)))
        if refused and error is None:
            error = UserError(f"process 0 cannot write to {folder}")
    if error is not None:
        raise error
    try:
        yield
    finally:
        lease.release()
        if made and jax.process_index() == 0 and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # nothing came of it


def check_empty(flag: str, folder: Path) -> None:
    """Raises ArgumentError where the folder that a flag names holds more than a claim."""
    if folder.exists() and (not folder.is_dir() or set(folder.iterdir()) - {folder / CLAIM}):
        raise ArgumentError(f"{flag}={folder} is not empty; name another folder")


def prepare(folder: Path) -> None:
    """Makes a folder and writes a file into it, which it removes. Raises OSError, or UserError for a file there."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"{place} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(ROOM))
        file.flush()


def acquire(lease: SoftFileLease, folder: Path) -> None:
    """Takes the claim; raises UserError where another process has it."""
    try:
        lease.acquire(timeout=0)
        return
    except Timeout:
        holder = read_holder(folder)
    if holder.get("host") != this_host():
        say(f"{folder} is claimed by {words(holder)}: waiting {LEASE:.0f} s for a sign that it lives")
        try:
            lease.acquire(timeout=LEASE + 15)
            return
        except Timeout:
            pass
    raise UserError(f"{folder} is in use by {words(holder)}; wait until it ends, or name another folder")


def read_holder(folder: Path) -> dict[str, str]:
    """Who has claimed a folder, as the claim says: 'host' and 'pid'."""
    try:
        lines = (folder / CLAIM).read_text(errors="replace").splitlines()
    except OSError:  # released in this moment
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def this_host() -> str:
    """What claims that are made here call this host; in containers it is more than its name."""
    with tempfile.TemporaryDirectory() as folder, SoftFileLease(Path(folder) / CLAIM, lease_duration=LEASE):
        return read_holder(Path(folder)).get("host", "")


def lose(folder: Path) -> None:
    """Ends the process where another has taken the folder, as it may if this one was suspended for a while."""
    holder = read_holder(folder)
    if holder.get("pid") == str(os.getpid()):  # the disk could not be asked for a while
        return
    if holder:
        line = f"error: {folder} is in use by {words(holder)} now, since this process was suspended: it ends\n"
        os.write(2, line.encode())
        os._exit(2)
    say(f"careful: {folder / CLAIM} was removed; another command may write there now")


def words(holder: dict[str, str]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?').partition('?')[0]}"
