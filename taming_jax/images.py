"""Images: number ranges, sheets, files."""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo


@flax.struct.dataclass
class Sheet:
    """A picture to draw: images [rows,columns,H,W,3], float in [-1, 1] or uint8, and a caption per row or none."""

    images: jax.Array
    captions: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())


def to_float(images: jax.Array) -> jax.Array:
    """uint8 [0, 255] -> float32 [-1, 1]; floats stay. Call it on the device: bytes are a quarter of the transfer."""
    return images.astype(jnp.float32) / 127.5 - 1 if images.dtype == jnp.uint8 else images


def color_labels(labels: jax.Array) -> jax.Array:
    """Colours segmentation maps; consecutive labels look far apart. [B,H,W] int -> [B,H,W,3] float32 in [-1, 1]."""
    hue = labels * 0.618034  # the golden ratio spreads any number of hues
    return jnp.cos(2 * jnp.pi * (hue[..., None] + jnp.arange(3) / 3))


def to_uint8(images: np.ndarray) -> np.ndarray:
    """float [-1, 1] -> uint8 [0, 255], clipped and rounded; uint8 stays as it is."""
    if images.dtype == np.uint8:
        return images
    return np.round((np.clip(np.asarray(images, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def draw_sheet(sheet: Sheet, gap: int = 2, min_side: int = 96) -> Image.Image:
    """Rows and columns on white, captions to the left. Images under `min_side` are enlarged by a whole factor."""
    array = to_uint8(jax.device_get(sheet.images))
    scale = max(1, min_side // array.shape[2])
    array = array.repeat(scale, axis=2).repeat(scale, axis=3)
    rows, columns, h, w, _ = array.shape
    font = ImageFont.load_default(size=max(10, h // 6))
    left = 3 * gap + int(max(font.getlength(c) for c in sheet.captions)) if sheet.captions else 0
    picture = Image.new("RGB", (left + columns * (w + gap) + gap, rows * (h + gap) + gap), "white")
    draw = ImageDraw.Draw(picture)
    for r in range(rows):
        top = gap + r * (h + gap)
        if sheet.captions:
            draw.text((gap, top + h // 2), sheet.captions[r], fill="black", font=font, anchor="lm")
        for c in range(columns):
            picture.paste(Image.fromarray(array[r, c]), (left + gap + c * (w + gap), top))
    return picture


@functools.cache
def has_glyph(character: str) -> bool:
    """Whether the font of sheets has a character; where it has none, it draws a box."""
    font = ImageFont.load_default(size=16)
    return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


def legible(names: Sequence[str], numbers: Iterable[int]) -> tuple[str, ...]:
    """The names as a sheet can show them: in place of one that its font cannot draw, its number."""
    pairs = zip(names, numbers, strict=True)
    return tuple(name if all(map(has_glyph, name)) else str(int(number)) for name, number in pairs)


def legend(names: Sequence[str], shown: Sequence[str]) -> str:
    """'0 is 猫, 1 is собака' for the names that a sheet shows as something else, or ''."""
    return ", ".join(
        f"{short} is {name}" for short, name in dict(zip(shown, names, strict=True)).items() if short != name
    )


def save_png(picture: Image.Image, path: Path, **metadata: object) -> None:
    """Writes a PNG, `metadata` as its text chunks."""
    info = PngInfo()
    for key, value in metadata.items():
        info.add_text(key, str(value))
    write_whole(path, lambda part: picture.save(part, format="PNG", pnginfo=info))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file completely or not at all: `write` gets a temporary path."""
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # of a write that failed, on a full disk say


def write_npz(path: Path, *arrays: np.ndarray, **named: np.ndarray) -> None:
    """Writes arrays as an .npz file, completely or not at all."""

    def write(part: Path) -> None:
        with part.open("wb") as file:  # np.savez would add an ending
            np.savez(file, *arrays, **named)

    write_whole(path, write)
