"""The pictures of a run by name and step, from its event files and its folder, as what a page can hold."""

import base64
import io
import itertools
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
BUDGET = 6 << 20  # bytes of a run's pictures, evenly for its names, which base64 makes a third larger
PIXELS = 1 << 26  # a larger picture is left out
SHRINK = 0.75  # of the sides, until a picture is small enough

Read = tuple[int | None, Callable[[], bytes]]  # the step of a picture, and what reads it


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


def collect(
    folder: Path, found: Events, most_names: int = MOST_NAMES, most_steps: int = MOST_STEPS, budget: int = BUDGET
) -> list[Series]:
    """The pictures of a folder, of at most `budget` bytes; of a name that event files do not have, that in its files.

    Animations come after what else has their name, the newest of each; those of the first images of a folder of
    samples, `--animate`, are among them.
    """
    named = {name: event_reads(name, places, most_steps) for name, places in found.pictures.items() if places}
    for file in [*sorted(folder.glob("*.png")), *sorted(folder.glob("pictures/*.png"))]:  # there, of a published run
        named.setdefault(file.stem, [(None, file.read_bytes)])
    for file in [*sorted(folder.glob("*.gif")), *sorted(folder.glob("*_[0-9][0-9][0-9]/*.gif"))]:
        name = str(file.relative_to(folder).with_suffix(""))
        step = max(found.pictures.get(name, ()), default=None)
        named[f"{name}, animated" if name in named else name] = [(step, file.read_bytes)]
    names = sorted(named, key=lambda name: (name not in FIRST, name))
    share = budget // max(1, min(len(names), most_names))
    shown = (Series(n, embed(named[n], share), len(found.pictures.get(n, ()))) for n in names)
    return list(itertools.islice((series for series in shown if series.shots), most_names))


def event_reads(name: str, places: dict[int, events.Place], most_steps: int) -> list[Read]:
    return [(step, lambda place=places[step]: read_event(place, name)) for step in choose(sorted(places), most_steps)]


def embed(reads: list[Read], budget: int) -> list[Shot]:
    """Those of the pictures that can be shown, of at most `budget` bytes."""
    shots = []
    for step, read in reads:
        try:
            shot = encode(read(), budget // len(reads), step)
        except OSError:  # it has gone in the meantime
            continue
        shots += [shot] if shot is not None else []
    return shots


def read_event(place: events.Place, name: str) -> bytes:
    value = events.read(place, name)
    return value.image.encoded_image_string if value is not None else b""
