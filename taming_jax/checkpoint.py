"""Run directories: `workdir/checkpoints/<step>/` holds the train state, the next batch's number, the config and sums.

Sums are checksums of every array and of both JSON files. Orbax restores flipped bits in silence, so everything that is
read here is compared with them. Checkpoints from before there were sums are read as they are. The folder of a published
run (`published`) is read as a run directory with one step, and never written.
"""

import functools
import hashlib
import json
import logging as python_logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from taming_jax import memory, published, sharding
from taming_jax.console import say
from taming_jax.errors import UserError
from taming_jax.hub import address
from taming_jax.state import Task, TrainState

T = TypeVar("T")

PLACES = ("workdir", "origin", "codes", "path", "dir", "init_from")  # fields of configs that hold paths
CLOSED = "Event loop is closed"
PAUSES = (1, 4)  # seconds before reading is tried again


class Damaged(UserError):
    """A checkpoint that can be read from its disk, but is not what was written."""


class Unsaved(UserError):
    """A checkpoint that cannot be written. Threads that wrote it may still run, and complain."""


class Misfit(UserError):
    """A checkpoint of other arrays than the config's."""


@contextmanager
def quiet() -> Iterator[None]:
    """Within, Orbax does not warn on the terminal, which the user of a notebook cannot mend."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def quiet_threads() -> None:
    """From now on, threads of a save or a restore do not tell one by one that it has failed; we tell it once.

    When one of many fails, Orbax ends the loop in which the others wait. Each of these then prints a stack trace from
    its thread, sooner or later, and asyncio one for each result that nobody asks for.
    """
    if getattr(sys.excepthook, "__name__", "") == pass_on_others.__name__:
        return
    sys.excepthook = functools.partial(pass_on_others, sys.excepthook)
    sys.excepthook.__name__ = pass_on_others.__name__
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda found: str(found.exc_value) == CLOSED or unraisable(found)
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL)


def pass_on_others(hook: Callable, kind: type, error: BaseException, trace: Any) -> None:
    """Calls `hook` for an exception that is not of a closed loop."""
    if str(error) != CLOSED:
        hook(kind, error, trace)


@contextmanager
def open_manager(workdir: Path, keep: int = 3, read_only: bool = False) -> Iterator[ocp.CheckpointManager]:
    """Saves asynchronously and keeps the newest `keep`; at the end, waits for the last save.

    Raises UserError where a save fails. read_only: nothing is made, deleted or written.
    """
    published.check_writable(workdir)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=True,
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,  # what a killed process has left
    )
    quiet_threads()
    with quiet():
        manager = ocp.CheckpointManager((workdir / "checkpoints").absolute(), options=options)
        try:
            yield manager
            wait(manager)
        finally:
            try:
                manager.close()
            except Exception:  # of a save that has failed: `wait` has told it
                pass


def save(manager: ocp.CheckpointManager, state: TrainState, next_batch: int, config: ConfigDict) -> None:
    """Starts a save of everything but the frozen nets. `next_batch` is the state of the data iterator.

    A state without optimizers (`opt` is {}), such as a converted one, gets fresh ones when it is restored, and nets
    that it lacks, such as a discriminator, begin anew. Raises UserError where an array holds a number that is not
    finite, or where this save or the one before it fails.
    """
    step, workdir, state = int(state.step), workdir_of(manager), state.replace(frozen={})
    sums, finite = sum_arrays(state)
    if bad := [name for name, whole in finite.items() if not whole]:
        raise UserError(
            f"step {step} is not saved: {bad[0]} holds numbers that are not finite"
            f"{f', and so do {len(bad) - 1} others' if bad[1:] else ''}; {newest_is(workdir)}"
        )
    place = {"next_batch": next_batch, "optimizers": bool(state.opt), "summed": True}
    stored = relative_to(workdir, config.to_dict())
    wait(manager)
    if step in manager.all_steps():  # where a signal came right after it was saved
        return
    with saving(workdir, step):
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                data=ocp.args.JsonSave(place),
                config=ocp.args.JsonSave(stored),
                sums=ocp.args.JsonSave({"state": sums, "data": sum_json(place), "config": sum_json(stored)}),
            ),
            force=True,
        )


def check(manager: ocp.CheckpointManager) -> None:
    """Raises UserError where a save in the background has failed."""
    with saving(workdir_of(manager)):
        manager.check_for_errors()


def wait(manager: ocp.CheckpointManager) -> None:
    """Waits for the save in the background; raises UserError where it has failed."""
    with saving(workdir_of(manager)):
        manager.wait_until_finished()


def workdir_of(manager: ocp.CheckpointManager) -> Path:
    """The run directory as a path of Python's: the manager has one of etils', which cannot do all that those can."""
    return Path(manager.directory).parent


@contextmanager
def saving(workdir: Path, step: int | None = None) -> Iterator[None]:
    """Within, whatever Orbax and its storage raise is a UserError that names the last good checkpoint."""
    try:
        yield
    except Exception as e:
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        raise Unsaved(f"{what} cannot be written to {workdir}: {cause_of(e)}; {newest_is(workdir)}") from e


def newest_is(workdir: Path) -> str:
    """'the newest checkpoint is of step 4', for messages."""
    found = steps(workdir)
    return f"the newest checkpoint is of step {found[-1]}" if found else "there is no checkpoint yet"


def cause_of(error: BaseException) -> str:
    """What the operating system said, if it is among the causes; else the first line of the error."""
    chain, seen = error, set()
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        if isinstance(chain, OSError) and chain.strerror:
            return chain.strerror
        chain = chain.__cause__ or chain.__context__
    text = " ".join(str(error).split())
    for number in (28, 122, 27, 30, 13, 5):  # tensorstore writes the operating system's words into its own
        if os.strerror(number) in text:
            return os.strerror(number)
    return text[:200] or type(error).__name__


def init_or_restore(
    manager: ocp.CheckpointManager,
    task: Task,
    key: jax.Array,
    mesh: Mesh,
    set_aside: bool = False,
    begin: dict | None = None,
) -> tuple[TrainState, int]:
    """The newest whole checkpoint, or a fresh state where there is none, with the frozen nets; -> (state, next_batch).

    The state is created or read in shards by `sharding.RULES`: no device ever holds all of it. set_aside: damaged
    checkpoints are moved, as only training may, which will write others of their steps. begin: weights of another run
    for a fresh state, see `origin.load`.
    """
    shapes = jax.eval_shape(task.init, key)
    shardings = sharding.infer_shardings(shapes, mesh)
    memory.check_state(shapes, shardings)
    frozen = task.load_frozen()
    frozen = jax.device_put(frozen, sharding.infer_shardings(frozen, mesh))
    if manager.latest_step() is None:
        begin = jax.device_put(begin or {}, sharding.infer_shardings(begin or {}, mesh))
        state, next_batch = jax.jit(task.init, out_shardings=shardings)(key, begin, frozen), 0
    else:
        state, next_batch = restore(manager, sharding.with_shardings(shapes, mesh), set_aside)
        if not state.opt:
            lacks = functools.partial(lacking, state)
            new = jax.jit(lambda key: lacks(task.init(key)), out_shardings=lacks(shardings))(key)
            params, extra = {**state.params, **new.params}, {**state.extra, **new.extra}
            state = state.replace(params=params, extra=extra, opt=new.opt)
            if new.params and set_aside:
                say(f"{workdir_of(manager)} holds no {', '.join(new.params)}: anew")
    return state.replace(frozen=frozen), next_batch


def lacking(state: TrainState, whole: TrainState) -> TrainState:
    """What a state of nets alone lacks: optimizers, and the nets that it does not have."""
    params, extra = ({n: x for n, x in part.items() if n not in state.params} for part in (whole.params, whole.extra))
    return whole.replace(step=None, params=params, extra=extra, frozen=None)


def restore(manager: ocp.CheckpointManager, like: TrainState, set_aside: bool = False) -> tuple[TrainState, int]:
    """The newest whole checkpoint -> (state, next_batch). `like`: shapes with shardings, of any mesh.

    Damaged ones are named; `set_aside` moves them to `damaged/` beside `checkpoints/`. Raises UserError where all are
    damaged, where the config is for arrays of other shapes, or where the disk cannot be read.
    """
    workdir = workdir_of(manager)
    whole = like.replace(frozen={})

    def read(step: int) -> tuple[TrainState, int]:
        read_json(workdir, step, "config")  # all of a checkpoint is whole, or it is not used
        place = read_json(workdir, step, "data")
        saved = whole
        if not place["optimizers"]:
            held = read_metadata(workdir, step)["params"]
            params, extra = ({n: x for n, x in part.items() if n in held} for part in (whole.params, whole.extra))
            saved = whole.replace(opt={}, params=params, extra=extra)
        if misfit := find_misfit(workdir, step, saved):
            raise Misfit(f"checkpoint {step} in {workdir} does not fit this config: {misfit}")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(saved))
        state = attempt(lambda: manager.restore(step, args=args)["state"], workdir, step)
        found, finite = sum_arrays(state)
        if (sums := read_sums(workdir, step)) is not None:
            compare(sums["state"], found, workdir, step)
        bad = [name for name, whole in finite.items() if not whole]
        if bad and all(name.startswith("opt/") for name in bad):  # from before such states were not saved
            say(f"checkpoint {step} has infinities in {bad[0]}: the optimizer begins afresh")
            state = state.replace(opt={})
        return state, place["next_batch"]

    (state, next_batch), _, damaged = newest(workdir, read, steps(workdir))
    if damaged and set_aside:
        aside = workdir / "damaged"
        for bad in damaged if jax.process_index() == 0 else ():
            aside.mkdir(exist_ok=True)
            moved = aside / f"{bad}-{time.time_ns()}"
            (workdir / "checkpoints" / str(bad)).rename(moved)
            say(f"checkpoint {bad} is in {moved} now")
        meet("damaged checkpoints are set aside")
        manager.reload()
    return state, next_batch


def newest(workdir: Path, read: Callable[[int], T], among: list[int]) -> tuple[T, int, list[int]]:
    """-> (what `read` makes of the newest step that is whole, that step, the damaged ones after it).

    Names the damaged ones. Raises Damaged where all are.
    """
    damaged = []
    for step in reversed(among):
        try:
            return read(step), step, damaged
        except Damaged as e:
            if len(among) == 1:
                raise
            damaged.append(step)
            say(f"checkpoint {step} cannot be read and is passed over: {e}")
    raise Damaged(f"no checkpoint in {workdir / 'checkpoints'} is whole; there are {among}")


def attempt(read: Callable[[], T], workdir: Path, step: int) -> T:
    """Returns `read()`, which reads from a checkpoint.

    What fails may be a disk or a network for a moment, and Orbax's storage tells that by any exception: so whatever it
    is, it is tried again. Raises Damaged where in the end all files can be read but not what they hold, UserError where
    a file cannot be read.
    """
    quiet_threads()
    for pause in (*PAUSES, None):
        try:
            return read()
        except (UserError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as e:
            error, unreadable = e, find_unreadable(workdir / "checkpoints" / str(step))
        if pause is not None:
            time.sleep(pause)
    if unreadable is None and isinstance(error, FileNotFoundError):
        raise Damaged(f"checkpoint {step} in {workdir} is damaged (files are missing)") from error
    if unreadable is None and not isinstance(error, OSError):
        raise Damaged(f"checkpoint {step} in {workdir} is damaged ({cause_of(error)})") from error
    raise UserError(
        f"{unreadable or workdir} cannot be read now ({cause_of(error)}); the same command again tries once more"
    ) from error


def find_unreadable(folder: Path) -> Path | None:
    """The first file below a folder whose bytes the operating system does not give."""
    for file in sorted(folder.rglob("*")):
        try:
            if file.is_file():
                with file.open("rb") as opened:
                    while opened.read(1 << 24):
                        pass
        except FileNotFoundError:
            continue
        except OSError:
            return file
    return None


def find_misfit(workdir: Path, step: int, like: TrainState) -> str:
    """How a checkpoint's arrays differ from `like` (shapes): the first difference, or ''."""
    return find_difference(read_metadata(workdir, step), like, "in the checkpoint")


def find_difference(found: Any, asked: Any, where: str) -> str:
    """The first array, by its path, whose shape differs in two trees, with both; or ''. where: the first tree is."""
    found, asked = ({name: tuple(leaf.shape) for name, leaf in by_name(tree).items()} for tree in (found, asked))
    for name in sorted(found | asked):
        if found.get(name) != asked.get(name):
            words = [
                f"is {shape}" if shape is not None else "is not there" for shape in (found.get(name), asked.get(name))
            ]
            return f"{name} {words[0]} {where} and {words[1]} by the config"
    return ""


def read_metadata(workdir: Path, step: int) -> dict:
    """The tree of a train state's arrays, as shapes."""
    path = state_path(workdir, step)
    if published.is_published(workdir):
        with reading(path):
            found = {name: jax.ShapeDtypeStruct(*like) for name, like in published.shapes(workdir).items()}
            return {"params": {}, "extra": {}} | traverse_util.unflatten_dict(found, sep="/")
    with quiet(), ocp.PyTreeCheckpointer() as reader:
        return attempt(lambda: reader.metadata(path).item_metadata.tree, workdir, step)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within, whatever the reader of a published run's file raises is Damaged."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as e:
        raise Damaged(f"{path} is damaged ({cause_of(e)})") from e


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths: 'params/gen/conv_out/kernel'."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def name_of(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def sum_block(x: np.ndarray, start: tuple[int, ...], shape: tuple[int, ...]) -> np.uint64:
    """The checksum of a block of an array of `shape`: the sum of its bits, weighted by their places, modulo 2^64.

    Weights are odd, so that any single change shows. As it is a sum, blocks may be added up in any order: the mesh that
    holds an array does not matter.
    """
    strides = np.cumprod((1, *shape[:0:-1]), dtype=np.uint64)[::-1][: len(shape)]
    place = np.zeros((1,) * x.ndim, np.uint64)
    for axis, (first, stride) in enumerate(zip(start, strides, strict=True)):
        line = (np.arange(x.shape[axis], dtype=np.uint64) + np.uint64(first)) * stride
        place = place + line.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    weight = place * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
    bits = x if x.dtype == bool else x.view(f"uint{8 * x.dtype.itemsize}")
    return (bits.astype(np.uint64) * weight).sum(dtype=np.uint64)


def sum_array(x: Any, whole: bool = True, part: int = 1 << 22) -> tuple[np.uint64, bool]:
    """-> (the checksum of what this process holds of an array, each element once over all; whether that is finite).

    whole: whether an array of numpy's counts, which every process has.
    """
    if isinstance(x, jax.Array):
        shards = [(s.data, s.index) for s in x.addressable_shards if s.replica_id == 0]
    else:
        shards = [(x, (slice(None),) * np.ndim(x))] if whole else []
    total, finite = np.zeros((), np.uint64), True
    for data, index in shards:
        block, start = np.ascontiguousarray(data).reshape(np.shape(data)), [s.start or 0 for s in index]
        rows = max(1, part // max(1, block[:1].size)) if block.ndim else 1
        for first in range(0, len(block) if block.ndim else 1, rows):
            chunk = block[first : first + rows] if block.ndim else block
            total += sum_block(chunk, (start[0] + first, *start[1:]) if start else (), x.shape)
            finite &= bool(np.isfinite(chunk).all())
    return total, finite


def sum_arrays(tree: Any) -> tuple[dict[str, str], dict[str, bool]]:
    """Checksums in hexadecimal, and whether each array is finite, by the arrays' paths. Takes numpy's and jax's.

    It is computed where Orbax copies the arrays to as well, on the host: a program for hundreds of them would take
    longer to compile than they to be summed.
    """
    leaves = by_name(tree)
    if not leaves:
        return {}, {}
    spread = jax.process_count() > 1 and any(isinstance(leaf, jax.Array) for leaf in leaves.values())
    found = {name: sum_array(leaf, not spread or jax.process_index() == 0) for name, leaf in leaves.items()}
    sums, finite = (np.array(column) for column in zip(*found.values(), strict=True))
    if spread:
        halves = multihost_utils.process_allgather(np.stack([sums >> 32, sums & 0xFFFFFFFF]).astype(np.uint32))
        high, low = halves.astype(np.uint64).sum(0)
        sums, finite = (high << np.uint64(32)) + low, multihost_utils.process_allgather(finite).all(0)
    return {name: f"{value:016x}" for name, value in zip(found, sums, strict=True)}, dict(
        zip(found, finite.tolist(), strict=True)
    )


def sum_json(tree: Any) -> str:
    """The digest of what a JSON file holds."""
    return hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=16).hexdigest()


def compare(expected: dict[str, str], found: dict[str, str], workdir: Path, step: int) -> None:
    """Raises Damaged where a checksum is not the one that was stored with the array."""
    for name, value in found.items():
        if expected.get(name) != value:
            raise Damaged(f"checkpoint {step} in {workdir} is damaged ({name} is not what was written)")


def digest(tree: Any) -> str:
    """Identifies a net by its weights, wherever they are: 16 hexadecimal digits."""
    return sum_json(sum_arrays(tree)[0])[:16]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory or a published run. Raises UserError for one of these that is damaged."""
    return (folder / "checkpoints").is_dir() or published.is_published(folder)


def steps(workdir: Path) -> list[int]:
    """The steps with a checkpoint, ascending; [] where there is none."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        described = published.describe(workdir)
        return [] if described is None else [described["step"]]
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def read_json(workdir: Path, step: int, name: str) -> Any:
    """What a checkpoint's 'config' or 'data' holds, compared with its digest. Raises Damaged."""
    sums = read_sums(workdir, step)
    content = _read_json(workdir, step, name)
    if sums is not None and sums[name] != sum_json(content):
        raise Damaged(f"checkpoint {step} in {workdir} is damaged ({name} is not what was written)")
    return content


def read_sums(workdir: Path, step: int) -> dict | None:
    """The sums of a checkpoint; None for one from before there were sums. Raises Damaged."""
    if not published.is_published(workdir) and not (workdir / "checkpoints" / str(step) / "sums").exists():
        place = _read_json(workdir, step, "data")
        if isinstance(place, dict) and place.get("summed"):
            raise Damaged(f"checkpoint {step} in {workdir} is damaged (its sums are missing)")
        return None
    sums = _read_json(workdir, step, "sums")
    if not (isinstance(sums, dict) and sums.keys() >= {"state", "data", "config"} and isinstance(sums["state"], dict)):
        raise Damaged(f"checkpoint {step} in {workdir} is damaged (sums cannot be read)")
    return sums


def _read_json(workdir: Path, step: int, name: str) -> Any:
    if published.is_published(workdir):
        return published.describe(workdir)[name]
    file = workdir / "checkpoints" / str(step) / name / "metadata"
    if not file.exists():  # no disk says that for a moment
        raise Damaged(f"checkpoint {step} in {workdir} is damaged (its {name} is missing)")
    content = attempt(file.read_bytes, workdir, step)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as e:
        raise Damaged(f"checkpoint {step} in {workdir} is damaged (its {name} cannot be read)") from e


def read_config(workdir: Path, step: int | None = None) -> tuple[ConfigDict, int]:
    """The config stored at a step (None for the newest that can be read), as it was stored; and that step.

    Raises UserError where there is none.
    """

    def read(step: int) -> ConfigDict:
        stored = read_json(workdir, step, "config")
        stored = published.at_home(stored) if published.is_published(workdir) else stored
        stored = stored if read_sums(workdir, step) is None else from_relative(workdir, stored)
        return ConfigDict(to_tuples(stored))

    config, step, _ = newest(workdir, read, required_steps(workdir, step))
    return config, step


def required_steps(workdir: Path, step: int | None = None) -> list[int]:
    """The steps with a checkpoint, or the one that is asked for; raises UserError where there is none."""
    if not workdir.is_dir():
        how = "train there first, or name another"
        if address.is_name(workdir):
            how = f"taming hub pull --from={workdir} --workdir=... makes one"
        raise UserError(f"run directory {workdir} does not exist; {how}")
    found = steps(workdir)
    if not found or (step is not None and step not in found):
        raise UserError(
            f"run directory {workdir} holds no checkpoint{'' if step is None else f' of step {step}'};"
            f" it has {found or 'none'}"
        )
    return found if step is None else [step]


def to_tuples(tree: Any) -> Any:
    """Turns JSON's lists back into tuples."""
    if isinstance(tree, dict):
        return {key: to_tuples(value) for key, value in tree.items()}
    return tuple(map(to_tuples, tree)) if isinstance(tree, list) else tree


def change_places(tree: Any, change: Callable[[str], str]) -> Any:
    """Changes every path in a config, given as a dict."""
    if not isinstance(tree, dict):
        return tree
    return {
        key: change(value) if key in PLACES and isinstance(value, str) and value else change_places(value, change)
        for key, value in tree.items()
    }


def relative_to(workdir: Path, config: dict) -> dict:
    """A config to be stored: paths in the run, or relative to the shell's folder, become relative to the run.

    They begin with a dot then. Others stay absolute.
    """
    real = os.path.realpath(workdir)  # where a link to the run leads, or paths would depend on how it is called
    inside = tuple(folder + os.sep for folder in (os.path.abspath(workdir), real))

    def change(path: str) -> str:
        if (
            path.startswith("~")
            or address.is_address(path)
            or (Path(path).is_absolute() and not path.startswith(inside))
        ):
            return path
        moved = os.path.relpath(os.path.realpath(path) if path.startswith(inside) else os.path.abspath(path), real)
        return moved if moved.startswith("..") else os.path.join(".", moved)

    return change_places(config, change)


def from_relative(workdir: Path, config: dict) -> dict:
    """The inverse, for wherever run and shell are now."""

    def change(path: str) -> str:
        if not path.startswith("."):
            return path
        return str(from_here(Path(os.path.realpath(workdir)) / path))

    return change_places(config, change)


def from_here(path: Path) -> Path:
    """The shortest name of a path: relative to the shell's folder if it lies below."""
    path, here = Path(os.path.abspath(path)), Path(os.path.abspath("."))
    return path.relative_to(here) if path.is_relative_to(here) else path


def load_net(workdir: Path, step: int, name: str, like: dict) -> dict:
    """One net of a finished stage as numpy arrays: its average where it has one, else its weights.

    like: shapes of the net's parameters; raises UserError where the checkpoint holds others, Damaged where an array is
    not what was written.
    """
    return load_tree(workdir, step, place_of(read_metadata(workdir, step), name), like)


def place_of(tree: dict, name: str) -> tuple[str, ...]:
    """Where a train state (or its metadata) holds the weights of a net that are sampled with."""
    return ("extra", name, "ema") if "ema" in tree.get("extra", {}).get(name, {}) else ("params", name)


def state_path(workdir: Path, step: int) -> Path:
    """The path of a step's train state; raises Damaged where it is not there, UserError where the step is not."""
    if published.is_published(workdir) and steps(workdir) == [step]:
        if not (workdir / published.WEIGHTS).exists():
            raise Damaged(f"{workdir} is no whole published run: its {published.WEIGHTS} is missing")
        return workdir / published.WEIGHTS
    path = (workdir / "checkpoints" / str(step) / "state").absolute()
    if not (path / "_METADATA").exists():
        if step not in steps(workdir):
            has = steps(workdir)
            raise UserError(f"run directory {workdir} holds no readable checkpoint of step {step}; it has {has}")
        raise Damaged(f"checkpoint {step} in {workdir} is damaged (its state is missing)")
    return path


def load_tree(workdir: Path, step: int, place: tuple[str, ...], like: dict) -> dict:
    """A part of a train state as numpy arrays; `place` holds its keys. `like` and errors are as in `load_net`."""
    if not like:
        return {}
    path = state_path(workdir, step)
    item = like
    for key in reversed(place):
        item = {key: item}
    if published.is_published(workdir):
        with reading(path):
            found = published.read(workdir, by_name(item))
        tree = jax.tree.map_with_path(lambda where, like: found.get(name_of(where), like), item)
    else:
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=numpy, partial_restore=True)
        with quiet(), ocp.PyTreeCheckpointer() as reader:
            tree = attempt(lambda: reader.restore(path, args=args), workdir, step)
    inner = tree
    for key in place:
        inner = inner[key]
    for (where, leaf), expected in zip(jax.tree_util.tree_leaves_with_path(inner), jax.tree.leaves(like), strict=True):
        if not isinstance(leaf, np.ndarray):  # it was not there
            raise UserError(
                f"{path} holds no {'/'.join(place)}{jax.tree_util.keystr(where)}: it is another kind of run"
            )
        if leaf.shape != expected.shape:
            raise UserError(f"{path}: {jax.tree_util.keystr(where)} is {leaf.shape}, its config says {expected.shape}")
    if (sums := read_sums(workdir, step)) is not None:
        compare(sums["state"], sum_arrays(tree)[0], workdir, step)
    return inner


def verify(workdir: Path, step: int) -> tuple[int, bool]:
    """Reads all of a checkpoint -> (how many arrays it has, whether there are sums to compare them with).

    Raises Damaged where it is not what was written.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), read_metadata(workdir, step))
    for name in ("config", "data"):
        read_json(workdir, step, name)
    for name, like in shapes.items():
        load_tree(workdir, step, (), {name: like})
    sums = read_sums(workdir, step)
    if sums is not None and (lost := sums["state"].keys() - by_name(shapes).keys()):
        raise Damaged(f"checkpoint {step} in {workdir} is damaged ({min(lost)} is missing)")
    return len(by_name(shapes)), sums is not None


def copy_nets(workdir: Path, step: int, out: Path) -> None:
    """Writes a run directory of a stage's nets alone, see `load_nets`.

    What `out` holds already is replaced as a whole.
    """
    state = load_nets(workdir, step)
    config, _ = read_config(workdir, step)
    config.ema_decay = 0.0
    part = out.with_name(out.name + ".part")
    if jax.process_index() == 0:
        shutil.rmtree(part, ignore_errors=True)
    meet("there is room for a copy")
    with open_manager(part) as manager:
        save(manager, state, 0, config)
    if jax.process_index() == 0:
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    meet("the copy is there")


def load_nets(workdir: Path, step: int) -> TrainState:
    """The nets of a run as numpy arrays: without optimizer, and with averages in place of their weights."""
    found = read_metadata(workdir, step)
    tree = {
        name: load_tree(
            workdir, step, (name,), jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found[name])
        )
        for name in ("params", "extra")
    }
    params = {name: tree[place_of(tree, name)[0]][name] for name in tree["params"]}
    for name in params:
        if place_of(tree, name)[0] == "extra":
            params[name] = params[name]["ema"]
    extra = {net: {n: x for n, x in tree["extra"].get(net, {}).items() if n != "ema"} for net in params}
    return TrainState(np.int32(step), params, {}, extra, {})


def meet(what: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
