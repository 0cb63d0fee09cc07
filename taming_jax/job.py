"""The processes of a job, when one of them dies: the others end soon, with one line."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from taming_jax.stopping import PREEMPTED

HEARTBEAT = 30  # seconds without a sign of life after which a process is taken for dead; jax's own default is 100
LOST = "another process of the job has died, and this one ends; the same commands go on from the last checkpoint"
# What the communication between processes says when one is gone.
BROKEN = re.compile(r"Gloo|UNAVAILABLE|heartbeat|coordination service|Connection (closed|reset)|DEADLINE_EXCEEDED")

# jax's coordination ends the process from C++, with pages of its state and of the stack. A second process reads what
# C++ writes to the terminal, and passes on all but that.
FILTER = f"""
import re, sys
noise = re.compile(rb"coordination_service|preemption_sync_manager|GRPC error|grpc_|coordination service")
dying = False
for line in sys.stdin.buffer:
    if b"Terminating process because the JAX distributed service" in line and not dying:
        dying = True
        sys.stderr.write("error: {LOST}\\n")
        sys.stderr.flush()
    if not dying and not noise.search(line):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""


def shorten_deaths() -> None:
    """Makes one line of what jax's coordination says when it ends this process. Python's own errors are not touched."""
    terminal = os.dup(2)
    reader = subprocess.Popen(
        [sys.executable, "-S", "-c", FILTER], stdin=subprocess.PIPE, stderr=terminal, start_new_session=True
    )
    sys.stderr.flush()
    os.dup2(reader.stdin.fileno(), 2)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, errors="backslashreplace")


@contextmanager
def ending_with_others() -> Iterator[None]:
    """Within, the death of another process ends this one at once, instead of minutes after its stack trace."""
    try:
        yield
    except (RuntimeError, ValueError) as e:  # jax raises both
        if jax.process_count() == 1 or not BROKEN.search(str(e)):
            raise
        print(f"error: {LOST}", file=sys.stderr, flush=True)
        os._exit(PREEMPTED)  # a plain exit would wait for the dead
