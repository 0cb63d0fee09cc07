"""Draws the pictures of docs/method.md from a trained first stage.

    python -m docs.figures runs/openmoji_vq

Writes codes.png, codebook.png and orders.png beside this file.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from taming_jax import Tokenizer
from taming_jax.data import open_source
from taming_jax.sampling.window import window_start
from taming_jax.schedule import Schedule

DOCS = Path(__file__).parent
PAPER, INK, NOW, SEEN, DONE = "white", "#455a64", "#e65100", "#90caf9", "#cfd8dc"
CELL, GAP = 22, 24  # pixels of a cell of a drawn grid, and between drawn grids


def colours(codebook: np.ndarray) -> np.ndarray:
    """A colour for each code, [K,D] -> uint8 [K,3]: the ranks of its first three principal components."""
    centred = codebook - codebook.mean(0)
    components = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
    return (components.argsort(0).argsort(0) * 255 / (len(codebook) - 1)).astype(np.uint8)


def enlarge(images: np.ndarray, side: int) -> np.ndarray:
    """[N,h,w,3] -> [N,side,side,3], pixel by pixel."""
    return images.repeat(side // images.shape[1], 1).repeat(side // images.shape[2], 2)


def read(tokenizer: Tokenizer, split: str, count: int) -> np.ndarray:
    """Images of a split, evenly spread, as the first stage sees them: uint8 [count,size,size,3]."""
    size, source = tokenizer.config.data.size, open_source(tokenizer.config.data, split)
    chosen = np.linspace(0, len(source), count, endpoint=False).astype(int) + len(source) // (2 * count)
    pictures = [Image.fromarray(source[int(i)]["image"]).resize((size, size), Image.LANCZOS) for i in chosen]
    return np.stack([np.asarray(picture) for picture in pictures])


def draw_codes(tokenizer: Tokenizer, count: int = 6, side: int = 96) -> Image.Image:
    """Held-out images, their codes in colours, and what the decoder makes of those."""
    images = read(tokenizer, "validation", count)
    ids = tokenizer.encode(images)
    rows = images, colours(tokenizer.codebook)[ids], tokenizer.decode(ids)
    padded = [np.pad(enlarge(row, side), ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=255) for row in rows]
    return Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in padded]))


def draw_codebook(tokenizer: Tokenizer, count: int = 2000, pixels: int = 4) -> Image.Image:
    """For each code the mean of the squares that it stands for in training images; the commonest first."""
    images, (k, patch) = read(tokenizer, "train", count), (tokenizer.stage.codebook_size, tokenizer.stage.patch)
    ids = tokenizer.encode(images)
    squares = images.reshape(count, ids.shape[1], patch, ids.shape[2], patch, 3).swapaxes(2, 3)
    uses = np.bincount(ids.ravel(), minlength=k)
    total = np.zeros((k, patch, patch, 3))
    np.add.at(total, ids, squares)
    means = (total / np.maximum(uses, 1)[:, None, None, None])[np.argsort(-uses, kind="stable")]
    columns = int(k**0.5)
    means = means[: k // columns * columns].round().astype(np.uint8)
    sheet = means.reshape(-1, columns, patch, patch, 3).swapaxes(1, 2).reshape(-1, columns * patch, 3)
    return Image.fromarray(sheet.repeat(pixels, 0).repeat(pixels, 1))


def draw_grid(draw: ImageDraw.ImageDraw, left: int, fill: np.ndarray, words: np.ndarray | None = None) -> None:
    """A grid of cells with their colours, and words in them."""
    for (i, j), colour in np.ndenumerate(fill):
        box = left + j * CELL, i * CELL, left + (j + 1) * CELL, (i + 1) * CELL
        draw.rectangle(box, colour, INK)
        if words is not None:
            middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            draw.text(middle, str(words[i, j]), PAPER if colour == NOW else INK, anchor="mm")


def draw_orders(h: int = 8, w: int = 12, window: int = 4, now: tuple[int, int] = (4, 6)) -> Image.Image:
    """Left, a window over a grid that is written row by row; right, the steps of a wavefront transformer."""
    i, j = np.indices((h, w))
    top, left = (int(window_start(np.int64(x), window, size)) for x, size in zip(now, (h, w), strict=True))
    within = (i >= top) & (i < top + window) & (j >= left) & (j < left + window)
    rows = np.where(i * w + j < now[0] * w + now[1], np.where(within, SEEN, DONE), PAPER)
    schedule = Schedule(lag=3, reach=(4, 4))
    times = schedule.times(h, w)
    step = times[now]
    fronts = np.where(times < step, np.where(np.asarray(schedule.sees(i - now[0], j - now[1])), SEEN, DONE), PAPER)
    fronts[times == step], rows[now] = NOW, NOW
    picture = Image.new("RGB", (2 * w * CELL + GAP + 1, h * CELL + 1), PAPER)
    draw = ImageDraw.Draw(picture)
    draw_grid(draw, 0, rows)
    draw.rectangle((left * CELL, top * CELL, (left + window) * CELL, (top + window) * CELL), outline=NOW, width=3)
    draw_grid(draw, w * CELL + GAP, fronts, times)
    return picture


if __name__ == "__main__":
    trained = Tokenizer.load(sys.argv[1])
    pictures = {"codes": draw_codes(trained), "codebook": draw_codebook(trained), "orders": draw_orders()}
    for name, drawn in pictures.items():
        drawn.save(DOCS / f"{name}.png", optimize=True)
