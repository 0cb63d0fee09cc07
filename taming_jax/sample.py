"""Samples images from a run of the second stage.

    python -m taming_jax.sample --workdir=runs/openmoji_transformer --out=runs/openmoji_samples
    python -m taming_jax.sample --workdir=runs/openmoji_transformer --out=runs/halves --image=photo.png --keep=top
    python -m taming_jax.sample --workdir=runs/openmoji_coordinates_transformer --out=runs/large --size=64x128 \\
        --animate=gif

Writes every image as a file of its own as soon as it is painted, `samples.png` with the first of them, and
`samples.json` with what makes them. The same command goes on where it was stopped.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from taming_jax import cli, images, places, request
from taming_jax.conditions import ARGUMENTS
from taming_jax.console import say
from taming_jax.errors import ArgumentError, UserError
from taming_jax.generator import Generator
from taming_jax.painting import Plan, make_sheet
from taming_jax.sampling import animation
from taming_jax.sampling.painter import METHODS
from taming_jax.sampling.tiling import TILE

SHEET = (16, 8)  # rows and columns at most
ALWAYS = ("classes", "condition", "layout")  # recorded even if the user does not set them
PLAN = (
    "size",
    "seed",
    "image",
    "keep",
    "keep_pixels",
    "method",
    "stride",
    "tile",
    "speculate",
)  # flags of `Generator.plan`


def describe(generator: Generator, plan: Plan) -> dict:
    """Everything that determines the images, except label and index."""
    given = flags.FLAGS
    asked = "seed num_samples data_path image keep size stride tile num_conditions".split()
    asked += [name for name in ARGUMENTS if given[name].value is not None or name in ALWAYS]
    asked += ["speculate"] if given.speculate > 1 else []  # these are other draws
    asked += ["keep_pixels"] if given.image is not None else []
    told = {name: given[name].value for name in asked}
    told["classes"] = told["classes"] and ",".join(told["classes"])
    lists = [given[name].value or [] for name in ARGUMENTS if name != "classes"]
    files = digest([given.image, given.keep, *(part for parts in lists for part in parts)])
    made_by = dict(
        workdir=str(Path(given.workdir)), step=generator.step, first_stage=generator.config.first_stage.workdir
    )
    return made_by | told | plan.sampling._asdict() | {"files": files}


def digest(files: Iterable[str | None]) -> str:
    """A hash of the files' contents; a name that is not a file is hashed itself."""
    hashed = hashlib.blake2b(digest_size=8)
    for file in files:
        found = file is not None and Path(file).is_file()
        hashed.update(Path(file).read_bytes() if found else str(file).encode())
    return hashed.hexdigest()


def check_out(out: Path, record: Path, made_by: dict) -> None:
    """Raises ArgumentError where `out` is a run directory, UserError where it holds samples made with other options."""
    if (out / "checkpoints").exists():
        raise ArgumentError(f"out={out} is a run directory, whose pictures would be written over; name another")
    told = read_record(record) if record.exists() else made_by
    if told != made_by:
        raise UserError(f"{out} holds samples made with other options (see {record}); name another --out")


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
    return (
        {"tile": TILE, "guidance_power": 0.0, "guidance_codes": 0}
        | told
        | ({"classes": classes} if "classes" in told else {})
    )


def animate(generator: Generator, png: Path, plan: Plan, file: Path) -> None:
    """Writes the painting of an image as a GIF or MP4."""
    frames = generator.frames(np.asarray(Image.open(png)), plan)
    if file.suffix == ".gif":
        images.write_whole(file, lambda part: part.write_bytes(animation.to_gif(frames)))
    else:
        images.write_whole(file, lambda part: animation.write_mp4(frames, str(part)))
    say(f"{len(frames)} frames: {file}")


def main() -> None:
    given, out, workdir = flags.FLAGS, cli.required_folder("out"), cli.required_folder("workdir")
    if given.animate == "mp4":
        animation.check_mp4()
    generator = Generator.load(workdir, first_stage=cli.folder("first_stage"))
    stage, config = generator.stage, generator.config
    drawing = {name: given[name].value for name in config.sample}
    plan = generator.plan(**{name: given[name].value for name in PLAN}, **drawing)
    asked = {name: given[name].value for name in ARGUMENTS}
    rows = request.make_rows(stage, config, plan.size, asked, cli.folder("data_path"), given.num_conditions, plan.kept)
    made_by, record = describe(generator, plan), out / "samples.json"
    check_out(out, record, made_by)

    word, names, columns = stage.cond.WORD, stage.cond.names(rows), given.num_samples
    captions = [{word: name} for name in names] or [{}] * len(rows["label"])
    files = [out / f"{word}_{label:03}" / f"{i:05}.png" for label in rows["label"] for i in range(columns)]
    firsts = [file.with_suffix(f".{given.animate}") for file in files[::columns]] if given.animate else []
    archive = out / "samples.npz"
    if all(file.exists() for file in (*files, *firsts, *([archive] if given.npz else []), out / "samples.png")):
        say(f"these samples are already painted: {out / 'samples.png'}")
        return
    with places.claimed(out):
        check_out(out, record, made_by)  # another command may have had the folder until now
        missing = np.flatnonzero([not file.exists() for file in files])
        if len(missing):
            todo = {name: value[missing // columns] for name, value in rows.items()}
            todo["index"] = np.int32(missing % columns)
            batches = generator.paint(todo, plan, given.batch_size)
            for number, image in zip(missing, (image for batch in batches for image in batch), strict=True):
                files[number].parent.mkdir(parents=True, exist_ok=True)
                if not record.exists():
                    images.write_whole(record, lambda part: part.write_text(json.dumps(made_by)))
                row, index = divmod(int(number), columns)
                drawn = captions[row] | dict(label=int(rows["label"][row]), index=index)
                images.save_png(Image.fromarray(image), files[number], **(made_by | drawn))
        for png, file in zip(files[::columns], firsts, strict=bool(firsts)):
            if not file.exists():
                animate(generator, png, plan, file)

        shown, originals = stage.cond.pictures(rows, plan.size) if stage.cond.SHOWS else None, None
        if plan.kept is not None:
            (h, w), count = plan.kept.size, len(rows["label"])
            originals = np.stack([plan.kept.image[:h, :w]] * count)
            shown = np.stack([request.picture_of(plan.kept)] * count) if shown is None else shown[:, :h, :w]
        elif stage.cond.NEEDS_DATA and "image" in rows and not any(asked.values()):
            originals = rows["image"]
        for row, picture in enumerate(shown if shown is not None else []):
            images.save_png(Image.fromarray(images.to_uint8(picture)), files[row * columns].with_name("condition.png"))
        painted = np.array(files).reshape(-1, columns)[: SHEET[0], : SHEET[1]]
        painted = np.stack([[np.asarray(Image.open(file)) for file in row] for row in painted])
        part = {name: value[: SHEET[0]] for name, value in rows.items()}
        beside = (None if x is None else x[: SHEET[0]] for x in (shown, originals))
        images.save_png(
            images.draw_sheet(make_sheet(stage.cond, part, painted, *beside)), out / "samples.png", **made_by
        )
        if given.npz:
            arrays = np.stack([np.asarray(Image.open(file)) for file in files]), np.repeat(rows["label"], columns)
            images.write_npz(archive, *arrays)
        if numbered := images.legend(names[: SHEET[0]], stage.cond.captions(part)):
            say(f"on the sheet, {numbered}")
        say(f"{len(files)} samples for {len(rows['label'])} conditions: {out / 'samples.png'}")


if __name__ == "__main__":
    cli.group("The run, and where images go")
    flags.DEFINE_string("workdir", None, "Run directory of a transformer.")
    flags.DEFINE_string(
        "first_stage", None, "Run directory of its first stage, if that was moved, or one with its codes."
    )
    flags.DEFINE_string("out", None, "Folder for the images, made if needed.")
    flags.DEFINE_bool("npz", False, "Write all images and their labels as samples.npz too (arr_0, arr_1).")
    flags.DEFINE_enum("animate", None, ["gif", "mp4"], "Write how the first image of each condition is painted.")
    cli.group("What is painted")
    for name, text in ARGUMENTS.items():
        flags.DEFINE_list(name, None, text)
    flags.DEFINE_string(
        "data_path", None, "Folder of images with their conditions, in place of the run's validation split."
    )
    flags.DEFINE_integer(
        "num_conditions",
        8,
        "Held-out images whose conditions are taken, where no other flag says which.",
        lower_bound=1,
    )
    flags.DEFINE_integer("num_samples", 8, "Images of each class or condition.", lower_bound=1, upper_bound=1_000_000)
    flags.DEFINE_integer("seed", 0, "The same seed gives the same images.")
    flags.DEFINE_string(
        "size",
        None,
        "Height x width in pixels, larger than in training: 512x1024; default: as in training, or --image's.",
    )
    cli.group("A part of an image that stays")
    flags.DEFINE_string("image", None, "An image of which a part stays; the rest is painted.")
    flags.DEFINE_string("keep", None, "The part that stays: top, bottom, left, right, or a mask that is white there.")
    flags.DEFINE_bool("keep_pixels", True, "That part stays pixel for pixel; else it is decoded with the rest.")
    cli.define_sampling()
    cli.group("Speed and memory")
    flags.DEFINE_integer("batch_size", None, "Images painted at once; default: 16, fewer large ones.", lower_bound=1)
    flags.DEFINE_integer("stride", 1, "Columns of codes that the window of a large image moves at once.")
    flags.DEFINE_enum("method", "cached", METHODS, "For large images; the same codes, 'wavefront' for accelerators.")
    flags.DEFINE_integer(
        "speculate", 1, "Codes that are guessed at once: other draws of the same distribution, in fewer passes; 8, say."
    )
    flags.DEFINE_integer("tile", TILE, "Codes a side decoded at once, for the decoder's memory.", lower_bound=8)
    cli.run(main)
