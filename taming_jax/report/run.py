"""What a run directory tells of itself, or a folder of samples."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from taming_jax import checkpoint, completion, gallery, optim, values
from taming_jax.errors import UserError, printable, reason
from taming_jax.quality import record as evaluations
from taming_jax.report.events import Events, scan
from taming_jax.writer import LOG, STARTS, read_records, read_starts

RATES = ("steps_per_second", "seconds")
OF_A_RUN = (LOG, "checkpoints", "events", evaluations.FILE, gallery.RECORD)  # besides what a published run has


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, a published run, or a folder of samples.

    records: of its log. starts: see `writer.note_start`. config, step: of its newest checkpoint that can be read, None
    where there is none. made_by: what made the samples of a folder of samples, else None. trouble: what could not be
    read, and why; or ''.
    """

    folder: Path
    records: list[dict]
    starts: list[dict]
    evaluations: list[dict]
    config: ConfigDict | None
    step: int | None
    trouble: str
    events: Events
    made_by: dict | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name or "root"

    def curves(self) -> dict[tuple[str, str], list[tuple[int, float]]]:
        """Numbers by split and name: (step, value) by rising step. Of a step that was logged twice, the later."""
        found: dict[tuple[str, str], dict[int, float]] = {}
        for record in self.records:
            step, split = record["step"], record.get("split")
            if split is None or not 0 <= step < 1 << 53:
                continue
            for name, value in record.items():
                if is_figure(name, value):
                    found.setdefault((split, name), {})[step] = float(value)
        return {key: sorted(points.items()) for key, points in found.items()}

    def last(self, split: str = "validation") -> dict[str, float]:
        """The numbers of the last record of a split."""
        of_split = [record for record in self.records if record.get("split") == split]
        return {n: v for n, v in of_split[-1].items() if is_figure(n, v)} if of_split else {}

    def trained(self) -> list[dict]:
        """The records of training that say how long its steps took."""
        train = [record for record in self.records if record.get("split") == "train"]
        return [record for record in train if all(is_figure(name, record.get(name)) for name in RATES)]


def is_figure(name: str, value: object) -> bool:
    """Whether a field of a record is a number to show."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return name not in ("step", "split") and number and abs(value) < values.FLOAT32  # which NaN is not


def find(folder: Path) -> list[Path]:
    """A folder itself, if it can be reported, else those right below it that can.

    Raises UserError where there is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist" if not folder.exists() else f"{folder} is a file; name a folder")
    if can_be_reported(folder):
        return [folder]
    if found := [below for below in sorted(folder.iterdir()) if below.is_dir() and can_be_reported(below)]:
        return found
    raise UserError(f"{folder} is no run directory, holds none, and no samples: it has none of {', '.join(OF_A_RUN)}")


def can_be_reported(folder: Path) -> bool:
    """Whether a folder is a run directory, a published run or one of samples, damaged or not."""
    try:
        return any(os.path.exists(folder / name) for name in OF_A_RUN) or checkpoint.is_run(folder)
    except UserError:  # of a published run, which its page says
        return True
    except OSError:  # nobody may look into it
        return False


def read(folder: Path) -> Run:
    """Reads what a folder tells; what is damaged in it is left out."""
    troubles = []

    def attempt(what: str, call: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return call()
        except UserError as e:
            troubles.append(str(e))
        except OSError as e:
            troubles.append(f"{what} cannot be read: {reason(e)}")
        return otherwise

    config, step, made_by = None, None, None
    if os.path.exists(folder / gallery.RECORD):
        made_by = attempt(gallery.RECORD, lambda: gallery.read_record(folder / gallery.RECORD), None)
    else:
        config, step = attempt("its config", lambda: newest_config(folder), (None, None))
    records = attempt(LOG, lambda: read_records(folder / LOG), [])
    starts, whole = attempt(STARTS, lambda: read_starts(folder), ([], True))
    troubles += [] if whole else [f"{STARTS} is damaged"]
    judged, events = evaluations.read(folder), scan(folder / "events")
    return Run(folder, records, starts, judged, config, step, "; ".join(troubles), events, made_by)


def newest_config(folder: Path) -> tuple[ConfigDict, int]:
    """As `completion.load_config`. Raises UserError where a run has none."""
    if not checkpoint.steps(folder):
        raise UserError("the run has no checkpoint yet")
    return completion.load_config(folder)


def learning_rates(config: ConfigDict, count: int = 200) -> list[tuple[int, float]]:
    """The learning rate by step, which no run logs, as a config says it."""
    steps = sorted({round(i * (config.steps - 1) / (count - 1)) for i in range(count)})
    rates = jax.vmap(optim.learning_rate(config.optim, config.steps))(jnp.array(steps))
    return list(zip([step + 1 for step in steps], rates.tolist(), strict=True))


def devices(folder: Path, step: int) -> str:
    """'1 device (data 1, fsdp 1, tensor 1)': those whose mesh a checkpoint names; '' where it names none."""
    try:
        stored = json.loads((folder / "checkpoints" / str(step) / "state" / "_sharding").read_bytes())
        meshes = [json.loads(written) for written in stored.values()]
        (sizes,) = {tuple(zip(m["axis_names"], m["shape"], strict=True)) for m in meshes if "axis_names" in m}
        count = 1
        for _, size in sizes:
            count *= int(size)
    except Exception:  # it is Orbax's own file, of whatever version
        return ""
    named = ", ".join(f"{name} {size}" for name, size in sizes)
    return f"{count} device{'s' * (count != 1)} ({named})"


def parameters(folder: Path) -> str:
    """How many parameters a run has, as `parameters.txt` says; '' where it does not."""
    try:
        last = (folder / "parameters.txt").read_text(errors="replace").rstrip().rpartition("\n")[2]
    except OSError:
        return ""
    return printable(last.removeprefix("Total: ").partition(" ")[0]) if last.startswith("Total: ") else ""


def flat_rows(tree: Any, most: int = 400) -> list[tuple[str, str]]:
    """The leaves of a JSON value with their full names, the first `most`; of any depth."""
    rows, left = [], [("", tree)]
    while left and len(rows) < most:
        name, value = left.pop()
        if isinstance(value, dict) and value:
            left += [(f"{name}.{key}" if name else str(key), below) for key, below in reversed(value.items())]
        else:
            rows.append((name[-200:], value if isinstance(value, str) else json.dumps(value)[:1000]))
    return rows
