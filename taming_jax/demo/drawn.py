"""What a visitor uploads, draws or brushes, as the files that `Generator.sample` and the command read."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from taming_jax import images, request
from taming_jax.demo.asked import Choices
from taming_jax.errors import ArgumentError

BRUSHED, UNBRUSHED = "what is brushed", "what is not brushed"
STAYS = (*request.SIDES, UNBRUSHED, BRUSHED)
MOST_COLOURS = 24  # of a brush


def write_given(content: bytes, folder: Path, ending: str) -> str:
    """Writes what a visitor gave into a file, which is named by its content."""
    file = folder / f"{hashlib.blake2b(content, digest_size=8).hexdigest()}{ending}"
    if not file.exists():
        images.write_whole(file, lambda part: part.write_bytes(content))
    return str(file)


def write_picture(picture: Image.Image, folder: Path) -> str:
    """`write_given` for a picture, as a PNG."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return write_given(out.getvalue(), folder, ".png")


def brushed(layers: list[Image.Image], size: tuple[int, int]) -> np.ndarray:
    """Where an editor's layers RGBA were brushed: bool [H,W]. size: (width, height)."""
    found = np.zeros(size[::-1], bool)
    for layer in layers:
        found |= np.asarray(layer.convert("RGBA").resize(size, Image.Resampling.NEAREST))[..., 3] > 127
    return found


def mask(layers: list[Image.Image], size: tuple[int, int], stays: str) -> Image.Image:
    """The mask of an editor's layers: white where the picture stays. Raises ArgumentError where nothing is brushed."""
    found = brushed(layers, size)
    if not found.any():
        anew = "shall stay" if stays == BRUSHED else "shall be painted anew"
        raise ArgumentError(f"keep={stays}: nothing is brushed; brush over what {anew}, or choose a side")
    return Image.fromarray(np.uint8(255) * (found if stays == BRUSHED else ~found))


def colours(labels: int) -> np.ndarray:
    """The colours of labels in drawings and on sheets: uint8 [labels,3]."""
    return images.to_uint8(np.asarray(images.color_labels(np.arange(labels)[None, None])))[0, 0]


def drawing(background: Image.Image | None, layers: list[Image.Image], choices: Choices) -> Image.Image | None:
    """A drawing as a condition is read: as a map of labels, in grey, or in colours. None for an empty one."""
    pictures = [picture.convert("RGBA") for picture in (background, *layers) if picture is not None]
    if not any(map(is_seen, pictures)):
        return None
    size = pictures[0].size
    if not choices.labels:
        paper = Image.new("RGBA", size, "white")
        for picture in pictures:
            paper.alpha_composite(picture.resize(size))
        return paper.convert("L" if choices.kind in ("line", "depth") else "RGB")
    palette, found = colours(choices.labels).astype(int), np.zeros(size[::-1], int)
    for picture in pictures:
        pixels = np.asarray(picture.resize(size, Image.Resampling.NEAREST)).reshape(-1, 4)
        used, where = np.unique(pixels[:, :3], axis=0, return_inverse=True)
        nearest = np.int64([((palette - colour.astype(int)) ** 2).sum(-1).argmin() for colour in used])
        found = np.where(pixels[:, 3].reshape(found.shape) > 127, nearest[where].reshape(found.shape), found)
    return Image.fromarray(((found - choices.label_shift) % 256).astype(np.uint8))


def hex_colours(choices: Choices) -> list[str]:
    """A brush's colours for drawing a condition; the first is a map's background."""
    if not choices.labels:
        return (
            ["#000000"]
            if choices.kind == "line"
            else ["#ffffff", "#808080", "#d62728", "#2ca02c", "#1f77b4", "#000000"]
        )
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colours(choices.labels)[:MOST_COLOURS]]


def as_files(values: Mapping[str, Any], choices: Choices, folder: Path) -> dict[str, Any]:
    """The page's values as `asked.arguments` takes them: uploads, drawings, masks and scenes as files in a folder.

    'upload' is a file; 'drawing' and 'picture' are an editor's {'background', 'layers'}; 'scene' is a text; 'stays' is
    one of STAYS. Raises ArgumentError where a mask is empty.
    """
    values = dict(values)
    upload, drawn, picture = (values.pop(name, None) for name in ("upload", "drawing", "picture"))
    scene, stays = values.pop("scene", "") or "", values.pop("stays", None)
    if upload:
        values["condition"] = write_given(Path(upload).read_bytes(), folder, Path(upload).suffix.lower())
    elif drawn and (made := drawing(drawn["background"], drawn["layers"], choices)):
        values["condition"] = write_picture(made, folder)
    if scene.strip():
        values["layout"] = write_given(scene.encode(), folder, ".json")
    if picture and is_seen(picture["background"]):
        background = picture["background"]
        values["image"] = write_picture(background.convert("RGB"), folder)
        side = stays in request.SIDES
        values["keep"] = stays if side else write_picture(mask(picture["layers"], background.size, stays), folder)
    return values


def is_seen(picture: Image.Image | None) -> bool:
    """Whether there is anything in a picture but transparent paper."""
    return picture is not None and picture.convert("RGBA").getextrema()[3][1] > 0
