"""Folders of files: images alone, found recursively, or images with other features of each."""

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from taming_jax.console import say
from taming_jax.data.annotations import read_annotations
from taming_jax.data.classes import number_classes
from taming_jax.data.features import DERIVED, FEATURES, PICTURES
from taming_jax.data.files import check_labels, read
from taming_jax.data.walk import LeftOut, find_images, find_splits, listed, tell, walk_pictures
from taming_jax.errors import UserError, printable

BESIDE = {name: feature for name, feature in FEATURES.items() if feature.folder and name != "image"}
say_once = functools.cache(say)  # what a folder holds is the same for both splits


class FolderSource:
    """Random access to image files. `class_names` are the sub-folders that hold them, () where there are none.

    classes: the files' own, as `class_names` has them. Labels are the run's, see `classes.number_classes`.
    scenes: the images' scenes, by their paths below the root; with them, the class names are those of the objects.
    """

    def __init__(
        self,
        root: Path,
        files: list[Path],
        class_names: list[str],
        data: ConfigDict,
        scenes: dict | None,
        classes: list[str],
    ):
        self.root, self.files, self.class_names, self.scenes = root, files, class_names, scenes
        # Only a run that counts classes minds one that it lacks, see `completion.check_classes`.
        self.numbers = [number or 0 for number in number_classes(class_names, data.class_names)]
        numbers = dict(zip(class_names, self.numbers, strict=True))
        self.labels = np.int32([numbers.get(name, 0) for name in classes])
        self.label_shift, self.num_labels = data.label_shift, data.num_labels
        self.kinds = [name for name, feature in BESIDE.items() if feature.ending and name in data.features]

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"FolderSource({str(self.root)!r}, {len(self.files)} files)"

    def __getitem__(self, index: int) -> dict:
        file = self.files[index]
        relative = file.relative_to(self.root)
        record = {"image": read(file, "image"), "label": int(self.labels[index])}
        if self.scenes is not None:
            scene = self.scenes[relative.as_posix()]
            record |= scene | {"categories": np.int32(self.numbers)[scene["categories"]]}
        for kind in self.kinds:
            beside = self.beside(relative, kind)
            record[kind] = read(beside, kind, self.label_shift)
            if kind == "segmentation":
                check_labels(record[kind], beside, self.num_labels, self.label_shift)
            if kind in PICTURES and record[kind].shape[:2] != record["image"].shape[:2]:
                raise ValueError(f"{beside} is {record[kind].shape[:2]}, its image {record['image'].shape[:2]}")
        return record

    def texts(self, kind: str) -> Iterator[str]:
        """That feature of every record; reads no images."""
        for file in self.files:
            yield read(self.beside(file.relative_to(self.root), kind), kind)

    def beside(self, relative: Path, kind: str) -> Path:
        """The path of an image's feature; its ending may be in capitals."""
        ending = FEATURES[kind].ending
        file = self.root.parent / FEATURES[kind].folder / relative.with_suffix(ending)
        loud = file.with_suffix(ending.upper())
        return loud if not file.exists() and loud.exists() else file

    def describe(self, index: int) -> str:
        return printable(str(self.files[index]))


def class_name(folder: str) -> str:
    """The name of a class as text; bytes of a folder's name that are no UTF-8 are written as \\xe9."""
    return os.fsencode(folder).decode(errors="backslashreplace")


def source(data: ConfigDict, split: str) -> FolderSource:
    """Images below `data.path`; `data.validation_share` of them are held out, chosen by a hash of their relative path.

    If every image lies in a sub-folder, the first-level sub-folders are the classes. With other features, images lie in
    images/ and the other features beside it, see `features.FEATURES`. If there are folders of splits, see
    `walk.find_splits`, classes lie in them; a `validation_share` of 1 takes all images. Says what the folder holds and
    what is left out, see `walk.walk_pictures`.
    """
    root, kinds = find_root(data)
    files, left_out = walk_pictures(root)
    base = root if kinds else find_images(root, files, data, [feature.folder for feature in BESIDE.values()])
    if base != root:
        files = keep_below(root, files, [base], left_out)
    parts = find_splits(base, files, data, bool(kinds))
    if parts:
        files = keep_below(root, files, parts, left_out)
    least = 2 if split == "train" else 1
    if len(files) < least:
        raise UserError(
            f"data.path={data.path}: {len(files)} image{'s' * (len(files) != 1)} found, at least {least} needed"
            f"{tell(left_out)}; docs/data.md has what counts as an image"
        )
    scenes, class_names = None, []
    if "objects" in kinds:
        files, scenes, class_names = keep_scenes(root, files, parts, left_out, data)
    folders = dict(zip(files, class_folders(base, files, parts), strict=True))
    if scenes is None and all(folders.values()):
        class_names = sorted(set(folders.values()))
    in_folder = parts and data.validation_share < 1  # with a share of 1, all are asked for
    if in_folder:
        held_out = {file for file in files if part_of_image(file, parts)[1] == "validation"}
    else:
        held_out = hold_out(root, files, data.validation_share)
    text = f"{len(files)} image{'s' * (len(files) > 1)}"
    if class_names:
        text += f" in {len(class_names)} class{'es' * (len(class_names) > 1)} ({listed(class_names)})"
    if data.validation_share < 1:
        text += f", {len(held_out)} held out"
        text += (
            f" in {named(root, parts, 'validation')}, the others in {named(root, parts, 'train')}" if in_folder else ""
        )
    if scenes is None and not all(folders.values()) and any(folders.values()):
        strays = [file.name for file, name in folders.items() if not name]
        beside = sorted(set(filter(None, folders.values())))
        text += (
            f"; no classes, as some lie beside the folders {listed(beside)}:"
            f" move {listed(strays, 3)} away to have those as classes"
        )
    say_once(f"{printable(str(data.path))}: {text}{tell(left_out)}")
    if split == "train" and len(held_out) == len(files) and not in_folder:
        raise UserError(f"data.validation_share={data.validation_share:g} leaves no image to train on")
    files = [file for file in files if (file in held_out) == (split == "validation")]
    return FolderSource(root, files, class_names, data, scenes, [folders[file] for file in files])


def find_root(data: ConfigDict) -> tuple[Path, list[str]]:
    """The folder of the images, and the features that lie beside it; raises UserError where something is not there."""
    if not data.path:
        raise UserError(
            "data.path is empty: name a folder of images, data.path of the config in training, data_path where a run is"
            " evaluated or sampled"
        )
    root = Path(os.path.expanduser(data.path))
    if not os.path.isdir(root):
        raise UserError(f"data.path={data.path}: there is no such folder; docs/data.md has where data sets come from")
    kinds = sorted(set(data.features) - {"image"} - DERIVED)
    if unknown := [kind for kind in kinds if kind not in BESIDE]:
        raise UserError(f"data.features: folders hold {', '.join(sorted(BESIDE))}, no {', '.join(unknown)}")
    for name in ["images", *(BESIDE[kind].folder for kind in kinds)] if kinds else []:
        if not (root / name).is_dir():
            raise UserError(f"data.path={data.path}: there is no folder {name}/ in it (docs/data.md has the layout)")
    return root / "images" if kinds else root, kinds


def keep_below(root: Path, files: list[Path], folders: Collection[Path], left_out: LeftOut) -> list[Path]:
    """The images below some folders; the others are added to what is left out."""
    kept, others, below = [], [], set(folders)
    for file in files:
        (others if below.isdisjoint(file.parents) else kept).append(file)
    names = Counter()
    for file in others:
        parts = file.relative_to(root).parts
        names[f"{parts[0]}/" if len(parts) > 1 else file.name] += 1
    words = [f"{folder.relative_to(root)}/" for folder in folders]
    left_out[f"beside {' and '.join(words) if len(words) < 3 else listed(words, 2)}"].update(names)
    return kept


def part_of_image(file: Path, parts: dict[Path, str]) -> tuple[Path | None, str]:
    """The innermost folder of a split that holds an image, and its part of the data; (None, '') if there is none."""
    return next(((folder, parts[folder]) for folder in file.parents if folder in parts), (None, ""))


def class_folders(base: Path, files: list[Path], parts: dict[Path, str]) -> list[str]:
    """The names of the images' class folders: the first below the base, or below the split; '' where there is none.

    Where several folders have splits of their own, those are the classes.
    """
    above = sorted({folder.parent for folder in parts})
    common = Path(os.path.commonpath(above)) if above else base
    names = []
    for file in files:
        folder = part_of_image(file, parts)[0] or base
        within = folder.relative_to(common).parts if len(set(parts.values())) < len(parts) else ()
        within = (within or file.relative_to(folder).parts)[:-1]
        names.append(class_name(within[0]) if within else "")
    return names


def named(root: Path, parts: dict[Path, str], part: str) -> str:
    """The folders of a part of the data: 'cat/val/, dog/val/ and 3 more'."""
    return listed(f"{folder.relative_to(root)}/" for folder, its in parts.items() if its == part)


def keep_scenes(
    root: Path, files: list[Path], parts: dict[str, Path], left_out: LeftOut, data: ConfigDict
) -> tuple[list[Path], dict[str, dict], list[str]]:
    """The images that have scenes, these by the images' paths, and the names of the categories."""
    pictures = {file.relative_to(root).as_posix(): part_of_image(file, parts)[1] for file in files}
    scenes, class_names = read_annotations(
        root.parent / "objects", data.layout, pictures, {folder.name: part for folder, part in parts.items()}
    )
    kept = [file for file, picture in zip(files, pictures, strict=True) if picture in scenes]
    number = f"{data.layout.min_objects} to {data.layout.max_objects} objects"
    if not kept:
        raise UserError(
            f"data.path={data.path}: no picture in images/ has a scene in objects/, with {number}; the file names must"
            " be the same"
        )
    left_out[f"without a scene of {number}"][""] += len(files) - len(kept)
    return kept, scenes, class_names


def hold_out(root: Path, files: list[Path], share: float) -> set[Path]:
    """The share of the files that is held out, at least one: those with the smallest hashes of their relative paths."""

    def place(file: Path) -> float:
        digest = hashlib.blake2b(os.fsencode(file.relative_to(root).as_posix()), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    return {file for file in files if place(file) < share} or set(sorted(files, key=place)[:1])
