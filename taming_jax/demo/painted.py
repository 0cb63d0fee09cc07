"""Paints what was asked for, bit by bit, and saves it as `taming sample` would."""

import hashlib
import inspect
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taming_jax import checkpoint, completion, images, places, request
from taming_jax.conditions import ARGUMENTS
from taming_jax.console import say
from taming_jax.errors import UserError
from taming_jax.gallery import Gallery, check_out, describe
from taming_jax.generator import Generator
from taming_jax.hub import address
from taming_jax.painting import Plan
from taming_jax.sampling.animation import PAPER

FILES = ("image", "keep", "condition", "layout")  # arguments that may name files
SHOWING = 0.2  # the share of the time that decoding pictures of what is painted so far may take


def find_runs(folder: Path) -> dict[str, Path]:
    """The runs of a transformer that a page offers, by their names: a run directory itself, or those in a folder.

    Raises UserError where there is none.
    """
    if address.is_name(folder):
        return {str(folder): folder}
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist")
    if checkpoint.is_run(folder):
        return {folder.name or str(folder): folder}
    found = {}
    for run in sorted(path for path in folder.iterdir() if path.is_dir()):
        try:
            if not checkpoint.is_run(run):
                continue
            task = completion.load_config(run)[0].task
        except UserError as e:
            say(f"{run} is passed over: {e}")
            continue
        if task == "transformer":
            found[run.name] = run
    if not found:
        raise UserError(f"{folder} holds no run of a transformer: name a run directory, or a folder of some")
    return found


def make_plan(generator: Generator, asked: Mapping[str, Any]) -> Plan:
    """`Generator.plan` for arguments of `Generator.sample`."""
    names = inspect.signature(Generator.plan).parameters.keys() | generator.config.sample.keys()
    return generator.plan(**{name: value for name, value in asked.items() if name in names})


def make_gallery(generator: Generator, workdir: Path, asked: Mapping[str, Any], plan: Plan, folder: Path) -> Gallery:
    """What was asked for as a gallery in `folder`, by a name of its own: run, seed, a hash of the rest."""
    conditions = {name: asked[name] for name in ARGUMENTS if name in asked}
    rows = request.make_rows(
        generator.stage, generator.config, plan.size, conditions, None, asked.get("num_conditions", 8), plan.kept
    )
    usual = {name: p.default for name, p in inspect.signature(Generator.sample).parameters.items()}
    flags = usual | dict.fromkeys(ARGUMENTS) | {"workdir": str(workdir)} | dict(asked)
    made_by = describe(generator, plan, flags)
    known = json.dumps({name: value for name, value in made_by.items() if name not in FILES})
    name = f"{workdir.name}-seed{plan.seed}-{hashlib.blake2b(known.encode(), digest_size=4).hexdigest()}"
    return Gallery(folder / name, made_by, generator.stage.cond, rows, asked["num_samples"])


def paint(generator: Generator, gallery: Gallery, plan: Plan) -> Iterator[tuple[np.ndarray, int]]:
    """Paints a gallery's images: uint8 [N,H,W,3] so far, and how many of all codes are painted, again and again.

    The last are whole. Nothing is written.
    """
    columns, count = gallery.columns, len(gallery.rows["label"])
    rows = {name: np.repeat(value, columns, 0) for name, value in gallery.rows.items()}
    rows["index"] = np.tile(np.arange(columns, dtype=np.int32), count)
    size = plan.size if plan.kept is None else plan.kept.size
    pictures, took, since = np.full((count * columns, *size, 3), PAPER, np.uint8), 0.0, time.monotonic()
    shown = False
    for part in generator.grow(rows, plan):
        began = time.monotonic()
        if not part.whole and took > SHOWING * (began - since):
            continue
        decoded = part.images()
        pictures[part.first : part.first + len(decoded)] = decoded
        since = time.monotonic()
        took, shown = since - began if shown else 0.0, True  # the first time, a program is compiled
        yield pictures.copy(), part.done


def save(
    generator: Generator, workdir: Path, asked: Mapping[str, Any], painted: np.ndarray, folder: Path
) -> tuple[Gallery, dict[str, Any]]:
    """Writes painted images uint8 [N,H,W,3] as a gallery in `folder`, with the files that were given.

    -> (the gallery, what was asked for with those files in place of the first ones): `command` with its folder as `out`
    finds that all is painted. Raises UserError where it cannot be written.
    """
    plan = make_plan(generator, asked)
    out = make_gallery(generator, workdir, asked, plan, folder).out
    moved = {name: move(value, out / "given") for name, value in asked.items() if name in FILES}
    with places.claimed(out):
        for name, value in moved.items():
            for old, new in zip(*(x if isinstance(x, list) else [x] for x in (asked[name], value)), strict=True):
                if old != new:
                    Path(new).parent.mkdir(exist_ok=True)
                    images.write_whole(Path(new), lambda part, old=old: shutil.copyfile(old, part))
        asked = {**asked, **moved}
        gallery = make_gallery(generator, workdir, asked, make_plan(generator, asked), folder)
        check_out(out, gallery.made_by)
        for number, image in enumerate(painted):
            gallery.save(number, image)
        gallery.draw(plan, held_out=not any(name in asked for name in ARGUMENTS))
    return gallery, asked


def move(value: Any, folder: Path) -> Any:
    """A file's path, or a list of one, as it is in a folder; other words as they are."""
    if isinstance(value, list):
        return [move(part, folder) for part in value]
    return str(folder / Path(value).name) if value not in request.SIDES else value
