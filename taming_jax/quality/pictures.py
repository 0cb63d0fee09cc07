"""Sets of pictures to judge: a split of a run's data; a folder, or an archive in ADM's layout, made by whomever."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from taming_jax import data
from taming_jax.completion import check_classes
from taming_jax.console import bar
from taming_jax.data.files import open_image
from taming_jax.data.walk import tell, walk_pictures
from taming_jax.errors import ArgumentError, printable, reason

MODES = ("RGB", "L")
FIRST = 64  # pictures of a split that its hash is of


class Pictures(NamedTuple):
    """A set of `count` pictures of one size.

    about: what they are, as JSON, equal for equal pictures. read: (from, to) -> uint8 [to - from,H,W,3]. labels: for a
    split, (number) -> the classes of the first ones, int [number].
    """

    count: int
    about: dict
    read: Callable[[int, int], np.ndarray]
    labels: Callable[[int], np.ndarray] | None = None


def of_split(config: ConfigDict, split: str, most: int = 0, size: tuple[int, int] | None = None) -> Pictures:
    """The centres of a split's pictures as the run sees them, in the order of an evaluation; most: how many, 0 for all.

    size: (height, width) that whole pictures are fitted to, if it is not that of training. In the place of one that
    cannot be read stands the next one. Raises UserError for classes that the run does not have.
    """
    source = data.open_source(config.data, split)
    check_classes(config, source.class_names)
    augment = data.make_augment(config.data)
    if size is not None and size != augment.size:
        augment = dataclasses.replace(augment, size=size, resize_factor=1.0)
    order = data.eval_order(source)
    order = order[: most or len(order)]
    labels = np.full(len(order), -1)

    def read(start: int, stop: int) -> np.ndarray:
        found = [source.read(int(i), augment.centered) for i in order[start:stop]]
        labels[start:stop] = [row["label"] for row in found]
        return np.stack([row["image"] for row in found])

    def read_labels(number: int) -> np.ndarray:
        unread = np.flatnonzero(labels[:number] < 0)  # of pictures whose features were kept
        for i in bar(unread, "reading classes", unit="picture"):
            read(i, i + 1)
        return labels[:number]

    fields = {name: config.data[name] for name in ("name", "path", "size", "resize_factor", "validation_share")}
    fields["size"] = list(augment.size)
    first = hashlib.sha256(read(0, min(FIRST, len(order)))).hexdigest()  # a hash of all would take too long
    about = dict(kind="split", split=split, count=len(order), of=len(source), first_pictures=first, data=fields)
    return Pictures(len(order), about, read, read_labels)


def open_pictures(name: str, path: Path) -> Pictures:
    """The pictures of a folder or of an .npz file with arr_0, uint8 [N,H,W,3]; name: of the flag, for errors.

    Raises ArgumentError for what holds no pictures, or pictures of several sizes or of other modes.
    """
    if path.is_dir():
        return open_folder(name, path)
    if path.suffix == ".npz":
        return open_archive(name, path)
    raise ArgumentError(f"{name}={path}: it is a folder of pictures, or an .npz file")


def open_folder(name: str, path: Path) -> Pictures:
    """A folder's pictures in the order of their names. What `sample` has written is taken without its sheets."""
    files, left_out = walk_pictures(path)
    if not files:
        raise ArgumentError(f"{name}={path} holds no pictures{tell(left_out)}")
    first = read_picture(name, files[0]).shape

    def read(start: int, stop: int) -> np.ndarray:
        found = [read_picture(name, file) for file in files[start:stop]]
        for file, picture in zip(files[start:stop], found, strict=True):
            if picture.shape != first:
                sizes = " and ".join("x".join(map(str, shape[:2])) for shape in (first, picture.shape))
                raise ArgumentError(
                    f"{name}={path}: {sizes} pixels ({files[0].name}, {file.name}); crop all to one size first"
                )
        return np.stack(found)

    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    about = dict(kind="folder", path=str(path), sha256=digest.hexdigest(), count=len(files), size=list(first[:2]))
    return Pictures(len(files), about, read)


def read_picture(name: str, file: Path) -> np.ndarray:
    """A picture in colours, uint8 [H,W,3]; grey ones become grey colours, all else is refused."""
    try:
        with open_image(file) as picture:
            mode = picture.mode
            found = np.asarray(picture.convert("RGB")) if mode in MODES else None
    except Exception as e:  # whatever is wrong with a file
        raise ArgumentError(f"{name}: {printable(str(file))} cannot be read ({reason(e)})") from e
    if found is None:
        raise ArgumentError(f"{name}: {printable(str(file))} is in the mode {mode}; save pictures as RGB or grey")
    return found


def open_archive(name: str, path: Path) -> Pictures:
    """ADM's layout: arr_0 holds the pictures, uint8 [N,H,W,3]."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = archive["arr_0"] if "arr_0" in archive else None
            names = list(archive)
    except Exception as e:  # damage surfaces anywhere in numpy and zipfile
        raise ArgumentError(f"{name}={path} cannot be read as an archive of arrays ({reason(e)})") from e
    if images is None:
        raise ArgumentError(f"{name}={path}: it has no arr_0, uint8 [N,H,W,3], but {', '.join(names) or 'nothing'}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ArgumentError(f"{name}={path}: arr_0 is {images.dtype} {images.shape}, not uint8 [N,H,W,3]")
    digest = hashlib.sha256(np.ascontiguousarray(images)).hexdigest()
    about = dict(
        kind="archive", path=str(path), sha256=digest, count=len(images), size=[int(n) for n in images.shape[1:3]]
    )
    return Pictures(len(images), about, lambda start, stop: images[start:stop])
