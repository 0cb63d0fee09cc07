"""Folders of files: images alone, found recursively, or images with other features of each."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from taming_jax.data.annotations import read_annotations
from taming_jax.data.features import DERIVED, FEATURES, PICTURES
from taming_jax.data.files import ARRAYS, check_labels, read
from taming_jax.errors import UserError

BESIDE = {name: feature for name, feature in FEATURES.items() if feature.folder and name != "image"}
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


class FolderSource:
    """Random access to image files. `class_names` are the sub-folders that hold them, () where there are none.

    depth: how many levels below the root the class folders lie.
    scenes: the images' scenes, see `find_name`; with them, the class names are those of the objects.
    """

    def __init__(
        self, root: Path, files: list[Path], class_names: list[str], data: ConfigDict, scenes: dict | None, depth: int
    ):
        self.root, self.files, self.class_names, self.scenes, self.depth = root, files, class_names, scenes, depth
        self.label_shift, self.num_labels = data.label_shift, data.num_labels
        self.kinds = [name for name, feature in BESIDE.items() if feature.ending and name in data.features]

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"FolderSource({str(self.root)!r}, {len(self.files)} files)"

    def __getitem__(self, index: int) -> dict:
        file = self.files[index]
        relative = file.relative_to(self.root)
        record = {"image": read(file, "image"), "label": 0}
        if self.scenes is not None:
            record |= self.scenes[find_name(self.scenes, relative)]
        elif self.class_names:
            record["label"] = self.class_names.index(relative.parts[self.depth])
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
        """The path of an image's feature."""
        return self.root.parent / FEATURES[kind].folder / relative.with_suffix(FEATURES[kind].ending)

    def describe(self, index: int) -> str:
        return str(self.files[index])


def find_name(scenes: dict, relative: Path) -> str | None:
    """The name of an image's scene: its path below the root, that path without the split, or its file name."""
    names = (
        relative.as_posix(),
        Path(*relative.parts[1:]).as_posix() if len(relative.parts) > 1 else "",
        relative.name,
    )
    return next((name for name in names if name in scenes), None)


def source(data: ConfigDict, split: str) -> FolderSource:
    """Images below `data.path`; `data.validation_share` of them are held out, chosen by a hash of their relative path.

    If every image lies in a sub-folder, the first-level sub-folders are the classes. With other features, images lie in
    images/ and the other features beside it, see `features.FEATURES`. If both sub-folders that `data.splits` names
    exist, they are the splits, and classes lie in them; a `validation_share` of 1 takes all images.
    """
    if not data.path:
        raise UserError(
            "data.path is empty: name a folder of images, data.path of the config in training, data_path where a run is"
            " evaluated or sampled"
        )
    root = Path(data.path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path={data.path}: there is no such folder; docs/data.md has where data sets come from")
    kinds = sorted(set(data.features) - {"image"} - DERIVED)
    if unknown := [kind for kind in kinds if kind not in BESIDE]:
        raise UserError(f"data.features: folders hold {', '.join(sorted(BESIDE))}, no {', '.join(unknown)}")
    for name in ["images", *(BESIDE[kind].folder for kind in kinds)] if kinds else []:
        if not (root / name).is_dir():
            raise UserError(f"data.path={data.path}: there is no folder {name}/ in it (docs/data.md has the layout)")
    root = root / "images" if kinds else root
    parts = [root / data.splits[name] for name in ("train", "validation")]
    given = parts[0].is_dir() and parts[1].is_dir()
    others = [name for name in ("val", "valid", "test") if (root / name).is_dir()]
    if parts[0].is_dir() != parts[1].is_dir() and (kinds or others):
        there, lacking = sorted(parts, key=Path.is_dir, reverse=True)
        raise UserError(
            f"{there} is there, {lacking} is not: name both by data.splits, or have neither"
            + (f"; data.splits.validation={others[0]}, perhaps" if others else "")
        )
    files = sorted(p for p in root.rglob("*") if (p.suffix.lower() in ENDINGS or p.match(ARRAYS)) and p.is_file())
    if len(files) < 2:
        raise UserError(
            f"data.path={data.path}: {len(files)} images found, at least 2 are needed; endings are {' '.join(ENDINGS)}"
            f" (or {ARRAYS})"
        )
    scenes, class_names = None, []
    if "objects" in kinds:
        beside = root.parent / "objects"
        scenes, class_names = read_annotations(beside, data.layout)
        files = [file for file in files if find_name(scenes, file.relative_to(root)) is not None]
    if given:
        files = [file for file in files if any(map(file.is_relative_to, parts))]
    depth = int(given)  # of the classes' folders
    folders = [p.relative_to(root).parts[depth:-1] for p in files]
    if scenes is None and all(folders):
        class_names = sorted({names[0] for names in folders})
    if scenes is not None and not files:
        raise UserError(
            f"data.path={data.path}: no picture in images/ has a scene in objects/, with"
            f" {data.layout.min_objects} to {data.layout.max_objects} objects; the file names must be the same"
        )
    if given and data.validation_share < 1:  # else all are asked for
        files = [file for file in files if file.is_relative_to(root / data.splits[split])]
        return FolderSource(root, files, class_names, data, scenes, depth)

    def place(file: Path) -> float:
        digest = hashlib.blake2b(file.relative_to(root).as_posix().encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2**64

    held_out = {f for f in files if place(f) < data.validation_share} or set(sorted(files, key=place)[:1])
    if split == "train" and len(held_out) == len(files):
        raise UserError(f"data.validation_share={data.validation_share:g} leaves no image to train on")
    files = [f for f in files if (f in held_out) == (split == "validation")]
    return FolderSource(root, files, class_names, data, scenes, depth)
