"""Whole checkpoints of the original's into run directories, and run directories into such checkpoints."""

from pathlib import Path

import jax
import numpy as np
import yaml

from taming_jax import checkpoint, completion
from taming_jax.console import say
from taming_jax.convert.tensors import account, read_tensors
from taming_jax.convert.transformer import transformer_from_torch, transformer_to_torch
from taming_jax.convert.vqgan import vq_from_torch, vq_to_torch
from taming_jax.errors import ArgumentError, UserError, with_extra


def from_checkpoint(ckpt: Path, config_file: Path, workdir: Path) -> None:
    """Writes the run directories of a checkpoint; raises UserError where a tensor is missing, surplus or misshapen."""
    if not config_file.is_file():
        raise ArgumentError(f"config={config_file}: there is no such file")
    try:
        content = yaml.safe_load(config_file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ArgumentError(f"config={config_file} is no YAML: {' '.join(str(e).split())[:200]}") from e
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not {"target", "params"} <= set(model):
        raise ArgumentError(
            f"config={config_file} holds no 'model' with 'target' and 'params', as the original's files do"
        )
    for path in (workdir, workdir / "first_stage", workdir / "cond_stage"):
        if checkpoint.steps(path):
            raise UserError(f"{path} already holds a run; name another run directory")
    tensors, step = read_tensors(ckpt)
    try:
        if model["target"].endswith("Net2NetTransformer"):
            runs = transformer_from_torch(tensors, model["params"], content.get("data") or {}, workdir)
        else:
            runs = {workdir: vq_from_torch(tensors, model, "")}
        account(tensors)
    except UserError as e:
        raise UserError(f"{ckpt} with {config_file}: {e}") from e
    except KeyError as e:
        raise ArgumentError(f"config={config_file} has no {e.args[0]!r}") from e
    for path, (config, state) in runs.items():
        state = state.replace(step=np.asarray(step if path == workdir else 0, np.int32))
        path.mkdir(parents=True, exist_ok=True)
        with checkpoint.open_manager(path) as manager:
            checkpoint.save(manager, state, int(state.step), config)
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        say(f"{path}: a {config.task!r} run of {count / 1e6:.1f} M parameters at step {state.step}")


def to_checkpoint(workdir: Path, out: Path) -> None:
    """Writes a run as a checkpoint that the original's model loads with `strict=True`."""
    try:
        import torch
    except ImportError as e:
        raise UserError(f"writing a PyTorch checkpoint needs PyTorch: {with_extra('convert')}") from e
    if out.exists():
        raise ArgumentError(f"to-torch={out} exists already; name another file")
    config, step = completion.load_config(workdir)
    tensors = (
        transformer_to_torch(workdir, step, config)
        if config.task == "transformer"
        else vq_to_torch(workdir, step, config, "")
    )
    state_dict = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state_dict, "global_step": step}, out)
    say(f"{len(state_dict)} tensors of step {step}: {out}")
