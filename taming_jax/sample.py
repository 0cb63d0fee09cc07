"""Samples images from a run of the second stage.

    python -m taming_jax.sample --workdir=runs/openmoji_transformer --out=runs/openmoji_samples
    python -m taming_jax.sample --workdir=runs/openmoji_transformer --out=runs/halves --image=photo.png --keep=top
    python -m taming_jax.sample --workdir=runs/openmoji_coordinates_transformer --out=runs/large --size=64x128 \\
        --animate=gif

Writes every image as a file of its own as soon as it is painted, `samples.png` with the first of them, and
`samples.json` with what makes them. The same command goes on where it was stopped.
"""

from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from taming_jax import cli, images, places, request
from taming_jax.conditions import ARGUMENTS
from taming_jax.console import say
from taming_jax.gallery import SHEET, Gallery, check_out, describe
from taming_jax.generator import Generator
from taming_jax.painting import Plan
from taming_jax.sampling import animation
from taming_jax.sampling.painter import METHODS
from taming_jax.sampling.tiling import TILE

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


def animate(generator: Generator, png: Path, plan: Plan, file: Path) -> None:
    """Writes the painting of an image as a GIF or MP4."""
    frames = generator.frames(np.asarray(Image.open(png)), plan)
    if file.suffix == ".gif":
        images.write_whole(file, lambda part: part.write_bytes(animation.to_gif(frames)))
    else:
        images.write_whole(file, lambda part: animation.write_mp4(frames, str(part)))
    say(f"{len(frames)} frames: {file}")


def main() -> None:
    given, out, workdir = flags.FLAGS, cli.required_folder("out"), cli.required_run("workdir")
    if given.animate == "mp4":
        animation.check_mp4()
    generator = Generator.load(workdir, first_stage=cli.run_folder("first_stage"))
    stage, config = generator.stage, generator.config
    drawing = {name: given[name].value for name in config.sample}
    if given.animate:
        generator.check_frames()
    plan = generator.plan(**{name: given[name].value for name in PLAN}, **drawing)
    asked = {name: given[name].value for name in ARGUMENTS}
    rows = request.make_rows(stage, config, plan.size, asked, cli.folder("data_path"), given.num_conditions, plan.kept)
    made_by = describe(generator, plan, {name: given[name].value for name in given})
    gallery = Gallery(out, made_by, stage.cond, rows, given.num_samples)
    check_out(out, made_by)

    files, columns = gallery.files, gallery.columns
    firsts = [file.with_suffix(f".{given.animate}") for file in files[::columns]] if given.animate else []
    archive = out / "samples.npz"
    if all(file.exists() for file in (*files, *firsts, *([archive] if given.npz else []), gallery.sheet)):
        say(f"these samples are already painted: {gallery.sheet}")
        return
    with places.claimed(out):
        check_out(out, made_by)  # another command may have had the folder until now
        missing = np.flatnonzero([not file.exists() for file in files])
        if len(missing):
            todo = {name: value[missing // columns] for name, value in rows.items()}
            todo["index"] = np.int32(missing % columns)
            batches = generator.paint(todo, plan, given.batch_size)
            for number, image in zip(missing, (image for batch in batches for image in batch), strict=True):
                gallery.save(int(number), image)
        for png, file in zip(files[::columns], firsts, strict=bool(firsts)):
            if not file.exists():
                animate(generator, png, plan, file)

        gallery.draw(plan, held_out=not any(asked.values()))
        if given.npz:
            arrays = np.stack([np.asarray(Image.open(file)) for file in files]), np.repeat(rows["label"], columns)
            images.write_npz(archive, *arrays)
        first = {name: value[: SHEET[0]] for name, value in rows.items()}
        if numbered := images.legend(*(name(first) for name in (stage.cond.names, stage.cond.captions))):
            say(f"on the sheet, {numbered}")
        say(f"{len(files)} samples for {len(rows['label'])} conditions: {gallery.sheet}")


if __name__ == "__main__":
    cli.group("The run, and where images go")
    flags.DEFINE_string("workdir", None, "Run directory of a transformer, or hf://user/name of a published one.")
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
