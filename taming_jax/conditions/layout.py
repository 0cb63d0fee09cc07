"""A condition on a scene: objects with boxes, as ids that a transformer reads, in the original's format.

A scene is {'boxes': float32 [N,4], 'categories': int32 [N], 'groups': bool [N]}; boxes are left, top, width and height
as shares of the image's sides.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from taming_jax.conditions.condition import Condition, number_rows
from taming_jax.conditions.label import find_class
from taming_jax.data.files import LONGEST, read_file
from taming_jax.errors import ArgumentError, UserError, not_among, printable, show
from taming_jax.first_stage import FirstStage, make_first_stage
from taming_jax.images import find_font, legible
from taming_jax.values import path

# Ids for each object: its category, and the corners of its box or its centre. Of a grid, they are painted on the codes.
KINDS = {"bbox": 3, "center": 2, "grid": 3}
PARTS = 4  # rows and columns of a box that a grid tells apart
WHOLE = (0.0, 0.0, 1.0, 1.0)
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#17becf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout(Condition):
    """A scene's objects, batch['objects'] int32 [B,count_ids]: what they are and where, see `to_ids`.

    In an image larger than in training, each place of the window has its own ids: batch['windows']
    [B,rows,columns,length], which `ids` then returns. canvas: (rows, columns) of such an image's codes. window: codes
    on a side of the window. share: of the sides of such an image, what its upper left part has that people asked for.

    Of the kind 'grid', there is an id for each code instead, see `to_grid`: a departure from the original, for the
    wavefront transformer, whose codes see what lies near them.
    """

    FEATURES = ("objects",)
    FIELDS = ("layout",)
    ARGUMENTS: ClassVar = {"layout": "Scenes to be conditioned on, JSON files with commas between (docs/data.md)."}
    ANNOTATES = True
    COUNTS_CLASSES = True

    layout: ConfigDict
    class_names: tuple[str, ...]
    canvas: tuple[int, int] = (0, 0)
    window: int = 0
    share: tuple[float, float] = (1.0, 1.0)

    @staticmethod
    def check(config: ConfigDict) -> None:
        if config.cond.aligned and config.cond.layout.encode_crop:
            raise UserError(
                "cond.aligned: with cond.layout.encode_crop, places are those of the whole picture, not a crop's"
            )
        if config.cond.layout.kind == "grid" and config.cond.layout.encode_crop:
            raise UserError("cond.layout.kind='grid': boxes lie in the crop that is painted; set encode_crop=False")

    @classmethod
    def make(cls, config: ConfigDict, stage: FirstStage | None) -> "Layout":
        layout, names = config.cond.layout, tuple(config.data.class_names)
        count = max(1, len(names))
        if count * (1 + layout.use_group) >= layout.num_tokens:
            raise UserError(f"cond.layout.num_tokens={layout.num_tokens} are too few for {count} classes of objects")
        if layout.kind != "grid":
            return cls(length=count_ids(layout), vocab_size=layout.num_tokens, layout=layout, class_names=names)
        side = dataclasses.replace(make_first_stage(config.first_stage.config), size=config.data.size).side
        ids = 1 + count * (1 + layout.use_group) * PARTS**2
        return cls(length=side**2, vocab_size=ids, grid=(side, side), layout=layout, class_names=names)

    @property
    def feature_length(self) -> int:
        return count_ids(self.layout)

    @property
    def num_classes(self) -> int:
        return max(1, len(self.class_names))

    def ids(self, frozen: dict, batch: dict) -> jax.Array:
        if self.grid is not None:
            return to_grid(batch["objects"], self.layout, self.canvas if any(self.canvas) else self.grid)
        return batch["windows"] if "windows" in batch else batch["objects"]

    def places(self, side: int) -> np.ndarray | None:
        """All zero where ids say where objects are, and positions do not."""
        return np.zeros((self.length, 2)) if self.grid is None else super().places(side)

    def named_places(self, side: int) -> np.ndarray | None:
        return places(self.layout) * (side - 1) if self.grid is None else None

    def shuffle(self, record: dict, rng: np.random.Generator) -> dict:
        order = rng.permutation(len(record["boxes"]))
        return {**record, **{name: record[name][order] for name in ("boxes", "categories", "groups")}}

    def see(self, record: dict, crop: tuple[float, ...], flip: bool) -> dict[str, np.ndarray]:
        (left, top, width, height), (h, w) = crop, self.share
        whole, windows = (left, top, width / w, height / h), self.canvas if self.grid is None else (0, 0)
        return features(record, self.layout, self.num_classes, whole, flip, windows, self.window)

    def of_size(self, grid: tuple[int, int], window: int, share: tuple[float, float] = (1.0, 1.0)) -> "Layout":
        return dataclasses.replace(self, canvas=grid, window=window, share=share)

    def rows(self, size: tuple[int, int], layout: Any) -> dict[str, np.ndarray]:
        """layout: one or several files, or scenes as files hold them (lists of {'category', 'box'})."""
        given = layout if isinstance(layout, (list, tuple)) else [layout]
        if given and all(isinstance(part, dict) for part in given):
            given = [given]
        if not given:
            raise ArgumentError("layout is empty: name files, with commas between")
        return number_rows(
            [self.see(read_scene(scene, self.layout, self.class_names), WHOLE, False) for scene in given]
        )

    def pictures(self, rows: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
        found = [from_ids(ids, self.layout, self.num_classes) for ids in rows["objects"]]
        return np.stack([draw(scene, self.class_names, size) for scene in found])


def count_ids(layout: ConfigDict) -> int:
    """The number of ids of a scene, as `to_ids` makes them."""
    return layout.max_objects * KINDS[layout.kind] + 2 * layout.encode_crop


def to_ids(
    scene: dict, layout: ConfigDict, num_classes: int, crop: tuple[float, ...] = WHOLE, flip: bool = False
) -> np.ndarray:
    """A scene, seen through a crop of its image (left, top, width, height) -> int32 [count_ids].

    An object is its category, plus `num_classes` if it is a group, and one or two places. The last of `num_tokens`
    fills up the ids of missing objects up to `max_objects`. With `encode_crop`, places lie in the whole image and
    the crop's corners come last; without it, places lie in the crop. Objects outside of the crop, or beyond
    `max_objects`, are left out. Of a grid, boxes are cut off at all sides of the crop.
    """
    none, ids = layout.num_tokens - 1, []
    frame = WHOLE if layout.encode_crop else crop
    for box, category, group in zip(scene["boxes"], scene["categories"], scene["groups"], strict=True):
        if overlap(box, crop) > 0:
            left, top, width, height = rescale(cut(box, frame) if layout.kind == "grid" else box, frame, flip)
            ids.append(int(category) + num_classes * bool(group and layout.use_group))
            if layout.kind != "center":
                ids += [place(left, top, layout), place(left + width, top + height, layout)]
            else:
                ids.append(place(left + width / 2, top + height / 2, layout))
    ids = ids[: layout.max_objects * KINDS[layout.kind]]
    ids += [none] * (layout.max_objects * KINDS[layout.kind] - len(ids))
    if layout.encode_crop:
        left, top, width, height = crop
        left = 1 - left - width if flip else left
        ids += [place(left, top, layout), place(left + width, top + height, layout)]
    return np.int32(ids)


def features(
    scene: dict,
    layout: ConfigDict,
    num_classes: int,
    crop: tuple[float, ...] = WHOLE,
    flip: bool = False,
    grid: tuple[int, int] = (0, 0),
    window: int = 0,
) -> dict[str, np.ndarray]:
    """The features of a scene in a batch: 'objects', the ids of the crop, see `to_ids`.

    If the crop is a grid of h x w codes over which a smaller window slides, also 'windows' int32
    [h-window+1,w-window+1,length]: for each place of the window, by its upper left cell, its ids as a crop, unflipped.
    """
    found = {"objects": to_ids(scene, layout, num_classes, crop, flip)}
    if max(grid) > window:
        (left, top, width, height), (h, w) = crop, grid
        found["windows"] = np.stack(
            [
                [
                    to_ids(
                        scene,
                        layout,
                        num_classes,
                        (left + width * j / w, top + height * i / h, width * window / w, height * window / h),
                    )
                    for j in range(w - window + 1)
                ]
                for i in range(h - window + 1)
            ]
        )
    return found


def from_ids(ids: np.ndarray, layout: ConfigDict, num_classes: int) -> dict:
    """The scene that ids describe; a centre becomes a box around it, a sixteenth wide and high."""
    size = KINDS[layout.kind]
    found = ids[: layout.max_objects * size].reshape(-1, size)
    found = found[found[:, 0] != layout.num_tokens - 1]
    corners = places(layout)[found[:, 1:], ::-1]  # [N,1 or 2,(x,y)]
    if layout.kind != "center":
        first, last = corners[:, 0], corners[:, 1]
    else:
        first, last = corners[:, 0] - 1 / 32, corners[:, 0] + 1 / 32
    return {
        "boxes": np.float32(np.concatenate([first, last - first], 1)),
        "categories": found[:, 0] % num_classes,
        "groups": found[:, 0] >= num_classes,
    }


def to_grid(ids: jax.Array, layout: ConfigDict, grid: tuple[int, int]) -> jax.Array:
    """The ids of objects, int32 [B,3*max_objects], painted on a grid: an id for each cell, int32 [B,rows*columns].

    A cell that no box touches is 0. Others have an id for a category and one of `PARTS` x `PARTS` parts of its box,
    from 1 on, that many for each category; of several boxes, the smallest counts.
    """
    points, shape, cells = points_of(layout), np.array(grid), np.indices(grid).reshape(2, -1).T
    # In whole numbers, so that no cell depends on the last bit of a division.
    firsts = jnp.asarray(np.minimum(points * shape // points.max(), shape - 1))
    lasts = jnp.asarray(-(-points * shape // points.max()) - 1)
    objects = ids.reshape(len(ids), -1, 3)
    corners = jnp.minimum(objects[:, :, 1:], len(points) - 1)  # the id of no object may lie beyond the points
    begin = firsts[corners[:, :, 0], None]  # [B,objects,1,(i,j)]
    end = jnp.maximum(begin, lasts[corners[:, :, 1], None])
    parts = (cells - begin) * PARTS // (end - begin + 1)  # [B,objects,cells,(i,j)]
    found = 1 + (objects[:, :, :1] * PARTS + parts[..., 0]) * PARTS + parts[..., 1]
    here = ((begin <= cells) & (cells <= end)).all(-1) & (objects[:, :, :1] != layout.num_tokens - 1)
    area = jnp.where(here, (end - begin + 1).prod(-1), shape.prod() + 1)
    smallest = jnp.take_along_axis(found, area.argmin(1, keepdims=True), 1)[:, 0]
    return jnp.where(here.any(1), smallest, 0)


def place(x: float, y: float, layout: ConfigDict) -> int:
    """The cell of a point, numbered row by row, in a square grid of at most `num_tokens` cells; x and y in [0, 1]."""
    side = int(layout.num_tokens**0.5)
    return round(y * (side - 1)) * side + round(x * (side - 1))


def points_of(layout: ConfigDict) -> np.ndarray:
    """The points that `place` numbers: int [N,(row,column)], N <= `num_tokens`."""
    side = int(layout.num_tokens**0.5)
    return np.indices((side, side)).reshape(2, -1).T


def places(layout: ConfigDict) -> np.ndarray:
    """The same as shares of the image's sides: [N,(y,x)] in [0, 1]."""
    points = points_of(layout)
    return points / points.max()


def cut(box: np.ndarray, crop: tuple[float, ...]) -> tuple[float, ...]:
    """The part of a box that lies in a crop; its width or height is negative where they do not meet."""
    first = [max(box[i], crop[i]) for i in (0, 1)]
    return *first, *(min(box[i] + box[i + 2], crop[i] + crop[i + 2]) - first[i] for i in (0, 1))


def overlap(box: np.ndarray, other: tuple[float, ...]) -> float:
    """Area that two boxes share."""
    return float(np.prod([max(0.0, side) for side in cut(box, other)[2:]]))


def rescale(box: np.ndarray, crop: tuple[float, ...], flip: bool) -> tuple[float, float, float, float]:
    """A box as a part of a crop, in the flipped image if `flip`.

    The crop cuts it off at the right and at the bottom; a box that begins before the crop keeps its size, as in the
    original.
    """
    left, top = (min(max((box[i] - crop[i]) / crop[i + 2], 0.0), 1.0) for i in (0, 1))
    width, height = min(box[2] / crop[2], 1 - left), min(box[3] / crop[3], 1 - top)
    return (1 - left - width if flip else left), top, width, height


def read_scene(given: Path | str | list[dict], layout: ConfigDict, class_names: tuple[str, ...]) -> dict:
    """A user's layout: [{"category": "name or number", "box": [left, top, right, bottom] in [0, 1]}, ...], or its file.

    `"group": true` marks a box that holds many. Raises ArgumentError for unknown categories, boxes outside of the
    image, and more objects than the transformer reads.
    """
    name = "layout"
    if isinstance(given, (str, Path)):
        path("layout", str(given), ArgumentError)
        name = f"layout={given}"
    try:
        objects = json.loads(read_file(Path(given), LONGEST)) if isinstance(given, (str, Path)) else given
        boxes = np.float32([[float(side) for side in o["box"]] for o in objects])
        if boxes.shape != (len(objects), 4) or not len(objects):
            raise ValueError("a box has left, top, right and bottom")
        words, groups = [str(o["category"]) for o in objects], [bool(o.get("group")) for o in objects]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as e:
        reason = printable(" ".join(str(e).split()))[:100]
        raise ArgumentError(f"{name} is no list of objects with 'category' and 'box': {reason}") from e
    if len(boxes) > layout.max_objects:
        raise ArgumentError(f"{name} has {len(boxes)} objects; the transformer reads {layout.max_objects}")
    categories = []
    for word, box in zip(words, boxes, strict=True):
        category = find_class(f"{name}: category", word, class_names)
        if category is None:
            raise not_among(f"{name}: category", word, class_names, ArgumentError)
        categories.append(category)
        if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            sides = ", ".join(f"{side:g}" for side in box)
            raise ArgumentError(f"{name}: {show(word)} has the box {sides}: left, top, right, bottom within [0, 1]")
    boxes[:, 2:] -= boxes[:, :2]
    return {"boxes": boxes, "categories": np.int32(categories), "groups": np.bool_(groups)}


def draw(scene: dict, class_names: tuple[str, ...], size: tuple[int, int]) -> np.ndarray:
    """Boxes with names on white: uint8 [H,W,3] of a size (height, width)."""
    h, w = size
    picture = Image.new("RGB", (w, h), "white")
    pen = ImageDraw.Draw(picture)
    for i, (box, category) in enumerate(zip(scene["boxes"], scene["categories"], strict=True)):
        left, top, width, height = box * (w, h, w, h)
        color = COLORS[i % len(COLORS)]
        right, bottom = max(left, left + width - 1), max(top, top + height - 1)  # a box may be thinner than a pixel
        pen.rectangle((left, top, right, bottom), outline=color, width=max(1, min(h, w) // 64))
        (name,) = legible((class_names[category] if class_names else str(category),), (category,))
        font = find_font(name, max(8, min(h, w) // 12))
        inside = max(0, min(left + 2, w - font.getlength(name)))
        pen.text((inside, top + 1), name, fill=color, font=font)
    return np.asarray(picture)
