"""Reads an image, from a file or from memory, as a feature of a record."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from taming_jax.data.features import FEATURES
from taming_jax.data.transforms import decode
from taming_jax.errors import ArgumentError, UserError
from taming_jax.images import to_uint8

try:
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()
Image.init()
# EPS and WMF start programs, and an IPTC holds any other format; the rest are no pictures in colours, or stubs.
NOT_PICTURES = {"EPS", "WMF", "IPTC", "FITS", "HDF5", "GRIB", "BUFR", "MPEG", "XVTHUMB"}
FORMATS = tuple(name for name in Image.ID if name not in NOT_PICTURES)  # in the order in which Pillow tries them
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises
FARTHEST = 1e9  # depth; colours in RGBA, read as floats, are far beyond, or not numbers
ARRAYS = "imgHQ*.npy"  # CelebA-HQ as its tool writes it: uint8 [1,3,H,W]


def read(file: Path, kind: str, label_shift: int = 0) -> np.ndarray | str:
    """Reads a file as a feature of a record: an image, see `to_feature`, or a text. Raises ValueError or OSError."""
    if FEATURES[kind].ending == ".txt":
        return file.read_text(encoding="utf-8")
    if file.match(ARRAYS):
        if kind not in ("image", "other"):
            raise ValueError(f"{file.name} is a picture in colours")
        return read_array(file)
    with Image.open(file) as picture:
        return to_feature(picture, kind, label_shift, file.name)


def to_feature(picture: Image.Image, kind: str, label_shift: int = 0, name: str = "picture") -> np.ndarray:
    """An image as a feature of a record. Raises ValueError or OSError for an image that cannot be read as that kind.

    image, other: uint8 [H,W,3]. line: uint8 [H,W,1]. segmentation: labels uint8 [H,W], plus `label_shift`; with a shift
    of 1, 255 (no label) becomes 0 as in the original's COCO-Stuff. depth: float32 [H,W,1], from 8 or 16 bit grey, from
    floats, or from the four bytes of a float as RGBA (the original's); each image is stretched to [-1, 1].
    """
    if kind in ("image", "other"):
        return decode(picture)
    if kind == "line":
        return np.asarray(Image.fromarray(decode(picture)).convert("L"))[..., None]
    values = np.asarray(picture)
    if kind == "segmentation":
        if picture.mode not in ("L", "P"):
            raise ValueError(f"{name} has mode {picture.mode}: maps of labels are 8-bit grey or palette PNGs")
        return values + np.uint8(label_shift)
    if picture.mode == "RGBA":
        values = np.ascontiguousarray(values).view("<f4")[..., 0]
    elif picture.mode not in ("L", "I;16", "I", "F"):
        raise ValueError(f"{name} has mode {picture.mode}: depth is grey, or a float's four bytes as RGBA")
    values = values.astype(np.float32)
    worst = values.flat[np.argmax(np.abs(values))]  # or the first NaN, if there is one
    if not abs(worst) < FARTHEST:
        raise ValueError(f"{name} holds the depth {worst:g}: it is no map of depths, or a damaged one")
    span = max(1e-8, values.max() - values.min())
    return (2 * (values - values.min()) / span - 1)[..., None]


def open_picture(
    picture: str | Path | Image.Image | np.ndarray, kind: str = "image", label_shift: int = 0
) -> np.ndarray:
    """A user's image (a file, a PIL image or an array) -> a feature of a record.

    Arrays are [H,W], [H,W,1] or [H,W,3], of uint8 or floats: in [-1, 1] for images in colours and lines, of any range
    for depth. Raises ValueError or OSError for an image that cannot be read as that kind.
    """
    if isinstance(picture, (str, Path)):
        return read(Path(picture), kind, label_shift)
    if isinstance(picture, Image.Image):
        return to_feature(picture, kind, label_shift)
    array = np.asarray(picture)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or not array.size:
        raise ValueError(f"an array of shape {np.shape(picture)}: a picture is [H,W], [H,W,1] or [H,W,3]")
    if kind in ("depth", "segmentation") and array.ndim != 2:
        raise ValueError(f"an array of shape {np.shape(picture)}: a map is [H,W] or [H,W,1]")
    if kind == "segmentation" and array.dtype.kind in "iu":
        if array.min() < 0 or array.max() > 255:
            raise ValueError(f"labels from {array.min()} to {array.max()}: they are 0 to 255")
        array = array.astype(np.uint8)
    elif array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError("an array with numbers that are not finite")
        if kind != "depth" and np.abs(array).max() > 1:
            raise ValueError(f"floats from {array.min():g} to {array.max():g}: they are within [-1, 1]")
        array = array.astype(np.float32) if kind == "depth" else to_uint8(array)
    elif array.dtype != np.uint8:
        raise ValueError(f"an array of {array.dtype}: a picture is uint8, or floats in [-1, 1]")
    return to_feature(Image.fromarray(array), kind, label_shift, "the array")


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Within, an image that cannot be read raises ArgumentError; `what` names it in the message."""
    try:
        yield
    except UNREADABLE as e:
        raise ArgumentError(f"{what} cannot be read: {' '.join(str(e).split())}") from e


def read_array(file: Path) -> np.ndarray:
    """Reads an image of CelebA-HQ, uint8 [1,3,H,W] in the file -> [H,W,3]. Raises ValueError for other arrays."""
    with file.open("rb") as opened:
        array = np.lib.format.read_array(opened, allow_pickle=False)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[:2] != (1, 3):
        raise ValueError(f"{array.dtype} {array.shape}, not uint8 (1, 3, height, width)")
    return np.ascontiguousarray(array[0].transpose(1, 2, 0))


def check_labels(labels: np.ndarray, name: Path | str, num_labels: int, label_shift: int) -> None:
    """Raises UserError for a label that the model does not have; `name` names the map in the message."""
    if labels.max() >= num_labels:
        found, shift = int(labels.max()) - label_shift, f" plus data.label_shift={label_shift}" if label_shift else ""
        raise UserError(f"{name} holds the label {found}{shift}; the model has the labels 0 to {num_labels - 1}")
