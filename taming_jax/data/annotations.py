"""Annotations of a folder's images: scenes, see `conditions.layout`, from COCO's JSON or Open Images' CSV."""

import csv
import json
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from taming_jax.errors import UserError, not_among

TABLES = ("coco", "open_images")  # the original's choices of categories, as files beside this one
BOXES = "annotations-bbox.csv"  # how Open Images' files end
Row = tuple[str, str, tuple[float, ...], bool]  # an object: its image's file, category, box and whether it is a group


def read_annotations(folder: Path, layout: ConfigDict) -> tuple[dict[str, dict], list[str]]:
    """All annotations of a folder -> (scenes by the images' file names, names of the categories).

    Files are JSON in COCO's format, or Open Images' CSV. Categories are in the order of their ids as text, or those of
    the table that `layout.categories` names. Only objects above `min_area` count; scenes with fewer than `min_objects`
    of them, or more than `max_objects`, are left out. Raises UserError for files in another format.
    """
    names, rows = read_open_images(folder) if any(folder.rglob(f"*{BOXES}")) else read_coco(folder)
    if table := layout.categories:
        codes, class_names = read_categories(table)
        if not codes.keys() & names.keys():
            raise UserError(f"{folder} has none of the categories that cond.layout.categories={table!r} names")
    else:
        codes = {category: i for i, category in enumerate(sorted(names))}
        class_names = [names[category] for category in codes]
    pictures, columns = {}, (array("l"), array("l"), array("f"), array("b"))
    for picture, category, box, group in rows:
        if category in codes and not 0 <= box[2] * box[3] <= layout.min_area:
            check_box(box, picture, folder)
            found = pictures.setdefault(picture, len(pictures)), codes[category], group
            columns[2].extend(box)
            for column, value in zip((columns[0], columns[1], columns[3]), found, strict=True):
                column.append(value)
    picture, category, group = (np.array(columns[i]) for i in (0, 1, 3))
    order = np.argsort(picture, kind="stable")
    boxes, ends = np.array(columns[2], np.float32).reshape(-1, 4)[order], np.bincount(picture).cumsum()
    category, group, scenes = category[order].astype(np.int32), group[order].astype(bool), {}
    for name, start, end in zip(pictures, np.concatenate([[0], ends]).tolist(), ends.tolist(), strict=False):
        if layout.min_objects <= end - start <= layout.max_objects:
            part = slice(start, end)
            scenes[name] = {"boxes": boxes[part], "categories": category[part], "groups": group[part]}
    return scenes, class_names


def check_box(box: tuple[float, ...], picture: str, folder: Path) -> None:
    """Raises UserError for a box that leaves its image by more than a twentieth of a side, or is not of numbers."""
    left, top, width, height = box
    sides = (left, top, left + width, top + height)
    if not (min(width, height) > 0 and all(-0.05 <= side <= 1.05 for side in sides)):
        words = ", ".join(f"{side:.3g}" for side in sides)
        raise UserError(f"{folder}: {picture} has a box outside of it: {words} (left, top, right, bottom) of 0 to 1")


def check_table(table: str) -> None:
    """Raises UserError for a name that is not in TABLES."""
    if table not in TABLES:
        raise not_among("cond.layout.categories", table, TABLES)


def read_categories(table: str) -> tuple[dict[str, int], list[str]]:
    """The original's categories for a data set, one of TABLES -> numbers by id, names by number; raises UserError.

    'coco': things and stuff except 'other' (cocodataset.org; names from github.com/nightrome/cocostuff, labels.txt).
    'open_images': the most frequent ones and COCO's, Suitcase last; twelve of them count as other ones. They are the
    original's (category_allow_list_target and category_mapping_target in its YAML; read in
    github.com/CompVis/retrieval-augmented-diffusion-models, whose list has the same name).
    """
    check_table(table)
    with open(Path(__file__).with_name(f"{table}.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if not row["counts_as"]]
    numbers = {row["id"]: number for number, row in enumerate(kept)}
    numbers |= {row["id"]: numbers[row["counts_as"]] for row in rows if row["counts_as"]}
    return numbers, [row["name"] for row in kept]


def read_coco(folder: Path) -> tuple[dict[str, str], Iterator[Row]]:
    """Categories by id, without 'other' as in the original, and the objects of all JSON files. Raises UserError."""
    files = sorted(folder.rglob("*.json"))
    if not files:
        raise UserError(f"{folder} holds no JSON files, nor Open Images' CSV (docs/data.md has their format)")
    names, pictures, contents = {}, {}, []
    for file in files:
        try:
            content = json.loads(file.read_text())
            names |= {str(c["id"]): c["name"] for c in content["categories"] if c["name"] != "other"}
            pictures |= {p["id"]: (p["file_name"], p["width"], p["height"]) for p in content["images"]}
            contents += [
                (a["image_id"], str(a["category_id"]), np.float32(a["bbox"]).reshape(4), a.get("iscrowd", 0))
                for a in content["annotations"]
            ]
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{file} is not in COCO's format: {type(e).__name__} {str(e)[:100]}") from e

    def rows():
        for picture, category, box, group in contents:
            if picture not in pictures:
                raise UserError(f"{folder}: annotation of image {picture}, which is not in 'images'")
            name, width, height = pictures[picture]
            yield name, category, box / np.float32([width, height, width, height]), group

    return names, rows()


def read_open_images(folder: Path) -> tuple[dict[str, str], Iterator[Row]]:
    """Categories by id, and the objects of all CSV files. Raises UserError for a file in another format."""
    described = sorted(folder.rglob("*class-descriptions-boxable.csv"))
    if not described:
        raise UserError(f"{folder} holds no class-descriptions-boxable.csv, which Open Images has beside its boxes")
    with open(described[0], newline="") as file:
        names = {row[0]: row[1] for row in csv.reader(file) if len(row) == 2 and row[0] != "LabelName"}

    def rows():
        for path in sorted(folder.rglob(f"*{BOXES}")):
            with open(path, newline="") as file:
                lines = csv.reader(tqdm(file, path.name, unit="line", unit_scale=True, mininterval=1))
                header = next(lines, [])
                columns = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
                if missing := set(columns) - set(header):
                    raise UserError(f"{path} has no column {', '.join(sorted(missing))}")
                where = [header.index(name) for name in columns]
                for number, line in enumerate(lines, 2):
                    try:
                        picture, category, *sides, group = (line[i] for i in where)
                        left, right, top, bottom = map(float, sides)
                    except (ValueError, IndexError) as e:
                        raise UserError(f"{path}, line {number}: {str(e)[:100]}") from e
                    yield f"{picture}.jpg", category, (left, top, right - left, bottom - top), group == "1"

    return names, rows()
