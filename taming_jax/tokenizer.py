"""A trained first stage with its weights: images to ids and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from taming_jax import completion, sharding
from taming_jax.console import bar
from taming_jax.data.features import FEATURES
from taming_jax.data.files import check_labels, open_picture, refusing
from taming_jax.errors import ArgumentError, UserError, check_count
from taming_jax.first_stage import FirstStage, make_first_stage
from taming_jax.hub import address
from taming_jax.images import to_uint8

BATCH_SIZE = 16  # images at once, by default


class Tokenizer:
    """A first stage with its weights, on all devices. `Tokenizer.load(workdir)` makes one.

    config: that of its run. step: that of its checkpoint. stage: its pure functions.
    """

    def __init__(self, config: ConfigDict, step: int, stage: FirstStage, params: dict):
        self.config, self.step, self.stage = config, step, stage
        self.mesh = sharding.mesh_here(config.mesh.tensor)
        whole = NamedSharding(self.mesh, PartitionSpec())
        self._params = jax.device_put(params, whole)
        self._encode = jax.jit(lambda params, seen: stage.encode(params, {stage.input: seen}), out_shardings=whole)
        self._decode = jax.jit(stage.decode, out_shardings=whole)

    @classmethod
    def load(cls, workdir: str | Path, step: int | None = None) -> "Tokenizer":
        """Loads a run directory, at its newest step or another, or a published run by its folder or its address.

        `Tokenizer.load("hf://user/name@v1")`. Raises UserError where there is no such first stage.
        """
        found = address.find(workdir)
        task = completion.load_config(found, step)[0].task
        if task != "vqgan":
            raise UserError(f"{workdir} is a {task!r} run; a tokenizer is a first stage's (task 'vqgan')")
        config, step, params = completion.load_run(found, step)
        return cls(config, step, make_first_stage(config), params)

    @property
    def codebook(self) -> np.ndarray:
        """The codes of all ids: [codebook_size,D] float32."""
        return np.asarray(self.stage.codebook(self._params))

    def encode(self, images: Any, batch_size: int = BATCH_SIZE, progress: bool = False) -> np.ndarray:
        """Images -> ids [B,h,w] int32.

        images: [B,H,W,3] uint8 or float in [-1, 1]; or a list of arrays, PIL images or files, all of one size that is
        a multiple of the patch. Raises ArgumentError for anything else.
        """
        seen = read_pictures(self.stage, images, self.config.data.label_shift)
        return in_batches(
            self.mesh, lambda seen: self._encode(self._params, seen), seen, batch_size, progress, "encoding"
        )

    def decode(self, ids: np.ndarray, batch_size: int = BATCH_SIZE, progress: bool = False) -> np.ndarray:
        """Ids [B,h,w] -> images uint8 [B,H,W,3]. Raises ArgumentError for ids outside of the codebook."""
        try:
            ids = np.asarray(ids)
        except ValueError as e:
            raise ArgumentError(f"ids: {' '.join(str(e).split())}; they are integers [B,h,w]") from e
        if ids.ndim != 3 or ids.dtype.kind not in "iu" or not ids.size:
            raise ArgumentError(f"ids: {ids.dtype} of shape {ids.shape}; they are integers [B,h,w]")
        if ids.min() < 0 or ids.max() >= self.stage.codebook_size:
            raise ArgumentError(
                f"ids: from {ids.min()} to {ids.max()}; this tokenizer has 0 to {self.stage.codebook_size - 1}"
            )
        decode, ids = lambda ids: self._decode(self._params, ids), ids.astype(np.int32)
        return to_uint8(in_batches(self.mesh, decode, ids, batch_size, progress, "decoding"))


def in_batches(mesh: Mesh, function: Callable, rows: Any, batch_size: int, progress: bool, word: str) -> np.ndarray:
    """Runs a program over rows (a pytree of arrays [N,...]), a batch at a time. -> [N,...]

    progress: whether to show a bar with the label `word`.
    """
    check_count(batch_size=batch_size)
    total, parts, done = len(jax.tree.leaves(rows)[0]), mesh.shape["data"], []
    batch_size = -(-min(batch_size, total) // parts) * parts
    with jax.set_mesh(mesh), bar(total=total, desc=word, unit="image", disable=not progress) as shown:
        for batch, count in sharding.filled_batches(rows, batch_size, mesh):
            done.append(np.asarray(function(batch))[:count])
            shown.update(count)
    return np.concatenate(done)


def read_pictures(stage: FirstStage, images: Any, label_shift: int = 0, name: str = "images") -> np.ndarray:
    """A user's images -> the feature that a first stage sees, [B,H,W,...]; floats stay as they are.

    Raises ArgumentError, with the argument's name, for images that cannot be read or do not fit.
    """
    if isinstance(images, jax.Array):
        images = np.asarray(images)
    if not isinstance(images, (list, tuple)) and np.ndim(images) != 4:
        what = f"an array of shape {np.shape(images)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ArgumentError(f"{name}: {what}; give an array [B,H,W,C], or a list of pictures")
    if not len(images):
        raise ArgumentError(f"{name} is empty")
    kind, pictures = "image" if stage.input == "low" else stage.input, []
    channels = FEATURES[kind].channels
    for number, image in enumerate(images):
        with refusing(f"{name}[{number}]"):
            feature = as_floats(image, channels) if kind not in ("depth", "segmentation") else None
            feature = open_picture(image, kind, label_shift) if feature is None else feature
        if kind == "segmentation":
            check_labels(feature, f"{name}[{number}]", stage.model.out_ch, label_shift)
        if pictures and feature.shape != pictures[0].shape:
            sizes = " and ".join("x".join(map(str, x.shape[:2])) for x in (pictures[0], feature))
            raise ArgumentError(f"{name}: {sizes} pixels; all are of one size")
        pictures.append(feature)
    height, width = pictures[0].shape[:2]
    if height % stage.patch or width % stage.patch:
        raise ArgumentError(f"{name}: {height}x{width} pixels; they are multiples of {stage.patch}, the side of an id")
    if len({picture.dtype for picture in pictures}) > 1:  # bytes among floats
        pictures = [p / np.float32(127.5) - 1 if p.dtype == np.uint8 else p for p in pictures]
    return np.stack(pictures)


def as_floats(image: Any, channels: int) -> np.ndarray | None:
    """An array of floats in [-1, 1] as it is, not in 256 steps: [H,W], [H,W,1] or [H,W,channels] -> [H,W,channels].

    None for anything else. Raises ValueError for other floats.
    """
    image = np.asarray(image) if isinstance(image, jax.Array) else image
    if not isinstance(image, np.ndarray) or image.dtype.kind != "f":
        return None
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[-1] not in (1, channels):
        raise ValueError(f"floats of shape {image.shape}: [H,W], [H,W,1] or [H,W,{channels}]")
    if not np.isfinite(image).all():
        raise ValueError("an array with numbers that are not finite")
    if image.size and np.abs(image).max() > 1:
        raise ValueError(f"floats from {image.min():g} to {image.max():g}: they are within [-1, 1]")
    return np.broadcast_to(image, (*image.shape[:2], channels)).astype(np.float32)
