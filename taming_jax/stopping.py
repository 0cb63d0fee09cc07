"""Signals that ask a command to stop: SIGTERM of a scheduler, Ctrl-C of a person."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from taming_jax.errors import write_line

PREEMPTED = 75  # sysexits.h's "try again": the launcher starts the job again
INTERRUPTED = 130
COMPILER = "compiler"  # the thread that compiles
CODES = {signal.SIGTERM: PREEMPTED, signal.SIGINT: INTERRUPTED}


class Interrupted(Exception):
    """A signal came while something was awaited that can be begun again."""


class StopSignal:
    """Which signal asked the run to stop, if one did. Nothing can be lost until the first `nothing_to_lose` ends."""

    def __init__(self):
        self.received, self._safe = None, _alone()

    @contextmanager
    def nothing_to_lose(self) -> Iterator[None]:
        """Within, a signal ends the process at once, with the exit code that lets a launcher start it again.

        Several processes end together, after a step; alone, none of them does.
        """
        self._safe = _alone()
        if self._safe and self.received is not None:
            self._end("nothing is lost")
        try:
            yield
        finally:
            self._safe = False

    def heard(self, number: int) -> None:
        """Called from a thread, so that the terminal answers at once, whatever the main thread computes."""
        if number not in CODES:
            return
        if self.received is not None:
            if number == signal.SIGINT:
                self._end("without a checkpoint of the last steps")
            return
        self.received = number
        if self._safe:
            self._end("nothing is lost")
        tell("stopping, with a checkpoint; Ctrl-C once more stops at once, without one")

    def _end(self, how: str) -> None:
        tell(f"stopped at once, {how}; the same command goes on")
        os._exit(CODES[self.received])


def tell(message: str) -> None:
    """Prints a line, if the terminal takes it: a signal is answered in any case."""
    with suppress(OSError, ValueError):
        write_line(message)


def _alone() -> bool:
    import jax  # commands hear signals while this is imported

    return jax.process_count() == 1


@contextmanager
def listen() -> Iterator[StopSignal]:
    """Within, the first Ctrl-C or SIGTERM is only noted; a second Ctrl-C ends the process.

    Python runs its handlers between two instructions of the main thread, which may compile for minutes. The number of
    a signal also goes into a pipe, from C, and a thread waits there. With several processes, jax itself catches SIGTERM
    and tells the others. In a notebook or at Python's prompt, Ctrl-C is a KeyboardInterrupt as everywhere there: the
    session goes on.
    """
    stop = StopSignal()
    interactive = hasattr(sys, "ps1")
    caught = [*([] if interactive else [signal.SIGINT]), *([signal.SIGTERM] if _alone() else [])]
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {number: signal.signal(number, lambda *_: None) for number in caught}
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def wait() -> None:
        while numbers := os.read(read, 1):
            if numbers[0] in caught:  # the pipe gets those of other handlers, too
                stop.heard(numbers[0])
        os.close(read)

    thread = threading.Thread(target=wait, name="signals", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(write)  # the thread reads the end, and ends


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Within, a command that exits while the compiler is at work ends at once; Python would take it down in C++."""
    try:
        yield
    except SystemExit as e:
        if all(thread.name != COMPILER for thread in threading.enumerate()):
            raise
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(e.code if isinstance(e.code, int) else 1)


def end_at_once() -> None:
    """From now on, while imports take seconds, a signal ends the process, with the code that lets it be begun again."""

    def end(number: int, _) -> None:
        tell("stopped; the same command begins again, or goes on")
        os._exit(CODES[number])

    for number in CODES:
        signal.signal(number, end)
