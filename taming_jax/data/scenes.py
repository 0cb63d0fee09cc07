"""'openmoji/scenes': a few drawings side by side in one image, with the box and the class of each."""

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from taming_jax.data import tfds_source
from taming_jax.data.features import DERIVED
from taming_jax.errors import UserError

SIDE, SMALLEST, LARGEST = 128, 40, 72  # pixels, of a scene and of the drawings in it
MOST, EACH = 4, 4  # drawings in a scene, scenes for each drawing


class Scenes:
    """Scene i holds drawing i and up to three random others, which i alone determines; they overlap little."""

    def __init__(self, drawings):
        self.drawings, self.class_names = drawings, drawings.class_names

    def __len__(self) -> int:
        return EACH * len(self.drawings)

    def __repr__(self) -> str:
        return f"Scenes({self.drawings!r})"

    def __getitem__(self, index: int) -> dict:
        rng = np.random.default_rng(index)
        canvas, taken = np.full((SIDE, SIDE, 3), 255, np.uint8), np.zeros((SIDE, SIDE), bool)
        boxes, categories = [], []
        for number in (index % len(self.drawings), *rng.integers(0, len(self.drawings), rng.integers(1, MOST))):
            record, side = self.drawings[int(number)], int(rng.integers(SMALLEST, LARGEST + 1))
            drawing = np.asarray(Image.fromarray(record["image"]).resize((side, side), Image.Resampling.LANCZOS))
            ink = np.argwhere(drawing.min(-1) < 240)  # excludes the ringing of the resampling
            if not len(ink):
                continue
            (top, left), (bottom, right) = ink.min(0), ink.max(0) + 1
            drawing, height, width = drawing[top:bottom, left:right], bottom - top, right - left
            # Of a few random places, take the one that covers the least.
            places = np.stack([rng.integers(0, SIDE - height + 1, 8), rng.integers(0, SIDE - width + 1, 8)], 1)
            y, x = min(places, key=lambda place: taken[place[0] : place[0] + height, place[1] : place[1] + width].sum())
            here = np.s_[y : y + height, x : x + width]
            canvas[here], taken[here] = np.minimum(canvas[here], drawing), True
            boxes.append((x / SIDE, y / SIDE, width / SIDE, height / SIDE))
            categories.append(record["label"])
        scene = {"boxes": np.float32(boxes).reshape(-1, 4), "categories": np.int32(categories)}
        return {"image": canvas, "label": 0, **scene, "groups": np.zeros(len(boxes), bool)}

    def describe(self, index: int) -> str:
        return f"scene {index} of {self.drawings!r}"


def source(data: ConfigDict, split: str) -> Scenes:
    """Scenes of the drawings of one split; raises UserError for features that they do not have."""
    if missing := set(data.features) - {"image", "objects"} - DERIVED:
        raise UserError(f"data.features: {data.name} has image, objects, no {', '.join(sorted(missing))}")
    return Scenes(tfds_source.source(data, split, "openmoji/px64", ("image",)))
