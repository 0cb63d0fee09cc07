"""Reads an image, from a file or from memory, as a feature of a record."""

import io
import re
import stat
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from taming_jax.data.features import FEATURES
from taming_jax.data.transforms import decode, strips
from taming_jax.errors import ArgumentError, UserError, printable, reason
from taming_jax.images import to_uint8

try:
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()
Image.preinit()
Image.init()
# EPS and WMF start programs, and an IPTC holds any format; the others are stubs, or no pictures in colours.
NOT_PICTURES = {"EPS", "WMF", "IPTC", "FITS", "HDF5", "GRIB", "BUFR", "MPEG", "XVTHUMB"}
FORMATS = tuple(name for name in Image.ID if name not in NOT_PICTURES)  # in the order in which Pillow tries them
# They are about metadata, which do not matter, and about large pictures, which are read or refused by name.
warnings.filterwarnings("ignore", module=r"PIL\.")
FARTHEST = 1e9  # depth; colours in RGBA, read as floats, are far beyond, or not numbers
ARRAYS = "imgHQ*.npy"  # CelebA-HQ as its tool writes it: uint8 [1,3,H,W]
LARGEST, LONGEST = 2**31, 2**20  # bytes in the file of a picture, and of a text
AGAIN = 2**28  # bytes in the file of a picture with damaged metadata, which is taken into memory
# Pixels of a picture: with 7 bytes for each, in Pillow and in an array, 0.8 GB. A few kB may hold as many.
MOST = 120_000_000
PNG, JPEG, TIFF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", (b"II*\0", b"MM\0*")
AVIF = b"ftyp"  # and HEIF; it comes after four bytes


class TooLargeError(ValueError):
    """A picture has more pixels than MOST."""


def read(file: Path, kind: str, label_shift: int = 0) -> np.ndarray | str:
    """Reads a file as a feature of a record: an image, see `to_feature`, or a text. Raises any exception."""
    if FEATURES[kind].ending == ".txt":
        return read_text(file)
    if file.match(ARRAYS):
        if kind not in ("image", "other"):
            raise ValueError(f"{file.name} is a picture in colours")
        return read_array(file)
    with open_image(file) as picture:
        return to_feature(picture, kind, label_shift, file.name)


def read_file(file: Path, most: int = LARGEST) -> bytes:
    """Reads a regular file of at most so many bytes. Raises ValueError for any other, and OSError."""
    size = check_file(file, most)
    with file.open("rb") as opened:
        content = opened.read(max(size, LONGEST) + 1)  # those of /proc say that they are empty
    if len(content) > max(size, LONGEST):
        raise ValueError(f"{file} grows while it is read")
    return content


def check_file(file: Path, most: int = LARGEST) -> int:
    """The size of a file. Raises ValueError for a device or a pipe, which may have no end, and for a larger file."""
    state = file.stat()
    if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
        raise ValueError(f"{file} is a device or a pipe, no regular file")
    if state.st_size > most:
        raise ValueError(f"{file} holds more than {most} bytes")
    return state.st_size


def read_text(file: Path) -> str:
    """Reads a text. Raises ValueError with the file's name for what is none, and OSError."""
    try:
        text = read_file(file, LONGEST).decode("utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{file} is not in UTF-8") from e
    if "\0" in text:
        raise ValueError(f"{file} holds zero bytes, and so no text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def open_image(file: Path) -> Image.Image:
    """Opens a picture, one of FORMATS by its content, and loads its pixels. Damaged metadata do not matter.

    Raises ValueError for more pixels than MOST or PIL's limit, and whatever Pillow raises.
    """
    size = check_file(file)
    try:
        picture = Image.open(file, formats=FORMATS)
        check_size(*picture.size)
        picture.load()
        return picture
    except TooLargeError:
        raise
    except Image.DecompressionBombError as e:
        pixels = int(re.search(r"\d+", str(e))[0])
        raise ValueError(f"{pixels / 1e6:.0f} million pixels, over PIL's limit against decompression bombs") from e
    except Exception as damaged:
        with file.open("rb") as opened:
            magic = opened.read(8)
        if size > AGAIN or not (magic.startswith((PNG, JPEG, *TIFF)) or magic.endswith(AVIF)):
            raise
        try:
            return load_pixels(without_metadata(file.read_bytes()))
        except TooLargeError:
            raise
        except Exception:
            raise damaged from None


def check_size(width: int, height: int) -> None:
    """Raises TooLargeError for a picture of more pixels than MOST."""
    if width * height > MOST:
        raise TooLargeError(
            f"{height}x{width}, {width * height / 1e6:.0f} million pixels: over the limit of {MOST / 1e6:.0f} million"
        )


def load_pixels(content: bytes) -> Image.Image:
    """Opens a picture and loads its pixels, without the metadata that Pillow reads after them."""
    picture = Image.open(io.BytesIO(content), formats=FORMATS)
    with suppress(Exception):
        picture.getexif()  # while the file is open; what it has found until it fails, stays
    check_size(*picture.size)
    picture.load_end = lambda: None
    picture.load()
    return picture


def without_metadata(content: bytes) -> bytes:
    """A PNG, a JPEG or an AVIF without the parts that its pixels do not need; other contents as they are."""
    if content.startswith(PNG):
        parts, at = [PNG], len(PNG)
        while at < len(content):
            end = at + 12 + int.from_bytes(content[at : at + 4])
            name, checked = content[at + 4 : at + 8], content[at + 4 : end - 4]
            whole = zlib.crc32(checked) == int.from_bytes(content[end - 4 : end])
            if name[:1].isupper() or name == b"tRNS" or (name == b"eXIf" and whole):
                parts.append(content[at:end])
            at = end
        return b"".join(parts)
    if content.startswith(JPEG):
        parts, at = [JPEG], len(JPEG)
        while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] != b"\xda":  # up to the pixels
            marker, end = content[at + 1], at + 2 + int.from_bytes(content[at + 2 : at + 4])
            colours = marker in (0xE0, 0xEE) and end - at >= 16  # JFIF's and Adobe's
            orientation = content[at + 4 : at + 8] == b"Exif"
            if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or colours or orientation:
                parts.append(content[at:end])
            at = end
        return b"".join(parts) + content[at:]
    if content[4:8] == AVIF:
        return content.replace(b"Exif", b"none")  # the name of a part, which is then skipped
    return content


def to_feature(picture: Image.Image, kind: str, label_shift: int = 0, name: str = "picture") -> np.ndarray:
    """An image as a feature of a record. Raises ValueError or OSError for an image that cannot be read as that kind.

    image, other: uint8 [H,W,3]. line: uint8 [H,W,1]. segmentation: labels uint8 [H,W], plus `label_shift`; with a
    shift, 255 (no label) becomes 0 as in the original's COCO-Stuff. depth: float32 [H,W,1], from 8 or 16 bit grey, from
    floats, or from the four bytes of a float as RGBA (the original's); each image is stretched to [-1, 1].
    """
    picture.load()  # only then is the mode known
    if kind in ("image", "other"):
        return decode(picture)
    if kind == "line":
        return decode(picture, "L")[..., None]
    if kind == "segmentation":
        if picture.mode not in ("L", "P"):
            raise ValueError(f"{name} has mode {picture.mode}: maps of labels are 8-bit grey or palette PNGs")
        return shift_labels(np.asarray(picture), label_shift, name)
    if picture.mode not in ("RGBA", "L", "I;16", "I", "F"):
        raise ValueError(f"{name} has mode {picture.mode}: depth is grey, or a float's four bytes as RGBA")
    values = np.empty((picture.height, picture.width), np.float32)
    for rows, strip in strips(picture):
        array = np.asarray(strip)
        values[rows] = np.ascontiguousarray(array).view("<f4")[..., 0] if strip.mode == "RGBA" else array
    low, high = values.min(), values.max()  # NaN, if there is one
    worst = low if abs(low) > abs(high) else high
    if not abs(worst) < FARTHEST:
        raise ValueError(f"{name} holds the depth {worst:g}: it is no map of depths, or a damaged one")
    values -= low  # in place, as a map may be large
    values *= 2
    values /= max(1e-8, high - low)
    values -= 1
    return values[..., None]


def shift_labels(labels: np.ndarray, shift: int, name: str) -> np.ndarray:
    """Labels uint8 [H,W] plus a shift, 255 as 0 if there is one; raises UserError where they are more than 255."""
    if not shift:
        return labels
    largest = int(labels.max(initial=0, where=labels < 255))
    if largest + shift > 255:
        raise UserError(f"{name} holds the label {largest} plus data.label_shift={shift}: labels are at most 255")
    return np.where(labels == 255, np.uint8(0), labels + np.uint8(shift))


def open_picture(
    picture: str | Path | Image.Image | np.ndarray, kind: str = "image", label_shift: int = 0
) -> np.ndarray:
    """A user's image (a file, a PIL image or an array) -> a feature of a record.

    Arrays are [H,W], [H,W,1] or [H,W,3], of uint8 or floats: in [-1, 1] for images in colours and lines, of any range
    for depth. Raises any exception for an image that cannot be read as that kind; see `refusing`.
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
    except UserError:
        raise
    except Exception as e:
        raise ArgumentError(f"{printable(what)} cannot be read: {reason(e)}") from e


def read_array(file: Path) -> np.ndarray:
    """Reads an image of CelebA-HQ, uint8 [1,3,H,W] in the file -> [H,W,3]. Raises ValueError for other arrays."""
    check_file(file)
    array = np.lib.format.open_memmap(file, mode="r")  # takes no memory, whatever the header says
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[:2] != (1, 3):
        raise ValueError(f"{array.dtype} {array.shape}, not uint8 (1, 3, height, width)")
    check_size(*array.shape[:1:-1])
    return np.ascontiguousarray(array[0].transpose(1, 2, 0))


def check_labels(labels: np.ndarray, name: Path | str, num_labels: int, label_shift: int) -> None:
    """Raises UserError for a label that the model does not have; `name` names the map in the message."""
    if labels.max() >= num_labels:
        found, shift = int(labels.max()) - label_shift, f" plus data.label_shift={label_shift}" if label_shift else ""
        raise UserError(f"{name} holds the label {found}{shift}; the model has the labels 0 to {num_labels - 1}")
