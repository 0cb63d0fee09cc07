"""Parameters from the original's tensors and back: axes, networks, and the file that holds them."""

import re
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from taming_jax.convert.files import STATE_DICTS, Tensors, read
from taming_jax.convert.names import Rules, discriminator_rules, lpips_names, torch_name
from taming_jax.errors import ArgumentError, UserError

# What training in parallel, compiled or in pieces puts before a module's name.
WRAPPERS = r"(?<![^.])(module|_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
# Follows from the config, or is LPIPS, whose weights are the same in every checkpoint; or the average of a loss's.
DERIVED = (
    r"attn\.mask$|(^|\.)colorize$|^permuter\.|num_batches_tracked$|(^|\.)loss\.perceptual_loss\."
    r"|(^|\.)model_ema\.(num_updates$|loss)"
)


# Tables that have an axis for the batch in PyTorch.
WITH_BATCH = ("position_embedding", "target_embedding", "step_embedding", "cls_embedding")


def to_layout(path: str, value: np.ndarray) -> np.ndarray:
    """Our axes -> PyTorch's: HWIO to OIHW, [in,out] to [out,in]."""
    value = np.asarray(value)
    if path.endswith("quantize/proj/kernel"):
        return value.T[:, :, None, None]
    if path.endswith("kernel"):
        return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value[None] if path.endswith(WITH_BATCH) else value


def from_layout(path: str, value: np.ndarray) -> np.ndarray:
    """The inverse of `to_layout`."""
    if path.endswith("quantize/proj/kernel"):
        return value[:, :, 0, 0].T
    if path.endswith("kernel"):
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return value[0] if path.endswith(WITH_BATCH) else value


def take(tensors: Tensors, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Removes a tensor from the file's; raises UserError where it is missing, misshapen or not of finite floats."""
    if name not in tensors:
        raise UserError(f"tensor {name!r} {shape} is missing")
    if tensors[name].shape != shape:
        raise UserError(f"tensor {name!r} is {tensors[name].shape}, the config says {shape}")
    if not jnp.issubdtype(tensors[name].dtype, jnp.floating):
        raise UserError(f"tensor {name!r} is of {tensors[name].dtype}; weights are floats")
    with np.errstate(over="ignore"):  # of float64, found below
        value = np.array(tensors.pop(name), np.float32, order="C")
    if not np.isfinite(value).all():
        raise UserError(f"tensor {name!r} holds NaN or infinity")
    return value


def from_torch(tensors: Tensors, like: dict, rules: Rules, prefix: str) -> dict:
    """The tensors below a prefix as our parameters, taken out of `tensors`. like: arrays or shapes."""
    found = {}
    for path, leaf in flatten_dict(like, sep="/").items():
        shape = to_layout(path, np.broadcast_to(np.float32(0), leaf.shape)).shape
        found[path] = from_layout(path, take(tensors, prefix + torch_name(path, rules), shape))
    return unflatten_dict(found, sep="/")


def averages_from_torch(tensors: Tensors, like: dict, rules: Rules, prefix: str) -> tuple[dict, float]:
    """latent-diffusion's running averages, which have names without dots, as our parameters; and their decay.

    ({}, 0.0) where the file has none.
    """
    below = f"{prefix}model_ema."
    if not any(name.startswith(below) for name in tensors):
        return {}, 0.0
    for path in flatten_dict(like, sep="/"):
        name = torch_name(path, rules)
        if (average := tensors.pop(below + name.replace(".", ""), None)) is not None:
            tensors[below + name] = average
    decay = round(float(take(tensors, f"{below}decay", ())), 6)  # 0.9999 is no float32
    if not 0 < decay < 1:
        raise UserError(f"tensor '{below}decay' is {decay:g}, not between 0 and 1")
    return from_torch(tensors, like, rules, below), decay


def to_torch(params: dict, rules: Rules, prefix: str) -> Tensors:
    """Our parameters under the original's names."""
    flat = flatten_dict(params, sep="/")
    return {prefix + torch_name(path, rules): to_layout(path, leaf) for path, leaf in flat.items()}


def discriminator_from_torch(tensors: Tensors, like: dict, n_layers: int, prefix: str) -> tuple[dict, dict]:
    """-> (params, batch_stats). like: shapes of both, as `NLayerDiscriminator.init` gives them."""
    rules, params, stats = discriminator_rules(n_layers), {}, {}
    for layer, leaves in like["params"].items():
        if "loc" not in leaves:
            params |= from_torch(tensors, {layer: leaves}, rules, prefix)
            continue
        name = prefix + torch_name(f"{layer}/", rules)
        loc, scale = (take(tensors, name + leaf, (1, *leaves["loc"].shape, 1, 1)).ravel() for leaf in ("loc", "scale"))
        flag = tensors.pop(f"{name}initialized", None)
        if flag is None or flag.shape != ():
            raise UserError(f"tensor '{name}initialized', one number, is missing")
        params[layer] = {"loc": np.zeros_like(loc), "scale": np.zeros_like(scale)}
        stats[layer] = {"loc": loc, "scale": scale, "initialized": flag.astype(bool)}
    for layer, leaves in like.get("batch_stats", {}).items():
        if "mean" in leaves:
            name = prefix + torch_name(f"{layer}/", rules)
            stats[layer] = {
                leaf: take(tensors, f"{name}running_{leaf}", leaves[leaf].shape) for leaf in ("mean", "var")
            }
    return params, stats


def discriminator_to_torch(params: dict, stats: dict, n_layers: int, prefix: str) -> Tensors:
    """The inverse; the number of batches that BatchNorm saw is not known and set to 0, which nothing reads."""
    rules, tensors = discriminator_rules(n_layers), {}
    for layer, leaves in params.items():
        if "loc" not in leaves:
            tensors |= to_torch({layer: leaves}, rules, prefix)
            continue
        name, first = prefix + torch_name(f"{layer}/", rules), stats[layer]
        tensors |= {name + leaf: (first[leaf] + leaves[leaf]).reshape(1, -1, 1, 1) for leaf in ("loc", "scale")}
        tensors[name + "initialized"] = np.asarray(first["initialized"], np.uint8)
    for layer, leaves in stats.items():
        if "mean" in leaves:
            name = prefix + torch_name(f"{layer}/", rules)
            tensors |= {f"{name}running_{leaf}": np.asarray(leaves[leaf]) for leaf in ("mean", "var")}
            tensors[name + "num_batches_tracked"] = np.zeros((), np.int64)
    return tensors


def lpips_from_torch(tensors: Tensors, prefix: str) -> dict:
    """LPIPS as `perceptual.load_weights` gives it, of any width."""
    vgg = {
        ours: {
            "kernel": from_layout("kernel", tensors[f"{prefix}{name}.weight"]),
            "bias": tensors[f"{prefix}{name}.bias"],
        }
        for ours, name in lpips_names().items()
    }
    return {"vgg": vgg, "lins": [tensors[f"{prefix}lin{i}.model.1.weight"].ravel() for i in range(5)]}


def lpips_to_torch(weights: dict, prefix: str) -> Tensors:
    """The inverse."""
    tensors = {
        f"{prefix}scaling_layer.shift": np.float32([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1),
        f"{prefix}scaling_layer.scale": np.float32([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1),
    }
    for ours, name in lpips_names().items():
        tensors[f"{prefix}{name}.weight"] = to_layout("kernel", weights["vgg"][ours]["kernel"])
        tensors[f"{prefix}{name}.bias"] = weights["vgg"][ours]["bias"]
    for i, lin in enumerate(weights["lins"]):
        tensors[f"{prefix}lin{i}.model.1.weight"] = lin.reshape(1, -1, 1, 1)
    return tensors


def read_tensors(path: Path, prefer: Sequence[str] = STATE_DICTS) -> tuple[Tensors, int]:
    """All tensors of a checkpoint, named as a module on its own names them, and its step; errors are `files.read`'s."""
    stored, step = read(path, prefer)
    tensors = {re.sub(WRAPPERS, "", name): value for name, value in stored.items()}
    if len(tensors) < len(stored):
        raise ArgumentError(f"ckpt={path} holds tensors twice, with and without a wrapper's name such as 'module.'")
    return tensors, step


def without_prefix(tensors: Tensors, known: str) -> Tensors:
    """The tensors named from the model on, whose tensor `known` tells where it is: 'first_stage_model.' may go."""
    prefixes = [name.removesuffix(known) for name in tensors if name == known or name.endswith(f".{known}")]
    if len(prefixes) != 1:
        return tensors
    found = {name.removeprefix(prefixes[0]): value for name, value in tensors.items()}
    return found if len(found) == len(tensors) else tensors


def account(tensors: Tensors) -> None:
    """Raises UserError for tensors that nothing took and that do not follow from the config."""
    unexpected = sorted(name for name in tensors if not re.search(DERIVED, name))
    if unexpected:
        more = f" and {len(unexpected) - 5} more" if len(unexpected) > 5 else ""
        raise UserError(f"unexpected tensors: {', '.join(unexpected[:5])}{more}")
