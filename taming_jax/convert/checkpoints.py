"""Whole checkpoints of the original's into run directories, and run directories into such checkpoints."""

import os
import shutil
from pathlib import Path

import jax
import numpy as np

from taming_jax import checkpoint, completion, images, places
from taming_jax.console import say
from taming_jax.convert.settings import Section, read_settings
from taming_jax.convert.tensors import Tensors, account, read_tensors, without_prefix
from taming_jax.convert.transformer import transformer_from_torch, transformer_to_torch
from taming_jax.convert.vqgan import KINDS as FIRST_STAGES
from taming_jax.convert.vqgan import vq_from_torch, vq_to_torch
from taming_jax.errors import ArgumentError, UserError, with_extra

TRANSFORMER = "Net2NetTransformer"


def from_checkpoint(ckpt: Path, config_file: Path, workdir: Path) -> None:
    """Writes the run directories of a checkpoint; raises UserError where a tensor is missing, surplus or misshapen."""
    settings = read_settings(config_file)
    model = settings.find("model", None)[0]
    if not isinstance(model, dict) or not {"target", "params"} <= set(model):
        raise ArgumentError(
            f"config={config_file} holds no 'model' with 'target' and 'params', as the original's files do"
        )
    check_place(workdir)
    with places.claimed(workdir):
        check_place(workdir)
        write_runs(ckpt, config_file, settings, workdir)


def write_runs(ckpt: Path, config_file: Path, settings: Section, workdir: Path) -> None:
    """`from_checkpoint` with its settings read, in a folder that is claimed."""
    tensors, step = read_tensors(ckpt)
    try:
        model = settings.section("model")
        if model.target((*FIRST_STAGES, TRANSFORMER)) == TRANSFORMER:
            tensors, data = without_prefix(tensors, "transformer.tok_emb.weight"), settings.section("data", {})
            runs = transformer_from_torch(tensors, model.section("params"), data, workdir)
        else:
            tensors = without_prefix(tensors, "encoder.conv_in.weight")
            runs = {workdir: vq_from_torch(tensors, model, "")}
        account(tensors)
    except UserError as e:
        raise UserError(f"{ckpt} with {config_file}: {e}") from e
    needed = sum(leaf.nbytes for _, state in runs.values() for leaf in jax.tree.leaves(state))
    check_place(workdir, needed)
    for path, (config, state) in runs.items():
        state = state.replace(step=np.asarray(step if path == workdir else 0, np.int32))
        try:
            path.mkdir(parents=True, exist_ok=True)
            with checkpoint.open_manager(path) as manager:
                checkpoint.save(manager, state, int(state.step), config)
        except (OSError, ValueError) as e:  # Orbax passes on what its storage raises
            raise UserError(f"{path} cannot be written: {' '.join(str(e).split())[:200]}") from e
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        say(f"{path}: a {config.task!r} run of {count / 1e6:.1f} M parameters at step {state.step}")


def check_place(workdir: Path, needed: int = 0) -> None:
    """Raises UserError where runs lie already, or where none of `needed` bytes can be written."""
    for path in (workdir, workdir / "first_stage", workdir / "cond_stage"):
        if checkpoint.steps(path):
            raise UserError(f"{path} already holds a run; name another run directory")
    place = next(path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists())
    if not place.is_dir():
        raise ArgumentError(f"workdir={workdir}: {place} is a file, not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ArgumentError(f"workdir={workdir}: in {place} nothing can be written")
    if (free := shutil.disk_usage(place).free) < needed:
        raise ArgumentError(f"workdir={workdir}: {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free")


def to_checkpoint(workdir: Path, out: Path) -> None:
    """Writes a run as a checkpoint that the original's model loads with `strict=True`."""
    try:
        import torch
    except ImportError as e:
        raise UserError(f"writing a PyTorch checkpoint needs PyTorch: {with_extra('convert')}") from e
    if out.exists():
        raise ArgumentError(f"to-torch={out} exists already; name another file")

    def read(step: int) -> Tensors:
        config, _ = completion.load_config(workdir, step)
        if config.task == "transformer":
            return transformer_to_torch(workdir, step, config)
        return vq_to_torch(workdir, step, config, "")

    tensors, step, _ = checkpoint.newest(workdir, read, checkpoint.required_steps(workdir))
    state_dict = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    out.parent.mkdir(parents=True, exist_ok=True)

    def write(part: Path) -> None:
        with part.open("wb") as file:  # torch alone would not pass on what the system says
            torch.save({"state_dict": state_dict, "global_step": step}, file)

    try:
        images.write_whole(out, write)
    except (OSError, RuntimeError) as e:
        raise ArgumentError(f"to-torch={out} cannot be written: {checkpoint.cause_of(e)}") from e
    say(f"{len(state_dict)} tensors of step {step}: {out}")
