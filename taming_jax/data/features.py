"""The features that a record can hold besides its label: one table for all code that reads, crops or learns them."""

from typing import NamedTuple

import numpy as np
from PIL import Image

Resampling = Image.Resampling


class Feature(NamedTuple):
    """channels: those of an image [H,W,channels], 0 for [H,W]; None for an annotation, which a condition makes ids of.

    dtype: in a batch. resampling: how it is resized with its image; None if it is made after the crop. folder: its
    sub-folder in a folder of images, beside images/. ending: that of its files there, each named like its image; empty
    if there is not one for each. learnable: whether a first stage can learn it.
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
    "low": Feature(3, np.uint8),  # the image with fewer pixels on a side, enlarged again
    "coord": Feature(0, np.float32, learnable=False),  # where each pixel lies in its image, see `coordinates`
    "objects": Feature(None, np.int32, folder="objects", ending="", learnable=False),  # boxes and categories
    "caption": Feature(None, np.int32, folder="captions", ending=".txt", learnable=False),  # one caption per line
}
PICTURES = tuple(name for name, feature in FEATURES.items() if feature.resampling is not None)
LEARNABLE = tuple(name for name, feature in FEATURES.items() if feature.learnable)
DERIVED = {name for name, feature in FEATURES.items() if not feature.folder}  # made by the transforms, for any data set
