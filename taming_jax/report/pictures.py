"""The pictures of a run by name and step, from its event files and its folder, as what a page can hold."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from taming_jax.report import events
from taming_jax.report.events import Events
from taming_jax.values import to_whole

MOST_STEPS = 12  # of a name
MOST_NAMES = 12  # of a run
FIRST = ("reconstructions", "samples")  # come first
BUDGET = 3 << 20  # bytes of a name's pictures, which base64 makes a third larger
PIXELS = 1 << 26  # a larger picture is left out
SHRINK = 0.75  # of the sides, until a picture is small enough


class Shot(NamedTuple):
    """A picture to embed. step: None where nothing says it. note: what was done to it, or ''."""

    step: int | None
    uri: str
    width: int
    height: int
    note: str


class Series(NamedTuple):
    """The pictures of a name by rising step, of as many steps as there are."""

    name: str
    shots: list[Shot]
    steps: int


def choose(steps: list[int], most: int = MOST_STEPS) -> list[int]:
    """At most `most` of the steps, evenly, with the first and the last."""
    if len(steps) <= most:
        return steps
    return [steps[i] for i in sorted({round(i) for i in np.linspace(0, len(steps) - 1, most).tolist()})]


def encode(content: bytes, most: int, step: int | None) -> Shot | None:
    """A PNG or GIF of at most `most` bytes as it is, a larger one as a JPEG that is as small; None for what is neither.

    Of a larger animation there is its last frame. step: where None, the picture's own text may say it.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "GIF")) as picture:
            width, height = picture.size
            if width * height > PIXELS:
                return None
            kind, note = picture.format, ""
            picture.load()
            step = to_whole(str(picture.info.get("step", "")), 1 << 53) if step is None else step
            if len(content) > most:
                if getattr(picture, "n_frames", 1) > 1:
                    picture.seek(picture.n_frames - 1)
                    note = "its last frame; the animation is in the run directory"
                shown = picture.convert("RGB")
                content, kind = as_jpeg(shown), "JPEG"
                while len(content) > most and min(shown.size) > 16:
                    shown = shown.resize([max(16, int(side * SHRINK)) for side in shown.size], Image.Resampling.BOX)
                    content = as_jpeg(shown)
                    note = note or f"made smaller, from {width}x{height}"
    except Exception:  # Pillow raises anything for a damaged picture
        return None
    uri = f"data:{Image.MIME[kind]};base64,{base64.b64encode(content).decode()}"
    return Shot(step, uri, width, height, note)


def as_jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=88)
    return out.getvalue()


def collect(folder: Path, found: Events, most_steps: int = MOST_STEPS, budget: int = BUDGET) -> list[Series]:
    """The pictures of a folder; of a name that event files do not have, that in its files. Animations: the newest.

    Those of the first images of a folder of samples, `--animate`, are among them.
    """
    painted = sorted(folder.glob("*_[0-9][0-9][0-9]/*.gif"))
    files = {str(file.relative_to(folder).with_suffix("")): file for file in [*sorted(folder.glob("*.png")), *painted]}
    files |= {file.stem: file for file in sorted(folder.glob("*.gif"))}
    names = {name for name, places in found.pictures.items() if places} | set(files)
    names = sorted(names, key=lambda name: (name not in FIRST, name))[:MOST_NAMES]
    return [series for name in names if (series := collect_one(name, found, files.get(name), most_steps, budget))]


def collect_one(name: str, found: Events, file: Path | None, most_steps: int, budget: int) -> Series | None:
    """The pictures of one name; None where none can be shown."""
    places = found.pictures.get(name, {})
    steps = choose(sorted(places), most_steps)
    reads: list[tuple[int | None, Callable[[], bytes]]] = [
        (step, lambda place=places[step]: read_event(place, name)) for step in steps
    ]
    if file is not None and file.suffix == ".gif":
        reads = [(max(steps, default=None), file.read_bytes)]
    elif file is not None and not steps:
        reads = [(None, file.read_bytes)]
    shots = []
    for step, read in reads:
        try:
            shot = encode(read(), budget // len(reads), step)
        except OSError:  # it has gone in the meantime
            continue
        shots += [shot] if shot is not None else []
    return Series(name, shots, len(places)) if shots else None


def read_event(place: events.Place, name: str) -> bytes:
    value = events.read(place, name)
    return value.image.encoded_image_string if value is not None else b""
