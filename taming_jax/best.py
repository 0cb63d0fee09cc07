"""The best checkpoint of a run by one of its numbers: `best/` in the run directory, a run directory of its own.

It holds the nets that are sampled with, without optimizers, and the records of its evaluation. Whatever takes a run
directory takes it: `sample --workdir=runs/mine/best`, or a transformer's `first_stage.workdir`.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from taming_jax import checkpoint, images
from taming_jax.console import say
from taming_jax.errors import not_among
from taming_jax.writer import LOG, read_records

FOLDER = "best"
LARGER = re.compile(r"r?(psnr|ssim|precision|recall|inception_score)(_.*)?|code_.*|pixel_accuracy")  # is better


def check(name: str, numbers: Iterable[str]) -> None:
    """Raises UserError for a number that a run's evaluations do not give."""
    if name not in (known := list(numbers)):
        raise not_among("checkpoint_best", name, known)


def is_better(name: str, a: float, b: float) -> bool:
    """Whether `a` is a better value of a number than `b`."""
    return a > b if LARGER.fullmatch(name.rpartition("/")[2]) else a < b


def values(workdir: Path, name: str) -> dict[int, float]:
    """A number by step, of those that have both an evaluation and a checkpoint. name: 'lpips' or 'samples/fid'."""
    split, _, number = name.rpartition("/")
    saved = checkpoint.steps(workdir)
    records = [r for r in read_records(workdir / LOG) if r.get("split") == (split or "validation")]
    return {r["step"]: r[number] for r in records if r["step"] in saved and isinstance(r.get(number), float)}


def find_better(workdir: Path, name: str) -> int | None:
    """The step of the best checkpoint, if it is better than what `best/` holds; None if not.

    Numbers of an evaluator that was told otherwise then are not compared: those of 512 samples and of 2048, say.
    """
    found, held = values(workdir, name), values(workdir / FOLDER, name)
    if "/" in name and checkpoint.steps(workdir):
        judge = name.rpartition("/")[0]

        def told(folder: Path, step: int) -> dict | None:
            try:
                return checkpoint.read_config(folder, step)[0].get("evals", {}).get(judge)
            except checkpoint.Damaged:
                return None

        now = told(workdir, checkpoint.steps(workdir)[-1])
        found = {step: value for step, value in found.items() if told(workdir, step) == now}
        held = {step: value for step, value in held.items() if told(workdir / FOLDER, step) == now}
    if not found:
        return None
    step = next(s for s in found if not any(is_better(name, other, found[s]) for other in found.values()))
    return None if any(not is_better(name, found[step], other) for other in held.values()) else step


def keep(workdir: Path, name: str) -> None:
    """Copies the best checkpoint to `best/`, if it is better than what is there. All processes call it."""
    step = find_better(workdir, name) if jax.process_index() == 0 else None
    if jax.process_count() > 1:
        told = int(multihost_utils.broadcast_one_to_all(np.array(-1 if step is None else step)))
        step = None if told < 0 else told
    if step is None:
        return
    place = workdir / FOLDER
    try:
        checkpoint.copy_nets(workdir, step, place)
    except checkpoint.Damaged as e:
        say(f"it is not kept as the best one: {e}")
        return
    if jax.process_index() == 0:
        records = [r for r in read_records(workdir / LOG) if r["step"] == step and r.get("split") != "train"]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        images.write_whole(place / LOG, lambda part: part.write_text(lines))
        say(f"the best {name} so far, {values(workdir, name)[step]:.4g}, is that of step {step}: {place}")
