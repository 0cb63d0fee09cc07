"""Writes the numbers and pictures of a run: event files, `metrics.jsonl`, PNGs, and to the services of `trackers`.

And where and with what the run was trained, `starts.json`: one entry for each time that it was begun or went on.
"""

import json
import math
import os
import platform
import time
from pathlib import Path

import flax
import jax
import jaxlib
import numpy as np
import optax
import orbax.checkpoint
from ml_collections import ConfigDict
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from taming_jax import images, trackers
from taming_jax.console import say
from taming_jax.metrics import Metrics
from taming_jax.sampling import animation
from taming_jax.versions import versions_of

LOG, STARTS = "metrics.jsonl", "starts.json"
MAKERS = (jax, jaxlib, flax, optax, orbax.checkpoint, np)  # whose versions matter


class Writer:
    """TensorBoard events, `metrics.jsonl` and the newest pictures in a run directory, written by process 0 alone.

    config: that of the run, whose `tracker` says who is told, see `trackers`; without one, TensorBoard alone. step:
    where the run goes on; what it had logged after that will be logged again, and is dropped. events: False for no
    events of TensorBoard, as of what is evaluated again. Raises UserError as `trackers.Service` does. Events are
    written in place, not by tensorboardX's thread: when that dies, of a full disk say, whoever logs waits for it for
    ever.
    """

    def __init__(self, workdir: Path, config: ConfigDict | None = None, step: int | None = None, events: bool = True):
        self.workdir, self.active, self.services, self.events = workdir, jax.process_index() == 0, [], None
        self.log = workdir / LOG
        if self.active:
            told = {"tensorboard": ""} if config is None else trackers.parse(config.tracker)
            events = events and "tensorboard" in told
            services = {kind: project for kind, project in told.items() if kind in trackers.SERVICES}
            self.services = [trackers.Service(*service, workdir, config) for service in services.items()]
            workdir.mkdir(parents=True, exist_ok=True)
            if events:
                (workdir / "events").mkdir(exist_ok=True)
                self.events = EventsWriter(str(workdir / "events" / "events"), f".{os.getpid()}")
            forget_after(self.log, math.inf if step is None else step)
            if step is not None:
                self.event(step + 1, session_log=SessionLog(status=SessionLog.START))  # TensorBoard drops the rest
            self.logged = {key_of(record) for record in read_records(self.log)}

    def event(self, step: int, **content: Summary | SessionLog) -> None:
        """Writes an event of TensorBoard's."""
        if self.events is not None:
            self.events.write_event(Event(wall_time=time.time(), step=step, **content))
            self.events.flush()

    def scalars(self, step: int, split: str, values: dict[str, float]) -> None:
        """Numbers by name, in place of those of that step and split if there are some.

        Those that are not finite, as of a window whose steps were all skipped, are left out.
        """
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        if self.active:
            scalars = [Summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in values.items()]
            self.event(step, summary=Summary(value=scalars))
            record = {"step": step, "split": split, **values}
            if key_of(record) in self.logged:
                lines = {key_of(old): line for line, old in read_lines(self.log) if old is not None}
                lines[key_of(record)] = json.dumps(record).encode()
                write_lines(self.log, list(lines.values()))
            else:
                with open(self.log, "a") as file:
                    print(json.dumps(record), file=file)
        for service in self.services:
            service.scalars(step, {f"{split}/{name}": value for name, value in values.items()})

    def code_histogram(self, step: int, collected: Metrics) -> None:
        """How often each code was used: x is the code, y its count."""
        if self.active:
            counts = np.asarray(jax.device_get(collected.by_name["codes"].counts))
            edges = np.arange(len(counts) + 1) - 0.5
            histogram = summary.histogram_raw(
                "codes",
                min=0,
                max=len(counts) - 1,
                num=counts.sum(),
                sum=counts @ np.arange(len(counts)),
                sum_squares=counts @ np.arange(len(counts)) ** 2,
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
            )
            self.event(step, summary=histogram)

    def picture(self, step: int, name: str, shown: images.Sheet | animation.Animation) -> None:
        """A sheet as a PNG, an animation as a GIF."""
        if isinstance(shown, images.Sheet):
            self.sheet(step, name, shown)
        else:
            self.animation(step, name, shown)

    def sheet(self, step: int, name: str, sheet: images.Sheet) -> None:
        if self.active:
            drawn = images.draw_sheet(sheet)
            self.event(step, summary=summary.image(name, np.asarray(drawn), dataformats="HWC"))
            file = self.workdir / f"{name}.png"
            images.save_png(drawn, file, step=step)
            self.tell(step, name, file)

    def animation(self, step: int, name: str, painted: animation.Animation) -> None:
        if self.active:
            file = self.workdir / f"{name}.gif"
            gif = animation.to_gif(animation.draw_frames(painted))
            images.write_whole(file, lambda part: part.write_bytes(gif))
            height, width, _ = painted.image.shape
            picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
            self.event(step, summary=Summary(value=[Summary.Value(tag=name, image=picture)]))
            self.tell(step, name, file)

    def tell(self, step: int, name: str, file: Path) -> None:
        """Tells people and services of a picture."""
        say(f"{name} at step {step}: {file}")
        for service in self.services:
            service.picture(step, name, file)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        if self.events is not None:
            self.events.close()
        for service in self.services:
            service.finish()


def note_start(workdir: Path, step: int) -> None:
    """Adds an entry to `starts.json`: from which step, when, on which devices, and with which versions.

    A file that is damaged goes to the end of one beside it.
    """
    file, versions = workdir / STARTS, dict(python=platform.python_version()) | versions_of(*MAKERS)
    devices = dict(count=jax.device_count(), kind=jax.devices()[0].device_kind, processes=jax.process_count())
    entry = dict(step=step, time=time.time(), host=platform.node(), devices=devices, versions=versions)
    entries, whole = read_starts(workdir)
    if not whole:
        aside = file.with_name(f"{file.name}.damaged")
        with open(aside, "ab") as out:
            out.write(file.read_bytes() + b"\n")
        say(f"{file} is damaged; as it was, it is in {aside} now")
    content = json.dumps([*entries, entry], indent=1)
    images.write_whole(file, lambda part: part.write_text(content + "\n"))


def read_starts(workdir: Path) -> tuple[list[dict], bool]:
    """The entries of `starts.json` without those that are damaged, and whether none is; ([], True) for no file."""
    try:
        found = json.loads((workdir / STARTS).read_bytes())
    except FileNotFoundError:
        return [], True
    except (ValueError, RecursionError):
        return [], False
    if not isinstance(found, list):
        return [], False
    kinds = {"step": int, "time": float, "host": str, "devices": dict, "versions": dict}
    kept = [e for e in found if isinstance(e, dict) and all(isinstance(e.get(n), kind) for n, kind in kinds.items())]
    return kept, len(kept) == len(found)


def read_records(file: Path) -> list[dict]:
    """What a run has logged, in order, without lines that are no records."""
    return [record for _, record in read_lines(file) if record is not None]


def read_lines(file: Path) -> list[tuple[bytes, dict | None]]:
    """The lines of a log, each with its record, None where it is none; a last line that was cut off is left out."""
    *lines, last = file.read_bytes().split(b"\n") if file.exists() else [b""]
    found = [(line, parse(line)) for line in lines if line.strip()]
    return found + [(last, record) for record in [parse(last)] if record is not None]


def parse(line: bytes) -> dict | None:
    """The record that a line of a log holds, None for another line."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("split"), str | None):
        return None
    return record if type(record.get("step")) is int else None


def key_of(record: dict) -> tuple[int, str | None]:
    """What a log has one record of: a step and a split."""
    return record["step"], record.get("split")


def forget_after(file: Path, step: float) -> None:
    """Drops what was logged after a step: a run that goes on from there logs it again.

    Lines that are no records, of a damaged disk say, go to a file beside it.
    """
    lines = read_lines(file)
    kept = {key_of(record): line for line, record in lines if record is not None and record["step"] <= step}
    if odd := [line for line, record in lines if record is None]:
        aside = file.with_name(f"{file.name}.damaged")
        with open(aside, "ab") as out:
            out.write(b"".join(line + b"\n" for line in odd))
        say(f"{file}: lines that are no records, {len(odd)}, are in {aside} now")
    if len(kept) < len(lines) or (file.exists() and not file.read_bytes().endswith(b"\n")):
        write_lines(file, list(kept.values()))


def write_lines(file: Path, lines: list[bytes]) -> None:
    """Writes a log anew, as a whole."""
    content = b"".join(line + b"\n" for line in lines)
    images.write_whole(file, lambda part: part.write_bytes(content))
