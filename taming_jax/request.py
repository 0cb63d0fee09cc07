"""A user's request, by flags or by arguments -> rows to paint, their size, and the part of an image that stays."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from taming_jax import data
from taming_jax.completion import check_classes
from taming_jax.conditions import ARGUMENTS, CONDITIONS
from taming_jax.conditions.condition import Condition, number_rows
from taming_jax.data.features import FEATURES
from taming_jax.data.files import open_picture, refusing
from taming_jax.data.transforms import MOST_PIXELS, fit
from taming_jax.errors import ArgumentError, UserError, check_count, not_among, show
from taming_jax.painting import Kept
from taming_jax.second_stage import SecondStage
from taming_jax.values import path, to_whole

PAINTABLE = 2 * Image.MAX_IMAGE_PIXELS  # beyond it, Pillow takes a file for an attack
SIDES = ("top", "bottom", "left", "right")


def parse_size(asked: str | tuple[int, int] | None, stage: SecondStage, config: ConfigDict) -> tuple[int, int]:
    """'512x1024' or (512, 1024), height first. None: as in training; for coordinates, a whole image.

    Raises ArgumentError for a size that the transformer cannot paint.
    """
    if asked is None:
        least = stage.first.size
        whole = max(least, round(least * config.data.resize_factor) // stage.step * stage.step)
        return (whole, whole) if stage.cond.WHOLE and stage.slides else (least, least)
    parts = asked.lower().split("x") if isinstance(asked, str) else asked
    parts = list(parts) if isinstance(parts, (list, tuple, np.ndarray)) else []
    parts = [part if isinstance(part, str) else show(part) for part in parts]
    size = tuple(to_whole(part, 2**31) for part in parts)
    if len(size) != 2 or None in size:
        raise ArgumentError(f"size={show(asked)}: height x width in pixels, such as 512x1024")
    if math.prod(size) > PAINTABLE:
        raise ArgumentError(f"size={show(asked)}: images of more than {PAINTABLE} pixels cannot be opened again")
    stage.check_size("size", size, ArgumentError)
    return size


def make_rows(
    stage: SecondStage,
    config: ConfigDict,
    size: tuple[int, int],
    asked: dict[str, Any],
    data_path: str | Path | None = None,
    num_conditions: int = 8,
    kept: Kept | None = None,
) -> dict[str, np.ndarray]:
    """A row for each condition: from the user's arguments by `Condition.rows`, or from held-out images.

    asked: values for `conditions.ARGUMENTS`, None where one is not given. data_path: a folder of images and their other
    features, in place of the run's. kept: an image whose part stays; the conditions lie as it does. Raises
    ArgumentError for arguments that do not fit the run.
    """
    kind, asked = config.cond.name, {name: value for name, value in asked.items() if value is not None}
    if unknown := set(asked) - set(ARGUMENTS):
        raise not_among("argument", min(unknown), ARGUMENTS, UserError)
    takes_data = stage.cond.NEEDS_DATA
    for name in (*asked, *(["data_path"] if data_path is not None else [])):
        kinds = [k for k, c in CONDITIONS.items() if (c.NEEDS_DATA if name == "data_path" else name in c.ARGUMENTS)]
        if kind not in kinds:
            raise ArgumentError(f"{name}: the run is conditioned on {kind!r}, not on {' or '.join(map(repr, kinds))}")
    if asked and data_path is not None:
        raise UserError(f"give one of data_path and {', '.join(asked)}")
    check_count(num_conditions=num_conditions)
    inner = size if kept is None else kept.size
    if asked or not takes_data:
        made = inner if takes_data else size
        return extend(condition_of(stage, size, inner).rows(made, **asked), made, size)
    if data_path is not None:
        path("data_path", str(data_path), ArgumentError)
        config = config.copy_and_resolve_references()
        config.data.update(name="folder", path=str(data_path), validation_share=1.0)
    return extend(held_out(stage, config, num_conditions, size, inner), inner, size)


def condition_of(stage: SecondStage, size: tuple[int, int], inner: tuple[int, int]) -> Condition:
    """The stage's condition for an image of `size`, whose upper left part of `inner` people asked for."""
    grid = size[0] // stage.first.patch, size[1] // stage.first.patch
    return stage.cond.of_size(grid, stage.window(grid), (inner[0] / size[0], inner[1] / size[1]))


def extend(rows: dict[str, np.ndarray], inner: tuple[int, int], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Features of images [N,H,W,...] of one size, their last rows and columns repeated up to another."""
    fill = [(0, whole - part) for whole, part in zip(size, inner, strict=True)]
    if not any(behind for _, behind in fill):
        return rows
    spatial = {name for name in rows if name in FEATURES and FEATURES[name].channels is not None}
    return {
        name: np.pad(value, [(0, 0), *fill, *[(0, 0)] * (value.ndim - 3)], mode="edge") if name in spatial else value
        for name, value in rows.items()
    }


def held_out(
    stage: SecondStage,
    config: ConfigDict,
    count: int,
    size: tuple[int, int],
    inner: tuple[int, int] | None = None,
) -> dict[str, np.ndarray]:
    """The conditions of the first `count` held-out images, at training's scale or fitted to a larger size.

    inner: as of `condition_of`, if not all of the size.
    """
    inner = inner or size
    source = data.open_source(config.data, "validation")
    check_classes(config, source.class_names)
    cond = condition_of(stage, size, inner)
    augment = data.make_augment(config.data, cond.annotator)
    if inner != augment.size:
        augment = dataclasses.replace(augment, size=inner, resize_factor=1.0)
    seen = (source.attempt(int(i), augment.centered) for i in data.eval_order(source))
    if not (rows := list(itertools.islice((record for record in seen if record is not None), count))):
        raise UserError(f"data set {config.data.name!r} has no image that can be read in its validation split")
    return number_rows(rows)


def read_kept(
    stage: SecondStage, image: Any, keep: Any, size: tuple[int, int] | None, keep_pixels: bool = True
) -> tuple[Kept, tuple[int, int]]:
    """An image and the part of it that stays -> (both as `Kept`, the size to paint).

    image: a file, a PIL image or an array, see `files.open_picture`. keep: 'top', 'bottom', 'left', 'right', or a mask
    as large as the image, white where it stays; a code stays if its whole patch does. size: None for the image's own,
    if the window can slide over it; smaller images are enlarged to the size of training. Raises ArgumentError for an
    image or a mask that cannot be read or does not match.
    """
    if stage.first.input != "image":
        raise ArgumentError(f"image: the first stage sees {stage.first.input!r}, not images")
    record = {"label": 0, "image": open_or_refuse("image", image)}
    if isinstance(keep, (str, Path)):
        path("keep", str(keep), ArgumentError)
    if isinstance(keep, str) and keep not in SIDES and not Path(keep).is_file():
        raise not_among("keep", keep, [*SIDES, "a mask's file"], ArgumentError)
    if not (isinstance(keep, str) and keep in SIDES):
        record["segmentation"] = open_or_refuse("keep", to_mask(keep)).min(-1)
        if record["segmentation"].shape != record["image"].shape[:2]:
            sizes = ["x".join(map(str, record[kind].shape[:2])) for kind in ("segmentation", "image")]
            raise ArgumentError(f"keep is {sizes[0]} pixels, image is {sizes[1]}: the mask must be as large")
    patch, least, wanted = stage.first.patch, stage.least, size
    if size is None:
        sides = record["image"].shape[:2]
        scale = max(1.0, least / min(sides))
        wanted = tuple(max(least, round(side * scale)) for side in sides) if stage.slides else (least, least)
        if math.prod(wanted) > max(MOST_PIXELS, math.prod(sides)):
            whole, enlarged = ("x".join(map(str, shape)) for shape in (sides, wanted))
            raise ArgumentError(f"image: {whole} pixels would be enlarged to {enlarged}: crop it")
        size = tuple(-(-side // stage.step) * stage.step for side in wanted)
    with refusing("image"):
        record = fit(record, wanted)
    fill = [(0, whole - part) for whole, part in zip(size, wanted, strict=True)]
    picture = np.pad(record["image"], [*fill, (0, 0)], mode="edge")
    h, w = (side // patch for side in size)
    if "segmentation" in record:
        stays = np.pad(record["segmentation"] > 127, fill, mode="edge")
    else:
        i, j = np.indices(size)
        middle = h // 2 * patch, w // 2 * patch
        stays = {"top": i < middle[0], "bottom": i >= middle[0], "left": j < middle[1], "right": j >= middle[1]}[keep]
    codes = stays.reshape(h, patch, w, patch).all((1, 3))
    inside = (np.arange(size[0]) < wanted[0])[:, None] & (np.arange(size[1]) < wanted[1])
    return Kept(picture, codes, stays & inside if keep_pixels else None, wanted), size


def to_mask(keep: Any) -> Any:
    """A mask in memory that is true or 1 where the image stays -> one that is 255 there; others as they are."""
    if isinstance(keep, (str, Path)):
        return keep
    with refusing("keep"):
        mask = np.asarray(keep)
    if mask.size and mask.dtype.kind in "biuf" and np.isin(mask, (0, 1)).all():
        return np.uint8(255) * mask.astype(np.uint8)
    if mask.dtype.kind == "f":
        raise ArgumentError("keep cannot be read: a mask of floats holds 0 and 1 alone")
    return keep


def open_or_refuse(name: str, picture: Any) -> np.ndarray:
    """Opens an image in colours, uint8 [H,W,3]; raises ArgumentError, with the argument's name, if that fails."""
    if isinstance(picture, (str, Path)):
        path(name, str(picture), ArgumentError)
    with refusing(f"{name}={picture}" if isinstance(picture, (str, Path)) else name):
        return open_picture(picture)


def picture_of(kept: Kept) -> np.ndarray:
    """Draws the part of an image that stays, on grey: uint8 [H,W,3]."""
    scale = kept.image.shape[0] // kept.codes.shape[0]
    stays = kept.codes.repeat(scale, 0).repeat(scale, 1) if kept.pixels is None else kept.pixels
    h, w = kept.size
    return np.where(stays[..., None], kept.image, np.uint8(160))[:h, :w]
