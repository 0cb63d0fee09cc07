"""What a run lets one choose, and what was chosen: as arguments of `Generator.sample`, as a command, as Python."""

import csv
import dataclasses
import io
import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from taming_jax import request
from taming_jax.conditions.label import parse_classes
from taming_jax.errors import ArgumentError, UserError
from taming_jax.painting import Plan
from taming_jax.sampling.draw import COUNTS, Sampling
from taming_jax.second_stage import SecondStage


@dataclasses.dataclass(frozen=True)
class Choices:
    """What a run lets one choose.

    condition: the argument for its condition, None where there is none. kind: the feature that a picture as a condition
    is read as, such as 'line'. labels: how many labels its maps have, and `label_shift` what is added to those of
    files. held_out: whether conditions come from held-out images where none is given. class_names: to choose from.
    completes: whether a part of a picture can stay. guides: whether guidance is learned. size: (height, width) at
    first. step, least, most: pixels of a side; most == least where there is no choice. longest: the longest stride.
    most_passes: of masked decoding, one for each code; 0 for others. num_ids: how many codes there are. sampling: the
    run's.
    """

    condition: str | None
    kind: str | None
    labels: int
    label_shift: int
    held_out: bool
    class_names: tuple[str, ...]
    completes: bool
    guides: bool
    size: tuple[int, int]
    step: int
    least: int
    most: int
    longest: int
    most_passes: int
    num_ids: int
    sampling: Sampling


def find_choices(stage: SecondStage, config: ConfigDict, most_codes: int) -> Choices:
    """The choices of a second stage. most_codes: of all images of a painting."""
    cond, first = stage.cond, stage.first
    size = request.parse_size(None, stage, config)
    most = math.isqrt(most_codes) * first.patch // stage.step * stage.step
    most_passes = first.side**2 if stage.masks else 0
    sampling = Sampling(**config.sample)
    sampling = sampling._replace(top_k=min(sampling.top_k, first.num_ids))
    if stage.masks:
        sampling = sampling._replace(passes=min(sampling.passes, most_passes))
    windowed = stage.slides and stage.least == first.size  # a wavefront paints any size, and has no window
    return Choices(
        condition=next(iter(cond.ARGUMENTS), None),
        kind=None if cond.stage is None else cond.stage.input,
        labels=cond.stage.model.out_ch if cond.stage is not None and cond.stage.input == "segmentation" else 0,
        label_shift=config.cond.config.data.label_shift if cond.stage is not None else 0,
        held_out=cond.NEEDS_DATA,
        class_names=tuple(config.data.class_names) if cond.COUNTS_CLASSES else (),
        completes=first.input == "image",
        guides=stage.drop > 0,
        size=size,
        step=stage.step,
        least=stage.least,
        most=max(most, *size) if stage.slides else stage.least,
        longest=first.side // 2 if windowed else 1,
        most_passes=most_passes,
        num_ids=first.num_ids,
        sampling=sampling,
    )


def arguments(choices: Choices, values: Mapping[str, Any]) -> dict[str, Any]:
    """The page's values -> arguments of `Generator.sample` that differ from its own; pictures and scenes are files.

    values: 'num_samples', 'seed'; where the run has them, 'classes' (labels), 'caption' (one a line), 'condition',
    'layout' and 'image' (files), 'keep' (a side or a file), 'keep_pixels', 'height', 'width', 'stride', 'temperature',
    'top_k', 'top_p', 'guidance', 'passes', 'choice_temperature', 'num_conditions'. What is None or empty was not given.
    Raises ArgumentError.
    """
    given = {name: value for name, value in values.items() if value is not None and value != "" and value != []}
    if missing := [name for name in ("num_samples", "seed") if name not in given]:
        raise ArgumentError(f"{missing[0]} is empty")
    asked: dict[str, Any] = {}
    if "classes" in given:
        asked["classes"] = [class_word(label, choices.class_names) for label in given["classes"]]
    if lines := [line.strip() for line in given.get("caption", "").splitlines() if line.strip()]:
        asked["caption"] = lines
    asked |= {name: [given[name]] for name in ("condition", "layout") if name in given}
    if choices.held_out and choices.condition not in asked:
        asked["num_conditions"] = int(given.get("num_conditions", 1))
    asked |= {"num_samples": int(given["num_samples"]), "seed": int(given["seed"])}
    if "image" in given:
        asked |= {"image": given["image"], "keep": given["keep"]}
        asked |= {} if given.get("keep_pixels", True) else {"keep_pixels": False}
    size = int(given.get("height", choices.size[0])), int(given.get("width", choices.size[1]))
    if size != choices.size or ("image" in given and choices.most > choices.least):
        asked["size"] = "x".join(map(str, size))
    if max(size) > choices.least and given.get("stride", 1) > 1:
        asked["stride"] = int(given["stride"])
    for name, usual in choices.sampling._asdict().items():
        if given.get(name, usual) != usual:
            asked[name] = (int if name in COUNTS else float)(given[name])
    return asked


def class_word(label: int, names: tuple[str, ...]) -> str:
    """A class as a flag names it: its name, or its number where the name would be read as something else."""
    word = names[label] if names else str(label)
    for name in (word, str(label)):
        (read,) = csv.reader([flag_text([name])], skipinitialspace=True)
        if [part.strip() for part in read] == [name] and parse_classes([name], names) == [label]:
            return name
    raise ArgumentError(f"classes: {word!r} has the name of another class; rename one of them")


def check_codes(count: int, plan: Plan, patch: int, most_codes: int) -> None:
    """Raises UserError where images have more codes than the page paints at once."""
    h, w = plan.grid(patch)
    if count * h * w > most_codes:
        raise UserError(
            f"{count} image{'s' if count > 1 else ''} of {h}x{w} codes are {count * h * w} codes; this page paints"
            f" {most_codes} at once: ask for fewer, or for smaller ones (or start it with --max_codes)"
        )


def flag_text(parts: list[str]) -> str:
    """A list as a flag holds it: with commas between, and quotes where a part has some."""
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(parts)
    return out.getvalue()


def command(workdir: Path, asked: Mapping[str, Any], out: str) -> str:
    """The command that paints what was asked for into the folder `out`."""
    flags = {"workdir": str(workdir), "out": out, **asked}
    words = ["taming", "sample"]
    for name, value in flags.items():
        if value is False:
            words.append(f"--no{name}")
        else:
            words.append(f"--{name}={flag_text(value) if isinstance(value, list) else value}")
    return shlex.join(words)


def python(workdir: Path, asked: Mapping[str, Any]) -> str:
    """The three lines of Python that paint what was asked for."""
    asked = dict(asked)
    parts = [str(asked.pop("num_samples")), *(f"{name}={value!r}" for name, value in asked.items())]
    return (
        "import taming_jax\n"
        f"generator = taming_jax.Generator.load({str(workdir)!r})\n"
        f"images = generator.sample({', '.join(parts)})"
    )


def fitted(choices: Choices, height: int, width: int) -> tuple[int, int]:
    """The size (height, width) for a picture: of its shape, its shorter side as in training."""
    scale = min(choices.size) / min(height, width)
    sides = (min(max(choices.least, round(side * scale)), choices.most) for side in (height, width))
    return tuple(side // choices.step * choices.step for side in sides)


def add_box(text: str, category: str, corner: tuple[float, float], across: tuple[float, float]) -> str:
    """A scene's text with one more box between two corners (x, y), shares. What is no scene is replaced."""
    try:
        objects = json.loads(text)
    except ValueError:
        objects = []
    objects = objects if isinstance(objects, list) else []
    (left, right), (top, bottom) = (sorted(pair) for pair in zip(corner, across, strict=True))
    box = [round(min(max(side, 0), 1), 3) for side in (left, top, right, bottom)]
    return json.dumps([*objects, {"category": category, "box": box}])
