"""What a record can hold beside its picture's label: one table for whoever reads, crops, learns or compiles it."""

from typing import NamedTuple

import numpy as np
from PIL import Image

Resampling = Image.Resampling


class Feature(NamedTuple):
    """channels: of a picture [H,W,channels], 0 for one [H,W], None for an annotation, of which a condition makes ids.

    dtype: in a batch. resampling: how it is resized with its picture; None where it is made from what was cropped.
    folder: where a folder of pictures has it, beside images/. ending: of its files there, each named as its picture;
    empty where they are not one for each. learnable: whether a first stage can learn it.
    """

    channels: int | None
    dtype: type
    resampling: Resampling | None = None
    folder: str = ""
    ending: str = ".png"
    learnable: bool = True


FEATURES = {
    "image": Feature(3, np.uint8, Resampling.LANCZOS, "images"),
    "other": Feature(3, np.uint8, Resampling.LANCZOS, "others"),
    "line": Feature(1, np.uint8, Resampling.LANCZOS, "lines"),
    "depth": Feature(1, np.float32, Resampling.BILINEAR, "depths"),
    "segmentation": Feature(0, np.uint8, Resampling.NEAREST, "segmentations"),
    "low": Feature(3, np.uint8),  # the picture with fewer pixels a side, enlarged again
    "coord": Feature(0, np.float32, learnable=False),  # where each pixel lies in its picture, see `coordinates`
    "objects": Feature(None, np.int32, folder="objects", ending="", learnable=False),  # boxes and categories
    "caption": Feature(None, np.int32, folder="captions", ending=".txt", learnable=False),  # lines, a caption each
}
PICTURES = tuple(name for name, feature in FEATURES.items() if feature.resampling is not None)
LEARNABLE = tuple(name for name, feature in FEATURES.items() if feature.learnable)
DERIVED = {name for name, feature in FEATURES.items() if not feature.folder}  # made here, whatever the data set
