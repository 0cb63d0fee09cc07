"""Transforms: a record in, a record out. Images are uint8 [H,W,3], line art [H,W,1], segmentation maps [H,W]."""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image

from taming_jax.data.features import FEATURES, PICTURES

# A picture may be enlarged to so many pixels, or so many times those of its crop: much longer than wide, it is refused.
MOST_PIXELS, MOST_TIMES = 2**25, 4


class Annotator(Protocol):
    """Makes ids from an image's annotations: a scene's objects, say. It must be picklable, for processes that read."""

    def shuffle(self, record: dict, rng: np.random.Generator) -> dict:
        """The record with its annotations in a random order, if their order means nothing."""

    def see(self, record: dict, crop: tuple[float, ...], flip: bool) -> dict[str, np.ndarray]:
        """The features of a record's annotations, seen through a crop (left, top, width, height as shares)."""


AS_STORED = {  # an image that is upright, as one of an orientation of EXIF's is stored
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: np.rot90,
    7: lambda image: image.swapaxes(0, 1)[::-1, ::-1],
    8: lambda image: np.rot90(image, -1),
}
STRIP = 2**20  # pixels that are converted at once


def orientation(image: Image.Image) -> int:
    """How an image is stored as its EXIF says, 1 to 8; 1, which is upright, where that says nothing or is damaged."""
    image.load()
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's parser raises anything
        return 1
    return found if found in range(2, 9) else 1


def strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """The rows of an image, some at a time: copies of a whole one may take gigabytes."""
    step = max(1, STRIP // image.width)
    if step >= image.height:
        yield slice(image.height), image
        return
    for top in range(0, image.height, step):
        bottom = min(image.height, top + step)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def decode(image: Image.Image, mode: str = "RGB") -> np.ndarray:
    """Any image to uint8 [H,W,3]: upright as its EXIF says, transparency on white, every colour mode to RGB.

    mode: 'L' makes uint8 [H,W] of that. Raises ValueError for 32-bit pixels.
    """
    turned, channels = orientation(image), (3,) if mode == "RGB" else ()
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: 32-bit pixels have no known range")
    sides = (image.width, image.height) if turned >= 5 else (image.height, image.width)
    upright = np.empty((*sides, *channels), np.uint8)
    stored = AS_STORED[turned](upright) if turned > 1 else upright
    for rows, strip in strips(image):
        stored[rows] = np.asarray(to_colours(strip).convert(mode))
    return upright


def to_colours(image: Image.Image) -> Image.Image:
    """An image in any mode of 8 or 16 bits as one in RGB, on white where it is transparent."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@dataclasses.dataclass(frozen=True)
class Augment:
    """Resizes images so that they just cover `size` (height, width) times `resize_factor`, takes a crop of `size`, and
    flips half of them if `flip`.

    `random_crop=False` crops the centre. Evaluation does so at the same scale, without flips. All features of a record
    are treated alike. For grain, this is a random map.

    random_scale: in pixels of the image before it is resized, the crop is anything from `size` to the smallest side
    (the original's random-2d crop), whatever `resize_factor` is.
    coord: adds where the crop lies in its image, 'coord' float32 [height,width], see `coordinates`.
    downscale: above 1, adds the crop with so many times fewer pixels on a side, enlarged again: 'low' uint8, bicubic.
    annotator: makes features from a record's annotations; without one, annotations are left out.
    """

    size: tuple[int, int]
    resize_factor: float
    random_crop: bool
    flip: bool
    coord: bool = False
    random_scale: bool = False
    downscale: int = 1
    annotator: Annotator | None = None

    def __call__(self, record: dict, rng: np.random.Generator) -> dict:
        flip = self.flip and rng.random() < 0.5
        if self.annotator is not None:
            record = self.annotator.shuffle(record, rng)
        factor = self.resize_factor
        if self.random_scale:
            most = min(side / want for want, side in zip(self.size, record["image"].shape, strict=False))
            factor = most / rng.uniform(1, most) if most > 1 else 1.0
        return self._apply(record, rng.random(2) if self.random_crop else (0.5, 0.5), flip, factor)

    def centered(self, record: dict) -> dict:
        """The record with a centre crop and no flip."""
        return self._apply(record, (0.5, 0.5), False, self.resize_factor)

    def _apply(self, record: dict, corner: tuple[float, float], flip: bool, factor: float) -> dict:
        sides = record["image"].shape[:2]
        factor *= max(want / side for want, side in zip(self.size, sides, strict=True))
        h, w = (max(want, round(side * factor)) for want, side in zip(self.size, sides, strict=True))
        if h * w > max(MOST_PIXELS, MOST_TIMES * self.size[0] * self.size[1], sides[0] * sides[1]):
            names = ["x".join(map(str, shape)) for shape in (sides, (h, w), self.size)]
            raise ValueError("{} pixels would be enlarged to {} to cover {}".format(*names))
        top, left = (round(c * (side - want)) for c, side, want in zip(corner, (h, w), self.size, strict=True))
        done = {"label": np.int32(record["label"])}
        for name in record.keys() & set(PICTURES):
            image = Image.fromarray(record[name][..., 0] if record[name].shape[2:] == (1,) else record[name])
            if (w, h) != image.size:
                image = image.resize((w, h), FEATURES[name].resampling)
            array = np.asarray(image)[top : top + self.size[0], left : left + self.size[1]]
            array = array[:, ::-1] if flip else array
            done[name] = array[..., None] if record[name].shape[2:] == (1,) else array
        if self.downscale > 1:
            done["low"] = coarse(done["image"], self.downscale)
        if self.coord:
            start = w - self.size[1] - left if flip else left  # in the flipped image
            done["coord"] = coordinates(h, w, np.s_[top : top + self.size[0], start : start + self.size[1]])
        if self.annotator is not None:
            done |= self.annotator.see(record, (left / w, top / h, self.size[1] / w, self.size[0] / h), flip)
        return done


def coarse(image: np.ndarray, downscale: int) -> np.ndarray:
    """uint8 [H,W,3] with `downscale` times fewer pixels a side, enlarged to its size again."""
    h, w = image.shape[:2]
    small = Image.fromarray(image).resize((w // downscale, h // downscale), Image.Resampling.BICUBIC)
    return np.asarray(small.resize((w, h), Image.Resampling.BICUBIC))


def coordinates(h: int, w: int, crop: tuple[slice, slice] = np.s_[:, :]) -> np.ndarray:
    """Each pixel's number, row by row, as a share of all (as in the original's FacesHQ): float32 [h,w] in [0, 1).

    crop: the rows and columns of the result, if not all.
    """
    rows, columns = np.arange(h)[crop[0], None], np.arange(w)[crop[1]]
    return ((rows * w + columns) / (h * w)).astype(np.float32)


def fit(record: dict, size: tuple[int, int], downscale: int = 1) -> dict:
    """Resizes all features of a record so that they just cover a size (height, width), and crops the centre."""
    return Augment(size, 1.0, random_crop=False, flip=False, downscale=downscale).centered(record)
