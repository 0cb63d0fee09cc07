"""Animates the sliding window: shows an image as its codes were painted, with the window's frame."""

import importlib.util
import io
import os
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from taming_jax.errors import UserError, with_extra
from taming_jax.images import enlargement
from taming_jax.sampling.window import column_groups, window_start

PAPER, FRAME = 235, (230, 40, 60)
FRAMES, PER_SECOND, LAST = 120, 20, 40  # the last picture stays for so many frames


class Animation(NamedTuple):
    """image: uint8 [H,W,3]. when: [h,w] int, the step that painted each code; -1 for codes that were given.

    window, stride: of the sliding window that painted them.
    """

    image: np.ndarray
    when: np.ndarray
    window: int
    stride: int = 1


def draw_frames(animation: Animation, longest: int = 512) -> list[np.ndarray]:
    """At most `FRAMES` pictures, uint8 [H',W',3]: cells not yet painted are blank, the windows at work are framed.

    The pixels are those of the finished image, shown once their code is painted. Small images are enlarged as on
    sheets; images larger than `longest` are made smaller.
    """
    image, when, window, stride = animation
    lefts = {
        j: left
        for left, first, count in column_groups(when.shape[1], window, stride)
        for j in range(first, first + count)
    }
    (height, width, _), h = image.shape, len(when)
    block = height // h
    scale = min(enlargement(height, width), longest / max(height, width))
    size = round(width * scale) // 2 * 2, round(height * scale) // 2 * 2  # video codecs want even sides
    steps, frames = np.unique(when[when >= 0]), []
    for step in steps[np.unique(np.linspace(0, len(steps) - 1, FRAMES).round().astype(int))] if len(steps) else []:
        painted = (when <= step).repeat(block, 0).repeat(block, 1)[..., None]
        picture = Image.fromarray(np.where(painted, image, np.uint8(PAPER))).resize(size, Image.Resampling.BOX)
        draw = ImageDraw.Draw(picture)
        for i, j in np.argwhere(when == step):
            top, left = window_start(i, window, h), lefts[int(j)]
            box = np.array([left, top, left + window, top + window]) * block * scale
            draw.rectangle((*box[:2], *(box[2:] - 1)), outline=FRAME, width=2)
        frames.append(np.asarray(picture))
    last = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    return [*frames, *[last] * LAST]


def to_gif(frames: list[np.ndarray]) -> bytes:
    """An endless GIF in the colours of the last frame."""
    colors = Image.fromarray(frames[-1]).copy()
    ImageDraw.Draw(colors).rectangle((0, 0, colors.width // 16, colors.height // 16), fill=FRAME, outline=(PAPER,) * 3)
    palette = colors.quantize(256)
    indexed = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    out = io.BytesIO()
    indexed[0].save(out, "GIF", save_all=True, append_images=indexed[1:], duration=1000 // PER_SECOND, loop=0)
    return out.getvalue()


def write_mp4(frames: list[np.ndarray], path: str) -> None:
    """Writes an H.264 video that browsers play. Call `check_mp4` first, which finds the package."""
    # The package would fork to shield ffmpeg from Ctrl-C, of which jax warns; a video that is cut off is not kept.
    os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")
    import imageio_ffmpeg

    height, width, _ = frames[0].shape
    options = dict(fps=PER_SECOND, macro_block_size=2, output_params=["-f", "mp4"])  # whatever the name's ending
    video = imageio_ffmpeg.write_frames(path, (width, height), **options)
    video.send(None)
    for frame in frames:
        video.send(np.ascontiguousarray(frame))
    video.close()


def check_mp4() -> None:
    """Raises UserError where the package for videos is missing."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError(f"a video (mp4) needs a package, a gif needs none: {with_extra('video')}")
