"""The painting as an animation."""

import io

import numpy as np
from PIL import Image

from taming_jax.images import Sheet, draw_sheet
from taming_jax.sampling.animation import FRAME, PAPER, Animation, draw_frames, to_gif
from taming_jax.sampling.painter import painting_order


def test_frames_show_what_is_painted_and_where_the_windows_are():
    image = np.full((12, 16, 3), 100, np.uint8)
    when = painting_order(6, 8, 4, "wavefront")
    when = np.where(np.arange(8) < 2, -1, when)  # the left part was given
    frames = draw_frames(Animation(image, when, 4))
    assert frames[0].shape == (120, 160, 3)
    sheet = draw_sheet(Sheet(image[None, None]))
    assert sheet.size == (160 + 4, 120 + 4), "the same size as on a sheet, which has gaps"
    assert draw_frames(Animation(image, when, 4), longest=80)[0].shape == (60, 80, 3)
    painted = [(frame == 100).all(-1).sum() for frame in frames]
    assert painted == sorted(painted) and painted[-1] == 120 * 160
    assert (frames[0][4:36, 4:36] == 100).all() and (frames[0][-10:, -10:] == PAPER).all()
    assert all((frame == FRAME).all(-1).any() for frame in frames[: len(np.unique(when)) - 1])
    gif = Image.open(io.BytesIO(to_gif(frames)))
    assert gif.n_frames > 2 and gif.size == (160, 120) and gif.info["loop"] == 0
