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

LEAST_SHOWN = 128  # pixels on the shorter side of an image that is shown to people
# Fonts that machines may have, for names that Pillow's own cannot draw: Cyrillic, Greek, Chinese, Japanese, Korean.
FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "wqy-microhei.ttc"),
    *("DroidSansFallbackFull.ttf", "Arial Unicode.ttf", "PingFang.ttc", "AppleSDGothicNeo.ttc", "Hiragino Sans GB.ttc"),
    *("arial.ttf", "msyh.ttc", "YuGothM.ttc", "malgun.ttf"),
)


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


def enlargement(height: int, width: int) -> int:
    """The whole factor by which small images are enlarged for people, on sheets and in animations alike."""
    return max(1, LEAST_SHOWN // min(height, width))


def draw_sheet(sheet: Sheet, gap: int = 2) -> Image.Image:
    """Rows and columns on white, captions to the left; small images are enlarged, see `enlargement`."""
    array = to_uint8(jax.device_get(sheet.images))
    scale = enlargement(*array.shape[2:4])
    array = array.repeat(scale, axis=2).repeat(scale, axis=3)
    rows, columns, h, w, _ = array.shape
    fonts = [find_font(caption, max(10, h // 6)) or load_font("", max(10, h // 6)) for caption in sheet.captions]
    lengths = [font.getlength(caption) for font, caption in zip(fonts, sheet.captions, strict=True)]
    left = 3 * gap + int(max(lengths)) if lengths else 0
    picture = Image.new("RGB", (left + columns * (w + gap) + gap, rows * (h + gap) + gap), "white")
    draw = ImageDraw.Draw(picture)
    for r in range(rows):
        top = gap + r * (h + gap)
        if sheet.captions:
            draw.text((gap, top + h // 2), sheet.captions[r], fill="black", font=fonts[r], anchor="lm")
        for c in range(columns):
            picture.paste(Image.fromarray(array[r, c]), (left + gap + c * (w + gap), top))
    return picture


@functools.cache
def load_font(name: str, size: float) -> ImageFont.FreeTypeFont | None:
    """A font of this machine by its file's name, None where it has none; '' is Pillow's own."""
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None


@functools.cache
def has_glyph(name: str, character: str) -> bool:
    """Whether a font that is there has a character; where it has none, it draws a box."""
    font = load_font(name, 16)
    return bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))


def find_font(text: str, size: float) -> ImageFont.FreeTypeFont | None:
    """The first font that has all characters of a text, Pillow's own or one of FONTS; None where none has."""
    there = (name for name in ("", *FONTS) if load_font(name, 16) is not None)
    name = next((name for name in there if all(has_glyph(name, character) for character in text)), None)
    return None if name is None else load_font(name, size)


def legible(names: Sequence[str], numbers: Iterable[int]) -> tuple[str, ...]:
    """The names as a picture can show them: in place of one that no font can draw, its number."""
    pairs = zip(names, numbers, strict=True)
    return tuple(name if find_font(name, 16) is not None else str(int(number)) for name, number in pairs)


def legend(names: Sequence[str], shown: Sequence[str] | None = None) -> str:
    """'0 is 猫, 1 is собака' for the names that a picture shows as something else, their place by default; or ''."""
    shown = legible(names, range(len(names))) if shown is None else shown
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
    """Writes a file completely or not at all: `write` gets a temporary path, where nothing is."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)  # in a stranger's folder, it may be a link to anywhere
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
