"""Runs a second stage: conditions in, images out. Its programs are compiled once for equal shapes, and kept."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from taming_jax import sharding
from taming_jax.conditions import Condition
from taming_jax.images import Sheet, to_uint8
from taming_jax.sampling.animation import PAPER
from taming_jax.sampling.draw import Sampling
from taming_jax.sampling.painter import Painter
from taming_jax.sampling.tiling import TILE, decode_tiled
from taming_jax.second_stage import SecondStage


@dataclasses.dataclass(frozen=True)
class Kept:
    """An image, and the part of it that stays.

    image: uint8 [H,W,3]. codes: bool [h,w], which of its codes stay. pixels: bool [H,W], which pixels stay as they are;
    None to decode the part that stays again, with the rest. size: (height, width) of the upper left part that the user
    wants; the rest fills up the last codes.
    """

    image: np.ndarray
    codes: np.ndarray
    pixels: np.ndarray | None
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to paint images.

    size: (height, width) in pixels, at least those of training; over a larger image the transformer's window slides,
    see `sampling.painter` for method and stride. tile: codes on a side that are decoded at once. speculate: codes that
    are guessed at once, 1 for none, see `sampling.speculative`.
    """

    size: tuple[int, int]
    sampling: Sampling
    seed: int = 0
    kept: Kept | None = None
    method: str = "cached"
    stride: int = 1
    tile: int = TILE
    speculate: int = 1

    def grid(self, patch: int) -> tuple[int, int]:
        """The image's grid of codes, (rows, columns); a code has `patch` pixels on a side."""
        return self.size[0] // patch, self.size[1] // patch


class Painting:
    """The programs of a second stage. Call them under `jax.set_mesh`, always with the same mesh.

    nets: parameters, {'gpt': from `prepare`, 'gen': the first stage's, 'cond': the condition's first stage's}.
    """

    def __init__(self, stage: SecondStage):
        self.stage, self.painters = stage, {}
        self.prepare = jax.jit(stage.decode_params)
        self.encode = jax.jit(lambda gen, batch, key: stage.first.remap(stage.first.encode(gen, batch), key))
        self.decode = jax.jit(lambda gen, ids: sharding.replicate(stage.first.decode(gen, ids)))

        @functools.partial(jax.jit, static_argnames="grid")
        def begin(nets: dict, rows: dict, key: jax.Array, codes: jax.Array, grid: tuple[int, int]) -> tuple:
            """-> condition, codes that stay [B,h,w] and a key for each row."""
            fold = jax.vmap(jax.random.fold_in, (None, 0))
            keys = jax.vmap(jax.random.fold_in)(fold(key, rows["label"]), rows["index"])
            return sharding.split((stage.condition(nets, rows, grid), jnp.repeat(codes, len(keys), 0), keys))

        self.begin = begin

    def painter(self, *way: bool | str | int) -> Painter:
        """`SecondStage.make_painter`, the same one for the same arguments; raises as it does."""
        if way not in self.painters:
            self.painters[way] = self.stage.make_painter(*way)
        return self.painters[way]

    def codes(self, nets: dict, rows: dict, plan: Plan) -> Iterator[tuple[jax.Array, int]]:
        """Paints the codes of an image for each row: [B,h,w] int32 so far, and how many of each image are painted.

        rows: features that the condition reads, [B,...], and int32 'label' and 'index' [B]. Seed, label, index and
        condition alone determine an image, whatever else is in the batch. Codes are gone once the next are asked for.
        """
        guided, grid = plan.sampling.guidance != 1, plan.grid(self.stage.first.patch)
        painter, key = self.painter(guided, plan.method, plan.stride, plan.speculate), jax.random.key(plan.seed)
        codes, known = np.zeros((1, *grid), np.int32), np.zeros(grid, bool)
        if plan.kept is not None:
            batch = {self.stage.first.input: plan.kept.image[None]}
            codes, known = self.encode(nets["gen"], batch, key), plan.kept.codes
        c, codes, keys = self.begin(nets, rows, key, codes, grid=grid)
        params = (nets["gpt"], plan.sampling) if guided else nets["gpt"]
        for painted, done in painter(params, c, codes, known, keys, plan.sampling):
            painted.block_until_ready()
            yield painted, done

    def paint(self, nets: dict, rows: dict, plan: Plan) -> np.ndarray:
        """`codes`, until all are painted, as `images`: uint8 [B,H,W,3]."""
        for codes, _ in self.codes(nets, rows, plan):  # noqa: B007, the last
            pass
        return self.images(nets, codes, plan)

    def images(self, nets: dict, codes: jax.Array, plan: Plan, done: int | None = None) -> np.ndarray:
        """Decodes codes [B,h,w] of a plan: uint8 [B,H,W,3].

        done: how many codes of each image are painted, None for all; where none is yet, the image is blank.
        """
        patch, kept = self.stage.first.patch, plan.kept
        pictures = decode_tiled(functools.partial(self.decode, nets["gen"]), codes, plan.tile)
        pictures = to_uint8(pictures) if kept is None else restore_kept(pictures, kept, patch)
        if done is None:
            return pictures
        when = self.stage.painting_order(plan.grid(patch), plan.method)
        seen = when <= np.sort(when, None)[done - 1]
        if kept is not None:
            seen |= kept.codes
        seen = seen.repeat(patch, 0).repeat(patch, 1)
        if kept is not None and kept.pixels is not None:
            seen |= kept.pixels
        return np.where(seen[: pictures.shape[1], : pictures.shape[2], None], pictures, np.uint8(PAPER))


def restore_kept(painted: np.ndarray, kept: Kept, fade: int) -> np.ndarray:
    """Puts back the pixels that stay, without a seam. painted: float [B,H,W,3] in about [-1, 1] -> uint8.

    Each other pixel is corrected by the difference at the nearest pixel that stays, less and less over `fade` pixels.
    """
    h, w = kept.size
    if kept.pixels is None or not kept.pixels.any():
        return to_uint8(painted)[:, :h, :w]
    distance, nearest = ndimage.distance_transform_edt(~kept.pixels, return_indices=True)
    # Nobody sees decoded values outside of the range.
    seen = np.clip(painted, -1, 1)
    difference = (kept.image / 127.5 - 1 - seen)[:, *nearest]
    weight = np.clip(1 - distance / (fade + 1), 0, 1)[..., None]
    blended = to_uint8(seen + weight * difference)
    return np.where(kept.pixels[..., None], kept.image, blended)[:, :h, :w]


def make_sheet(
    cond: Condition,
    rows: dict[str, np.ndarray],
    painted: np.ndarray,
    shown: np.ndarray | None = None,
    originals: np.ndarray | None = None,
) -> Sheet:
    """A sheet of painted images uint8 [R,C,H,W,3], `shown` before them and `originals` after them, both [R,H,W,3].

    Without `shown`, it shows the pictures of the conditions if `cond.SHOWS`.
    """
    if shown is None and cond.SHOWS:
        shown = cond.pictures(rows, painted.shape[2:4])
    parts = [None if shown is None else to_uint8(shown)[:, None], painted]
    parts += [None if originals is None else to_uint8(originals)[:, None]]
    return Sheet(np.concatenate([part for part in parts if part is not None], 1), cond.captions(rows))
