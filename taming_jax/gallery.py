"""A folder of painted images: each with what made it, and sheets of the first of them."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from taming_jax import images, request
from taming_jax.conditions import ARGUMENTS, Condition
from taming_jax.errors import ArgumentError, UserError
from taming_jax.generator import Generator
from taming_jax.hub import address
from taming_jax.painting import Plan, make_sheet
from taming_jax.published import COPIES
from taming_jax.sampling.draw import MASKED
from taming_jax.sampling.tiling import TILE

RECORD = "samples.json"  # what made the samples of a folder
SHEET = (16, 8)  # rows and columns at most
ALWAYS = ("classes", "condition", "layout")  # recorded even if the user does not set them


def describe(generator: Generator, plan: Plan, asked: Mapping[str, Any]) -> dict:
    """Everything that determines the images, except label and index.

    asked: the flags of `taming sample` by their names, as their parsers give them.
    """
    names = "seed num_samples data_path image keep size stride tile num_conditions".split()
    names += [name for name in ARGUMENTS if asked[name] is not None or name in ALWAYS]
    names += ["speculate"] if asked["speculate"] > 1 else []  # these are other draws
    names += ["keep_pixels"] if asked["image"] is not None else []
    told = {name: asked[name] for name in names}
    told["classes"] = told["classes"] and ",".join(told["classes"])
    lists = [asked[name] or [] for name in ARGUMENTS if name != "classes"]
    files = digest([asked["image"], asked["keep"], *(part for parts in lists for part in parts)])
    stage = asked.get("first_stage")
    made_by = dict(
        workdir=asked["workdir"] if address.is_address(asked["workdir"]) else str(Path(asked["workdir"])),
        step=generator.step,
        first_stage=stage if stage and address.is_address(stage) else generator.config.first_stage.workdir,
    )
    drawn = plan.sampling._asdict()
    if not generator.stage.masks:
        drawn = {name: value for name, value in drawn.items() if name not in MASKED}
    return without_own_stage(made_by | told | drawn | {"files": files})


def without_own_stage(made_by: dict) -> dict:
    """Without 'first_stage' where it is the run's own copy, in its folder or in what the hub's cache has of it."""
    workdir, stage = made_by.get("workdir"), made_by.get("first_stage")
    if not isinstance(workdir, str) or not isinstance(stage, str):
        return made_by
    folder, copy = os.path.split(os.path.abspath(stage))
    if address.is_hub(workdir):
        cached = "models--" + workdir.removeprefix("hf://").partition("@")[0].replace("/", "--")
        own = cached in Path(folder).parts
    else:
        own = folder == os.path.abspath(address.find(workdir))
    own = own and copy == COPIES["first_stage"]
    return {name: value for name, value in made_by.items() if name != "first_stage" or not own}


def digest(files: Iterable[str | None]) -> str:
    """A hash of the files' contents; a name that is not a file is hashed itself."""
    hashed = hashlib.blake2b(digest_size=8)
    for file in files:
        found = file is not None and Path(file).is_file()
        hashed.update(Path(file).read_bytes() if found else str(file).encode())
    return hashed.hexdigest()


def read_record(record: Path) -> dict:
    """What made the samples of a folder, as `describe` says it; raises UserError where it cannot be read."""
    try:
        told = json.loads(record.read_text())
    except (ValueError, RecursionError) as e:
        raise UserError(f"{record} cannot be read; name another --out") from e
    if not isinstance(told, dict) or not isinstance(told.get("classes"), str | None):
        raise UserError(f"{record} is none of samples; name another --out")
    classes = told.get("classes") and ",".join(word.strip() for word in told["classes"].split(","))
    # Samples from before these were recorded were made with their present defaults.
    defaults = {"tile": TILE, "guidance_power": 0.0, "guidance_codes": 0}
    return without_own_stage(defaults | told | ({"classes": classes} if "classes" in told else {}))


def check_out(out: Path, made_by: dict) -> None:
    """Raises ArgumentError where `out` is a run directory, UserError where it holds samples made with other options."""
    if (out / "checkpoints").exists():
        raise ArgumentError(f"out={out} is a run directory, whose pictures would be written over; name another")
    record = out / RECORD
    if record.exists() and read_record(record) != made_by:
        raise UserError(f"{out} holds samples made with other options (see {record}); name another --out")


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The files of images, `columns` for each condition in turn. Write to it where `out` is claimed.

    made_by: see `describe`. rows: the conditions, see `request.make_rows`.
    """

    out: Path
    made_by: dict
    cond: Condition
    rows: dict[str, np.ndarray]
    columns: int

    @property
    def files(self) -> list[Path]:
        """A file for each image."""
        folders = [self.out / f"{self.cond.WORD}_{label:03}" for label in self.rows["label"]]
        return [folder / f"{i:05}.png" for folder in folders for i in range(self.columns)]

    @property
    def sheet(self) -> Path:
        return self.out / "samples.png"

    def save(self, number: int, image: np.ndarray) -> None:
        """Writes an image uint8 [H,W,3], with what made it as its text; before the first, `samples.json` with that."""
        row, index = divmod(number, self.columns)
        names, record, file = self.cond.names(self.rows), self.out / RECORD, self.files[number]
        file.parent.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            images.write_whole(record, lambda part: part.write_text(json.dumps(self.made_by)))
        drawn = dict(label=int(self.rows["label"][row]), index=index) | ({self.cond.WORD: names[row]} if names else {})
        images.save_png(Image.fromarray(image), file, **(self.made_by | drawn))

    def draw(self, plan: Plan, held_out: bool) -> None:
        """Once all images are there: writes pictures of the conditions, and the sheet.

        held_out: whether the conditions are those of held-out images, which the sheet then shows.
        """
        cond, rows = self.cond, self.rows
        shown, originals = cond.pictures(rows, plan.size) if cond.SHOWS else None, None
        if plan.kept is not None:
            (h, w), count = plan.kept.size, len(rows["label"])
            originals = np.stack([plan.kept.image[:h, :w]] * count)
            shown = np.stack([request.picture_of(plan.kept)] * count) if shown is None else shown[:, :h, :w]
        elif cond.NEEDS_DATA and "image" in rows and held_out:
            originals = rows["image"]
        files = np.array(self.files).reshape(-1, self.columns)
        for (first, *_), picture in zip(files, shown if shown is not None else [], strict=False):
            images.save_png(Image.fromarray(images.to_uint8(picture)), first.with_name("condition.png"))
        painted = files[: SHEET[0], : SHEET[1]]
        painted = np.stack([[np.asarray(Image.open(file)) for file in row] for row in painted])
        part = {name: value[: SHEET[0]] for name, value in rows.items()}
        beside = (None if x is None else x[: SHEET[0]] for x in (shown, originals))
        images.save_png(images.draw_sheet(make_sheet(cond, part, painted, *beside)), self.sheet, **self.made_by)
