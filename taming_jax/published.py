"""The folder of a published run: `model.safetensors`, and `config.json` with its config and checksums.

It holds what a checkpoint holds, of the nets that are used alone; `checkpoint` reads both alike. A transformer's first
stages lie in it as such folders. Nothing in it is unpickled, and no path of the machine that it comes from is used.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from taming_jax import images
from taming_jax.errors import UserError, reason, show

CONFIG, WEIGHTS, FORMAT = "config.json", "model.safetensors", "taming_jax/1"
COPIES = {"first_stage": "first_stage", "cond": "cond_stage"}  # folders of a run, by the groups of its config
PARTS = {"config": dict, "data": dict, "sums": dict}  # of `config.json`, besides 'format' and 'step'
FLOATS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
DTYPES = {"F32": np.float32, "BF16": np.float32, "I32": np.int32, "I64": np.int64, "U32": np.uint32, "BOOL": np.bool_}
NAME = re.compile(r"step|(params|extra)/[^/]+/.+")  # of an array


def describe(folder: Path) -> dict | None:
    """What `config.json` says, 'step' and PARTS; None where a folder is no published run. Raises UserError."""
    file = folder / CONFIG
    try:
        found = json.loads(file.read_bytes())
    except OSError:
        return None
    except (ValueError, RecursionError) as e:
        if not (folder / WEIGHTS).exists():
            return None
        raise UserError(f"{file} cannot be read, it is damaged: {reason(e)}") from e
    form = found.get("format") if isinstance(found, dict) else None
    if not isinstance(form, str) or not form.startswith("taming_jax/"):
        return None
    if form != FORMAT:
        raise UserError(f"{file} is of format {show(form)}; this version reads {FORMAT!r}: install a later one")
    if type(found.get("step")) is not int or not 0 <= found["step"] < 2**31:
        raise UserError(f"{file} is damaged: 'step' is {show(found.get('step'))}")
    for name, kind in PARTS.items():
        if not isinstance(found.get(name), kind):
            raise UserError(f"{file} is damaged: {name!r} is {show(found.get(name))}")
    return found


def is_published(folder: Path) -> bool:
    """Whether a folder is a published run, and no run directory. Raises UserError for one that is damaged."""
    return not (folder / "checkpoints").is_dir() and describe(folder) is not None


def check_writable(folder: Path) -> None:
    """Raises UserError for a published run, and says how to make a run directory of it."""
    if is_published(folder):
        raise UserError(
            f"{folder} is a published run, which is to be read alone; make a run directory of it:"
            f" taming hub pull --from={folder} --workdir=..."
        )


def shapes(folder: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of each array by its path, 'params/gen/...', as `read` gives them.

    What cannot be read raises any exception, and so does what is no array of a run, such as weights of integers.
    """
    found = {}
    with safe_open(folder / WEIGHTS, "numpy") as file:
        for name in file.keys():
            array = file.get_slice(name)
            dtype = DTYPES.get(array.get_dtype())
            if dtype is None or (name.startswith("params/") and dtype != np.float32) or not NAME.fullmatch(name):
                raise ValueError(f"{show(name)}, of {array.get_dtype()}, is no array of a run")
            found[name] = tuple(array.get_shape()), np.dtype(dtype)
    return found


def read(folder: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Arrays by their paths, bfloat16 as float32; those that are not there are left out. Errors as of `shapes`."""
    with safe_open(folder / WEIGHTS, "numpy") as file:
        held = set(file.keys())
        found = {name: file.get_tensor(name) for name in names if name in held}
    return {name: x.astype(np.float32) if x.dtype == ml_dtypes.bfloat16 else x for name, x in found.items()}


def rounded(tree: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """The arrays as `read` gives them back after `write`."""
    return {n: x.astype(FLOATS[dtype]).astype(np.float32) if x.dtype == np.float32 else x for n, x in tree.items()}


def write(folder: Path, described: dict[str, Any], tree: dict[str, np.ndarray], dtype: str) -> None:
    """Writes both files into a folder. described: see `describe`; the sums are those of `rounded` arrays."""
    stored = {name: x.astype(FLOATS[dtype]) if x.dtype == np.float32 else x for name, x in tree.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS, stored, {"format": FORMAT})
    text = json.dumps({"format": FORMAT, "dtype": dtype} | described, indent=1) + "\n"
    images.write_whole(folder / CONFIG, lambda part: part.write_text(text))


def save_tensors(file: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes safetensors, for whom other files are too: the library's own are for their user alone."""
    file.touch()
    mode = file.stat().st_mode
    save_file({name: np.ascontiguousarray(x).reshape(x.shape) for name, x in tensors.items()}, file, metadata)
    file.chmod(mode)


def at_home(config: dict) -> dict:
    """A complete config without paths and services of the machine that it comes from."""
    config = config | dict(init_from="", fresh=(), evals={}, checkpoint_best="", tracker="tensorboard", ema_decay=0.0)
    config["data"] = config["data"] | dict(path="", dir="")
    if "codes" in config:
        config["codes"] = ""
    for name, copy in COPIES.items():
        if name in config:
            stage = config[name]
            place = f"./{copy}" if stage.get("digest") else ""
            config[name] = stage | dict(workdir=place, origin=place)
            if isinstance(stage.get("config"), dict):
                config[name]["config"] = at_home(stage["config"])
    return config
