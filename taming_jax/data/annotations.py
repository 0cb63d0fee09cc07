"""Annotations of a folder's images: scenes, see `conditions.layout`, from COCO's JSON or Open Images' CSV."""

import csv
import json
import re
import reprlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from ml_collections import ConfigDict

from taming_jax.console import bar
from taming_jax.data.files import LONGEST, read_file
from taming_jax.data.walk import PARTS, walk
from taming_jax.errors import UserError, not_among, printable, shorten, show

T = TypeVar("T")

TABLES = ("coco", "open_images")  # the original's choices of categories, as files beside this one
BOXES = "annotations-bbox.csv"  # how Open Images' files end
DESCRIBED = "class-descriptions-boxable.csv"
LARGEST = 1e9  # pixels of a side
Category = tuple[int, str]  # the number of its file, and its id there
# An object: the part of the data that its file is for ('train', 'validation', 'test' or ''), the file's name for the
# image, its category, its box, and whether it is a group.
Row = tuple[str, str, Category, tuple[float, ...], bool]
Claims = dict[str, set[str]]  # the parts whose files have an image, by the name that they have for it


def read_annotations(
    folder: Path, layout: ConfigDict, pictures: Mapping[str, str] | None = None, splits: Mapping[str, str] | None = None
) -> tuple[dict[str, dict], list[str]]:
    """All annotations of a folder -> (scenes by the images, names of the categories).

    pictures: the images' paths with their parts of the data, see `find_pictures`; None takes the images by the names
    that the files have for them. splits: the names of the folders of splits, with the parts too. Files are JSON in
    COCO's format, or Open Images' CSV; each has its own ids of images and categories. Categories are in the order of
    their ids as text, or those of the table that `layout.categories` names. Only objects above `min_area` count; scenes
    with fewer than `min_objects` of them, or more than `max_objects`, are left out. Raises UserError for files in
    another format.
    """
    files, _ = walk(folder, lambda name: name.lower().endswith((".json", ".csv")))
    parts = {file: part_of_file(file.relative_to(folder), splits or {}) for file in files}
    boxes = [file for file in files if file.name.endswith(BOXES)]
    listed, claims, rows = read_open_images(folder, parts, boxes) if boxes else read_coco(folder, parts)
    names = {category: name for category, name in listed.items() if name is not None}
    if table := layout.categories:
        table_codes, class_names = read_categories(table)
        codes = {category: table_codes[category[1]] for category in names if category[1] in table_codes}
        if not codes:
            raise UserError(f"{folder} has none of the categories that cond.layout.categories={table!r} names")
    else:
        codes, class_names = merge_categories(names)
    find = (lambda part, name: name) if pictures is None else find_pictures(folder, pictures, claims)
    found, places, columns = {}, {}, (array("l"), array("l"), array("f"), array("b"))
    for part, name, category, box, group in rows:
        if 0 <= box[2] * box[3] <= layout.min_area:
            continue
        if category not in listed:
            raise UserError(
                f"{folder}: {printable(name)} has an object of category {shorten(printable(category[1]))}, which the"
                " file's list of categories lacks: add it there, or take its objects away"
            )
        if category in codes:
            if (part, name) not in places:
                places[part, name] = find(part, name)
            if (picture := places[part, name]) is not None:
                check_box(box, name, folder)
                columns[2].extend(box)
                values = found.setdefault(picture, len(found)), codes[category], group
                for column, value in zip((columns[0], columns[1], columns[3]), values, strict=True):
                    column.append(value)
    picture, category, group = (np.array(columns[i]) for i in (0, 1, 3))
    order = np.argsort(picture, kind="stable")
    boxes, ends = np.array(columns[2], np.float32).reshape(-1, 4)[order], np.bincount(picture).cumsum()
    category, group, scenes = category[order].astype(np.int32), group[order].astype(bool), {}
    for name, start, end in zip(found, np.concatenate([[0], ends]).tolist(), ends.tolist(), strict=False):
        if layout.min_objects <= end - start <= layout.max_objects:
            part = slice(start, end)
            scenes[name] = {"boxes": boxes[part], "categories": category[part], "groups": group[part]}
    return scenes, class_names


def part_of_file(file: Path, splits: Mapping[str, str]) -> str:
    """The part of the data that a file's path names: 'train', 'validation' or 'test', or '' where it is not just one.

    splits: the folders of the images' parts, with their parts; other usual names count too.
    """
    name = file.with_suffix("").as_posix().lower()
    found = {part for folder, part in splits.items() if has_word(name, folder.lower())}
    found = found or {part for part, usual in PARTS.items() if usual.search(name)}
    return found.pop() if len(found) == 1 else ""


def has_word(text: str, word: str) -> bool:
    """Whether a text has a word that no letter or digit extends."""
    return re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", text) is not None


def merge_categories(names: dict[Category, str]) -> tuple[dict[Category, int], list[str]]:
    """Categories of several files are the same where their names are -> (numbers by category, names by number).

    They are in the order of their ids as text, and then of their names. Those of one name in one file stay apart.
    """
    keys, first, count = {}, {}, Counter()
    for number, category in sorted(names):
        name = names[number, category]
        key = keys[number, category] = name, count[number, name]
        first[key] = min(category, first.get(key, category))
        count[number, name] += 1
    order = sorted(first, key=lambda key: (first[key], key))
    numbers = {key: number for number, key in enumerate(order)}
    return {category: numbers[key] for category, key in keys.items()}, [name for name, _ in order]


def find_pictures(folder: Path, pictures: Mapping[str, str], claims: Claims) -> Callable[[str, str], str | None]:
    """How to find an image by the part of the data of a file, and the name that the file has for it.

    pictures: paths below images/, with the part of the data that each is in, or ''. A name is an image's path, its path
    without the first folder, or its file name; of several images, it is the one in the file's own part, and an image of
    another part only if no file of that part has it. The finder gives None for an image that is not there; it raises
    UserError for a name that several have.
    """
    by_name = defaultdict(list), defaultdict(list), defaultdict(list)
    for path in pictures:
        within = PurePosixPath(path)
        for named, name in zip(by_name, (path, PurePosixPath(*within.parts[1:]).as_posix(), within.name), strict=True):
            named[name].append(path)

    def find(part: str, name: str) -> str | None:
        there = [named[name] for named in by_name if name in named]
        mine = [[path for path in paths if part and pictures[path] == part] for paths in there]
        there, mine = (next(filter(None, levels), []) for levels in (there, mine))
        if not mine and part and claims.get(name, set()) - {part, ""}:  # the others' image of this name
            if all(pictures[path] for path in there):
                return None
            raise UserError(
                f"{folder}: files of several splits have an image {printable(name)}, and images/ has no folders of"
                " splits: which image is meant? data.splits names such folders (docs/data.md)"
            )
        if len(mine or there) > 1:
            same = ", ".join(map(printable, (mine or there)[:3]))
            raise UserError(
                f"{folder}: {printable(name)} may be any of {same}: give its path below images/, or name each file of"
                " annotations for its split, such as train.json"
            )
        return (mine or there or [None])[0]

    return find


def check_box(box: tuple[float, ...], picture: str, folder: Path) -> None:
    """Raises UserError for a box that leaves its image by more than a twentieth of a side, or is not of numbers."""
    left, top, width, height = box
    sides = (left, top, left + width, top + height)
    if not (min(width, height) > 0 and all(-0.05 <= side <= 1.05 for side in sides)):
        words = ", ".join(f"{side:.3g}" for side in sides)
        raise UserError(
            f"{folder}: {printable(picture)} has a box outside of it: {words} (left, top, right, bottom) of 0 to 1"
        )


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


def read_coco(folder: Path, parts: dict[Path, str]) -> tuple[dict[Category, str | None], Claims, Iterator[Row]]:
    """The names of the categories, None for 'other' as in the original, whose images there are, and all objects.

    parts: the files below a folder, with their parts of the data. Raises UserError for a file in another format.
    """
    files = [file for file in parts if file.suffix.lower() == ".json"]
    if not files:
        raise UserError(f"{folder} holds no JSON files, nor Open Images' CSV (docs/data.md has their format)")
    names, claims, contents = {}, defaultdict(set), []
    for number, file in enumerate(files):
        try:
            content = json.loads(read_file(file))
            categories = by_id(content, "categories", lambda entry: field(entry, "name", str))
            for category, name in categories.items():
                names[number, category] = None if name == "other" else name.encode(errors="replace").decode()
            pictures = by_id(content, "images", read_picture)
            for name, _ in pictures.values():
                claims[name].add(parts[file])
            objects = list(map(read_object, field(content, "annotations", list)))
            contents.append((number, file, pictures, objects))
        except (ValueError, OverflowError, RecursionError, OSError) as e:
            raise UserError(f"{file} is not in COCO's format: {one_line(e)}") from e

    def rows():
        for number, file, pictures, objects in contents:
            for picture, category, box, group in objects:
                if picture not in pictures:
                    raise UserError(
                        f"{file}: annotation of image {shorten(printable(picture))}, which is not in 'images'"
                    )
                name, sides = pictures[picture]
                if not all(type(side) in (int, float) and 0 < side < LARGEST for side in sides):
                    raise UserError(f"{file}: {printable(name)} has the width and the height {reprlib.repr(sides)}")
                yield parts[file], name, (number, category), box / np.float32([*sides, *sides]), group

    return names, claims, rows()


def by_id(content: Any, name: str, read: Callable[[Any], T]) -> dict[str, T]:
    """What `read` makes of the entries of a list, by their ids; raises ValueError where different ones have one id."""
    found = {}
    for entry in field(content, name, list):
        key, value = identify(entry, "id"), read(entry)
        if found.setdefault(key, value) != value:
            raise ValueError(f"two of {name!r} have the id {key}: {reprlib.repr(found[key])}, {reprlib.repr(value)}")
    return found


def identify(entry: Any, name: str) -> str:
    """An id as text; 1 and 1.0 are one."""
    value = field(entry, name, int, str, float)
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def read_picture(entry: Any) -> tuple[str, tuple]:
    """An image as COCO has it -> its file's name, and its width and height, which are not checked."""
    return field(entry, "file_name", str), (entry.get("width"), entry.get("height"))


def read_object(entry: Any) -> tuple[str, str, np.ndarray, bool]:
    """An object as COCO has it -> its image's id, its category, its box in pixels, and whether it is a group."""
    box, group = field(entry, "bbox", list), entry.get("iscrowd")
    if len(box) != 4 or not all(type(side) in (int, float) and abs(side) < LARGEST for side in box):
        raise ValueError(f"'bbox' is {reprlib.repr(box)}, not four numbers")
    if not isinstance(group, (int, float, type(None))):
        raise ValueError(f"'iscrowd' is {reprlib.repr(group)}, not 0 or 1")
    return identify(entry, "image_id"), identify(entry, "category_id"), np.float32(box), bool(group)


def field(entry: Any, name: str, *kinds: type) -> Any:
    """A field of an object of JSON; raises ValueError where it is missing or of another kind."""
    if not isinstance(entry, dict):
        raise ValueError(f"{reprlib.repr(entry)} stands where an object with {name!r} belongs")
    if name not in entry:
        raise ValueError(f"an object without {name!r}: {reprlib.repr(entry)}")
    if not isinstance(entry[name], kinds) or isinstance(entry[name], bool):
        raise ValueError(f"{name!r} is {reprlib.repr(entry[name])}")
    return entry[name]


def one_line(error: Exception) -> str:
    """What went wrong, short."""
    return printable(" ".join(str(error).split()))[:200]


def read_open_images(
    folder: Path, parts: dict[Path, str], boxes: list[Path]
) -> tuple[dict[Category, str | None], Claims, Iterator[Row]]:
    """As `read_coco`, for CSV files; `boxes` are those with the objects."""
    described = [file for file in parts if file.name.endswith(DESCRIBED)]
    if not described:
        raise UserError(f"{folder} holds no {DESCRIBED}, which Open Images has beside its boxes")
    names = {}
    for number, line in read_csv(described[0]):
        if len(line) == 2 and line[0] != "LabelName" and names.setdefault((0, line[0]), line[1]) != line[1]:
            raise UserError(f"{described[0]}, line {number}: {show(line[0])} has another name already")

    def rows():
        for path in boxes:
            lines = read_csv(path, progress=True)
            _, header = next(lines, (1, []))
            columns = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
            if missing := set(columns) - set(header):
                raise UserError(f"{path} has no column {', '.join(sorted(missing))}")
            where = [header.index(name) for name in columns]
            for number, line in lines:
                try:
                    picture, category, *sides, group = (line[i] for i in where)
                    left, right, top, bottom = map(float, sides)
                except (ValueError, IndexError) as e:
                    raise UserError(f"{path}, line {number}: {one_line(e)}") from e
                box = (left, top, right - left, bottom - top)
                yield parts[path], f"{picture}.jpg", (0, category), box, group == "1"

    return names, {}, rows()


def read_csv(path: Path, progress: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yields the lines of a CSV file with their numbers from 1; raises UserError for what is none."""
    number = 0
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = iter(partial(file.readline, LONGEST), "")  # a file of zeros is one line
            lines = bar(lines, path.name, unit="line", unit_scale=True, disable=not progress)
            for number, line in enumerate(csv.reader(lines), 1):
                yield number, line
    except (csv.Error, ValueError, OSError) as e:
        raise UserError(f"{path}, after line {number}, is no CSV file: {one_line(e)}") from e
