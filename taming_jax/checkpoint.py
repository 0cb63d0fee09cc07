"""Run directories: `workdir/checkpoints/<step>/` holds the train state, the next batch's number and the config."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from taming_jax import sharding
from taming_jax.errors import UserError
from taming_jax.state import Task, TrainState


@contextmanager
def quiet() -> Iterator[None]:
    """Within, Orbax does not warn on the terminal, which the user of a notebook cannot mend."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def open_manager(workdir: Path, keep: int = 3) -> ocp.CheckpointManager:
    """Saves asynchronously and keeps the newest `keep`. Close it, or use `with`, which waits for the last save."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    return ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)


def save(manager: ocp.CheckpointManager, state: TrainState, next_batch: int, config: ConfigDict) -> None:
    """Starts a save of everything but the frozen nets. `next_batch` is the state of the data iterator.

    A state without optimizers (`opt` is {}), such as a converted one, gets fresh ones when it is restored.
    """
    manager.save(
        int(state.step),
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state.replace(frozen={})),
            data=ocp.args.JsonSave({"next_batch": next_batch, "optimizers": bool(state.opt)}),
            config=ocp.args.JsonSave(config.to_dict()),
        ),
        force=True,
    )


def init_or_restore(manager: ocp.CheckpointManager, task: Task, key: jax.Array, mesh: Mesh) -> tuple[TrainState, int]:
    """The newest checkpoint, or a fresh state where there is none, with the frozen nets; -> (state, next_batch).

    The state is created or read in shards by `sharding.RULES`: no device ever holds all of it.
    """
    shapes = jax.eval_shape(task.init, key)
    shardings = sharding.infer_shardings(shapes, mesh)
    if manager.latest_step() is None:
        state, next_batch = jax.jit(task.init, out_shardings=shardings)(key), 0
    else:
        state, next_batch = restore(manager, sharding.with_shardings(shapes, mesh))
        if not state.opt:
            state = state.replace(opt=jax.jit(lambda key: task.init(key).opt, out_shardings=shardings.opt)(key))
    frozen = task.load_frozen()
    return state.replace(frozen=jax.device_put(frozen, sharding.infer_shardings(frozen, mesh))), next_batch


def restore(manager: ocp.CheckpointManager, like: TrainState) -> tuple[TrainState, int]:
    """The newest checkpoint that can be read -> (state, next_batch). `like`: shapes with shardings, of any mesh.

    Damaged checkpoints are named and moved to `damaged/` beside `checkpoints/`. Raises UserError where all are damaged.
    """
    damaged = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            place = manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]
            saved = like.replace(frozen={}, opt=like.opt if place["optimizers"] else {})
            state = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(saved)))["state"]
        except Exception as e:  # Orbax passes on any error of its storage
            print(f"checkpoint {step} cannot be read and is passed over: {str(e).splitlines()[0]}", flush=True)
            damaged.append(step)
            continue
        aside = manager.directory.parent / "damaged"
        for bad in damaged if jax.process_index() == 0 else ():
            aside.mkdir(exist_ok=True)
            (manager.directory / str(bad)).rename(aside / f"{bad}-{time.time_ns()}")
        if damaged:
            manager.reload()
        return state, place["next_batch"]
    raise UserError(f"no checkpoint in {manager.directory} can be read with this config; choose another run directory")


def steps(workdir: Path) -> list[int]:
    """The steps with a checkpoint, ascending; [] where there is none."""
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def read_config(workdir: Path, step: int | None = None) -> tuple[ConfigDict, int]:
    """The config stored at a step (None for the newest that can be read), as it was stored; and that step.

    Raises UserError where there is none.
    """
    if not workdir.is_dir():
        raise UserError(f"run directory {workdir} does not exist; train there first, or name another")
    found = steps(workdir)
    if not found or (step is not None and step not in found):
        raise UserError(
            f"run directory {workdir} holds no checkpoint{'' if step is None else f' of step {step}'};"
            f" it has {found or 'none'}"
        )
    with quiet(), open_manager(workdir) as manager:
        for candidate in reversed(found) if step is None else [step]:
            try:
                stored = manager.restore(candidate, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
            except Exception:  # cut off while it was written, say: Orbax passes on any error of its storage
                continue
            return ConfigDict(to_tuples(stored)), candidate
    raise UserError(f"run directory {workdir}: no config can be read in its checkpoints {found}")


def to_tuples(tree: Any) -> Any:
    """Turns JSON's lists back into tuples."""
    if isinstance(tree, dict):
        return {key: to_tuples(value) for key, value in tree.items()}
    return tuple(map(to_tuples, tree)) if isinstance(tree, list) else tree


def load_net(workdir: Path, step: int, name: str, like: dict) -> dict:
    """One net of a finished stage as numpy arrays: its average where it has one, else its weights.

    like: shapes of the net's parameters; raises UserError where the checkpoint holds others.
    """
    path = state_path(workdir, step)
    with quiet(), ocp.PyTreeCheckpointer() as reader:
        extra = reader.metadata(path).item_metadata.tree.get("extra", {})
    place = ("extra", name, "ema") if "ema" in extra.get(name, {}) else ("params", name)
    return load_tree(workdir, step, place, like)


def state_path(workdir: Path, step: int) -> Path:
    """The path of a step's train state; raises UserError where there is none."""
    path = (workdir / "checkpoints" / str(step) / "state").absolute()
    if not (path / "_METADATA").exists():
        raise UserError(f"run directory {workdir} holds no readable checkpoint of step {step}; it has {steps(workdir)}")
    return path


def load_tree(workdir: Path, step: int, place: tuple[str, ...], like: dict) -> dict:
    """A part of a train state as numpy arrays; `place` holds its keys. `like` and errors are as in `load_net`."""
    if not like:
        return {}
    path = state_path(workdir, step)
    with quiet(), ocp.PyTreeCheckpointer() as reader:
        item = like
        for key in reversed(place):
            item = {key: item}
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        tree = reader.restore(path, args=ocp.args.PyTreeRestore(item=item, restore_args=numpy, partial_restore=True))
    for key in place:
        tree = tree[key]
    for (where, leaf), expected in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(like), strict=True):
        if not isinstance(leaf, np.ndarray):  # it was not there
            raise UserError(
                f"{path} holds no {'/'.join(place)}{jax.tree_util.keystr(where)}: it is another kind of run"
            )
        if leaf.shape != expected.shape:
            raise UserError(f"{path}: {jax.tree_util.keystr(where)} is {leaf.shape}, its config says {expected.shape}")
    return tree
