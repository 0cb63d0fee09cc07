"""What is asked for on the command line -> the rows that the sampler paints, and the part of an image that is given."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from taming_jax import data
from taming_jax.data import folder, layouts, transforms
from taming_jax.errors import UserError, nearest, not_among
from taming_jax.tasks import prior, vqgan

MOST_CLASSES = 16  # painted when --classes does not say which
SIDES = ("top", "bottom", "left", "right")


class Given(NamedTuple):
    """A part of an image that stays: image uint8 [H,W,3], keep bool [h,w] of its codes."""

    image: np.ndarray
    keep: np.ndarray


def parse_classes(text: str | None, names: tuple[str, ...]) -> list[int]:
    """'flags, 3' -> label numbers; None is all classes, or 16 spread evenly over more.

    Raises UserError for a class that is not there.
    """
    count = max(1, len(names))
    if text is None:
        return sorted({round(i) for i in np.linspace(0, count - 1, min(count, MOST_CLASSES))})
    labels = []
    for word in (w.strip() for w in text.split(",")):
        by_name = [i for i, name in enumerate(names) if name.lower() == word.lower()]
        if not by_name and not (word.isdecimal() and int(word) < count):
            lower = {name.lower(): name for name in names}
            raise UserError(
                f"--classes: there is no class {word!r}{nearest(word.lower(), lower)}; classes are 0 to {count - 1}"
                + (f": {', '.join(names)}" if 0 < len(names) <= 20 else "")
            )
        labels.append(by_name[0] if by_name else int(word))
    return labels


def parse_size(text: str | None, config: ConfigDict) -> tuple[int, int]:
    """'512x1024' -> (512, 1024), height first. None: as in training; for coordinates, a whole picture.

    Raises UserError for a size that the transformer cannot paint.
    """
    factor, least = prior.code_size(config), config.data.size
    if text is None:
        whole = round(least * config.data.resize_factor) // factor * factor
        return (whole, whole) if config.cond.name == "coordinates" else (least, least)
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"--size={text!r}: height x width in pixels, such as 512x1024")
    size = int(parts[0]), int(parts[1])
    prior.check_size(config, "--size", size)
    return size


def fit(record: dict, size: tuple[int, int], downscale: int = 1) -> dict:
    """All features of a record just large enough for a size (height, width), the centre cut out."""
    return transforms.Augment(size, 1.0, random_crop=False, flip=False, downscale=downscale).centered(record)


def read_conditions(config: ConfigDict, files: list[str], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Files as the conditions of an image-conditioned transformer, fitted to a size; raises UserError."""
    stage = config.cond.config
    kind, downscale = ("image", stage.data.downscale) if stage.input == "low" else (stage.input, 1)
    rows = []
    for file in files:
        try:
            feature = folder.read(Path(file), kind, stage.data.label_shift)
        except data.UNREADABLE as e:
            raise UserError(f"--condition={file} cannot be read: {' '.join(str(e).split())}") from e
        if kind == "segmentation":
            folder.check_labels(feature, Path(file), stage.model.out_ch, stage.data.label_shift)
        image = np.zeros((*feature.shape[:2], 3), np.uint8)
        rows.append(fit({"image": image, kind: feature, "label": 0}, size, downscale))
    return stack(rows)


def read_layouts(config: ConfigDict, files: list[str], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """JSON files as the conditions of a transformer on objects, for pictures of a size; raises UserError."""
    see = scene_features(config, size)
    return stack([see(layouts.read_scene(Path(file), config.cond.layout, config.data.class_names)) for file in files])


def scene_features(config: ConfigDict, size: tuple[int, int]) -> Callable[..., dict[str, np.ndarray]]:
    """`layouts.features` of a picture of a size, over which the transformer's window may have to slide."""
    grid, window = tuple(side // prior.code_size(config) for side in size), vqgan.side(config.first_stage.config)
    return functools.partial(data.augment(config.data).see_scene, grid=grid, window=window)


def held_out(config: ConfigDict, count: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The first `count` held-out records as conditions, in training's scale or fitted to a larger size."""
    source = data.open_source(config.data, "validation")
    prior.check_classes(config, source.class_names)
    order = np.random.default_rng(0).permutation(len(source))[:count]
    augment = data.augment(config.data)
    if size != augment.size:
        see_scene = scene_features(config, size) if config.cond.name == "objects" else None
        augment = dataclasses.replace(augment, size=size, resize_factor=1.0, see_scene=see_scene)
    return stack([augment.centered(source[int(i)]) for i in order])


def stack(rows: list[dict]) -> dict[str, np.ndarray]:
    """Records as one batch, numbered in 'label'."""
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return batch | {"label": np.arange(len(rows), dtype=np.int32)}


def read_given(config: ConfigDict, image: str, keep: str, size: tuple[int, int]) -> Given:
    """`image` fitted to a size, and which of its codes stay: 'top', 'bottom', 'left', 'right' or a mask's white.

    A code stays where its whole square is white. Raises UserError for files that cannot be read or do not match.
    """
    if config.first_stage.config.input != "image":
        raise UserError(f"--image: the first stage sees {config.first_stage.config.input!r}, not images")
    record = {"label": 0}
    for flag, file, kind in (("image", image, "image"), ("keep", keep, "segmentation")):
        if flag == "keep" and file in SIDES:
            continue
        if flag == "keep" and not Path(file).is_file():
            raise not_among("--keep", file, [*SIDES, "a mask's file"])
        try:
            record[kind] = folder.read(Path(file), "image")
        except data.UNREADABLE as e:
            raise UserError(f"--{flag}={file} cannot be read: {' '.join(str(e).split())}") from e
    if "segmentation" in record:
        record["segmentation"] = record["segmentation"].min(-1)
        if record["segmentation"].shape != record["image"].shape[:2]:
            sizes = ["x".join(map(str, record[kind].shape[:2])) for kind in ("segmentation", "image")]
            raise UserError(f"--keep={keep} is {sizes[0]} pixels, --image={image} is {sizes[1]}: a mask is as large")
    record, factor = fit(record, size), prior.code_size(config)
    h, w = (n // factor for n in size)
    if "segmentation" in record:
        white = record["segmentation"] > 127
        return Given(record["image"], white.reshape(h, factor, w, factor).all((1, 3)))
    i, j = np.indices((h, w))
    halves = {"top": i < h // 2, "bottom": i >= h // 2, "left": j < w // 2, "right": j >= w // 2}
    return Given(record["image"], halves[keep])


def picture_of_part(given: Given) -> np.ndarray:
    """What is given of an image, on grey: uint8 [H,W,3]."""
    scale = np.array(given.image.shape[:2]) // given.keep.shape
    return np.where(given.keep.repeat(scale[0], 0).repeat(scale[1], 1)[..., None], given.image, np.uint8(160))


def pictures_of(config: ConfigDict, rows: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray | None:
    """The conditions as people see them, [R,H,W,3], uint8 or float in [-1, 1]; None where they are no pictures."""
    if config.cond.name == "objects":
        names = config.data.class_names
        found = [layouts.from_ids(ids, config.cond.layout, max(1, len(names))) for ids in rows["objects"]]
        return np.stack([layouts.draw(scene, names, size) for scene in found])
    if config.cond.name != "image":
        return None
    return np.asarray(vqgan.to_picture(config.cond.config, vqgan.to_input(config.cond.config, rows)))
