"""What people read on the terminal."""

import io
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import jax
import tqdm.auto
import tqdm.std

from taming_jax.errors import write_line

MINUTE = 60
# On the progress line; files hold all.
SHOWN = (
    "loss",
    "l1_loss",
    "l2_loss",
    "bce_loss",
    "p_loss",
    "disc_loss",
    "d_weight",
    "code_use",
)


class Lasting:
    """A stream to the terminal; when nobody reads it any more, what is written to it is dropped.

    Ctrl-C in `taming train ... | tee log` ends tee first. The run still has a checkpoint to save.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            self.drop()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except BrokenPipeError:
            self.drop()

    def drop(self) -> None:
        """From now on, the stream leads nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def say(message: str) -> None:
    """Prints a line, from process 0 alone; what the terminal cannot write is replaced."""
    if jax.process_index() == 0:
        write_line(message.encode("utf-8", "replace").decode())


def duration(seconds: float) -> str:
    """75 -> '1:15'; 3675 -> '1:01:15'."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


def bar(iterable: Iterable | None = None, desc: str = "", **options: Any) -> tqdm.std.tqdm:
    """tqdm's bar on a terminal and in a notebook; elsewhere a line a minute. options: of tqdm."""
    return bar_class()(iterable, desc, **dict(mininterval=1) | options)


def bar_class() -> type[tqdm.std.tqdm]:
    """The class of `bar`, for libraries that show bars of their own."""
    in_notebook = tqdm.auto.tqdm.display is not tqdm.std.tqdm.display
    return tqdm.auto.tqdm if in_notebook or sys.stderr.isatty() else Lines


class Lines(tqdm.std.tqdm):
    """tqdm in lines, for logs: one a minute, and none of what takes less."""

    def __init__(self, iterable: Iterable | None = None, desc: str = "", **options: Any):
        super().__init__(iterable, desc, **options | dict(mininterval=MINUTE, maxinterval=MINUTE, delay=MINUTE))
        left = ", {remaining} left" if self.total else ""
        self.desc, self.bar_format = desc, "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {elapsed} so far" + left

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        self.fp.write(f"{self}\n")
        self.fp.flush()
        return True

    def close(self) -> None:
        self.fp = io.StringIO()  # a command says itself that it is done
        super().close()


class Progress:
    """The line that people read while they wait: step, rate, time left, and a few numbers.

    costs: the relative cost of a step from a number of steps on, {0: 1.0, 3000: 2.2}: later losses cost more.
    """

    def __init__(self, step: int, steps: int, batch_size: int, eval_every: int, costs: dict[int, float]):
        self.steps, self.batch_size, self.eval_every, self.costs = steps, batch_size, eval_every, costs
        self.evaluation_seconds, self.told = 0.0, False
        self.restart(step)

    def restart(self, step: int) -> None:
        """Starts the clock again, after something that is not training."""
        self.step, self.time, self.waited = step, time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within, the loop waits for data."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, the loop evaluates, which counts for the time that is left."""
        began = time.monotonic()
        yield
        self.evaluation_seconds, self.told = time.monotonic() - began, False

    def left(self, step: int, rate: float) -> float:
        """Seconds that the steps and the evaluations after `step` take, at a rate in steps per second of now."""
        starts = sorted(self.costs)
        now = max(s for s in starts if s < step or s == starts[0])
        seconds = 0.0
        for start, end in zip(starts, [*starts[1:], self.steps], strict=True):
            seconds += max(0, end - max(start, step)) * self.costs[start] / self.costs[now] / rate
        evaluations = -(-self.steps // self.eval_every) - step // self.eval_every
        return seconds + evaluations * self.evaluation_seconds

    def first(self, step: int, values: dict[str, float]) -> None:
        """Prints a line as soon as there is a step, which may be long before there is a rate."""
        say(f"{self._place(step)}  {duration(time.monotonic() - self.time)} for the first  {self._numbers(values)}")

    def report(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Prints the line for the steps since the last report; returns the rates."""
        seconds = max(time.monotonic() - self.time, 1e-9)
        rate, waited = (step - self.step) / seconds, self.waited / seconds
        speed = f"{rate:.2f} steps/s  {rate * self.batch_size:.0f} images/s"
        speed += f"  {waited:.0%} waiting for data" if waited >= 0.01 else ""
        skipped = f"  {values['skipped']:.0f} skipped" if values.get("skipped") else ""
        left = duration(self.left(step, rate))
        say(f"{self._place(step)}  {speed}  {left} left  {self._numbers(values)}{skipped}")
        if not self.told and step < self.steps:
            more = "" if self.evaluation_seconds else ", evaluations not counted yet"
            phases = f", {len(self.costs)} phases" if len(self.costs) > 1 else ""
            say(f"all {self.steps} steps{phases}: about {left} from here{more}")
            self.told = True
        self.restart(step)
        return {
            "steps_per_second": rate,
            "images_per_second": rate * self.batch_size,
            "seconds": seconds,
            "data_wait": waited,
        }

    def _place(self, step: int) -> str:
        return f"step {step:>{len(str(self.steps))}}/{self.steps}"

    def _numbers(self, values: dict[str, float]) -> str:
        return "  ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
