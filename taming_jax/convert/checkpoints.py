"""Whole checkpoints into run directories, and run directories into such checkpoints."""

import os
import shutil
from pathlib import Path

import jax
import numpy as np

from taming_jax import checkpoint, completion, images, places
from taming_jax.console import say
from taming_jax.convert import successors
from taming_jax.convert.settings import Section, read_settings
from taming_jax.convert.tensors import account, read_tensors, without_prefix
from taming_jax.convert.transformer import transformer_from_torch, transformer_to_torch
from taming_jax.convert.vqgan import KINDS as FIRST_STAGES
from taming_jax.convert.vqgan import vq_from_torch, vq_to_torch
from taming_jax.errors import ArgumentError, UserError, with_extra

TRANSFORMER = "Net2NetTransformer"


def from_checkpoint(ckpt: Path, config_file: Path | None, workdir: Path, asked: successors.Asked | None = None) -> None:
    """Writes the run directories of a checkpoint; raises UserError where a tensor is missing, surplus or misshapen.

    config_file: the original's YAML; None for a published successor, to which `asked` may add something.
    """
    settings = None if config_file is None else read_model(config_file)
    check_place(workdir)
    with places.claimed(workdir):
        check_place(workdir)
        if settings is None:
            runs, step = successors.from_file(ckpt, workdir, asked or successors.Asked()), 0
        else:
            runs, step = read_original(ckpt, config_file, settings, workdir)
        config, state = runs[workdir]
        runs[workdir] = config, state.replace(step=np.asarray(step, np.int32))
        write_runs(runs, workdir)


def read_model(config_file: Path) -> Section:
    """The original's YAML; raises ArgumentError where it describes no model."""
    settings = read_settings(config_file)
    model = settings.find("model", None)[0]
    if not isinstance(model, dict) or not {"target", "params"} <= set(model):
        raise ArgumentError(
            f"config={config_file} holds no 'model' with 'target' and 'params', as the original's files do"
        )
    return settings


def read_original(ckpt: Path, config_file: Path, settings: Section, workdir: Path) -> tuple[successors.Runs, int]:
    """The runs of one of the original's checkpoints, and its step."""
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
    return runs, step


def write_runs(runs: successors.Runs, workdir: Path) -> None:
    """Writes run directories, `workdir` and those inside it, in a folder that is claimed."""
    needed = sum(leaf.nbytes for _, state in runs.values() for leaf in jax.tree.leaves(state))
    check_place(workdir, needed)
    for path, (config, state) in runs.items():
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
    """Writes a run as a checkpoint that the model of its own code loads with `strict=True`."""
    try:
        import torch
    except ImportError as e:
        raise UserError(f"writing a PyTorch checkpoint needs PyTorch: {with_extra('convert')}") from e
    if out.exists():
        raise ArgumentError(f"to-torch={out} exists already; name another file")

    def read(step: int) -> dict:
        config, _ = completion.load_config(workdir, step)
        if (kind := successors.kind_of_run(config)) is not None:
            return successors.to_file(kind, workdir, step, config)
        to_torch = transformer_to_torch if config.task == "transformer" else vq_to_torch
        return {"state_dict": to_torch(workdir, step, config), "global_step": step}

    content, step, _ = checkpoint.newest(workdir, read, checkpoint.required_steps(workdir))
    stored = jax.tree.map(lambda x: torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else x, content)
    out.parent.mkdir(parents=True, exist_ok=True)

    def write(part: Path) -> None:
        with part.open("wb") as file:  # torch alone would not pass on what the system says
            torch.save(stored, file)

    try:
        images.write_whole(out, write)
    except (OSError, RuntimeError) as e:
        raise ArgumentError(f"to-torch={out} cannot be written: {checkpoint.cause_of(e)}") from e
    count = sum(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(content))
    say(f"{count} tensors of step {step}: {out}")
