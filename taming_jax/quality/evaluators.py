"""The evaluators of a run: `config.evals`, a table of what else is asked of it at each evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from taming_jax import checkpoint, completion, sharding
from taming_jax import state as states
from taming_jax.errors import ArgumentError, UserError
from taming_jax.quality import networks, reconstructions, record, samples
from taming_jax.quality.options import KINDS, filled
from taming_jax.quality.viewer import Judged
from taming_jax.state import TrainState
from taming_jax.writer import Writer

MAKERS = {"reconstructions": reconstructions.make, "samples": samples.make}


# (weights of the net that is judged, which they are) -> Judged.
Evaluator = Callable[[dict, dict], Judged]


def make_evaluator(config: ConfigDict, fields: dict[str, Any], mesh: Mesh, store: Path | None = None) -> Evaluator:
    """An evaluator of a complete config's runs. Loads the network that judges; raises UserError where it cannot."""
    return MAKERS[fields["kind"]](config, filled(fields), mesh, store)


def kind_of(config: ConfigDict) -> str:
    """The kind of evaluator that a config's runs are judged by."""
    return next(name for name, kind in KINDS.items() if kind.task == config.task)


def judge_run(
    workdir: str | Path, *, config: ConfigDict | None = None, store: Path | None = None, **fields: Any
) -> tuple[int, Judged]:
    """Judges a run directory, -> (the step, what came of it): `judge_run("runs/a", features="vgg", num_samples=512)`.

    fields: see `options`. config: its own, or with other data. store: where features are kept. Raises ArgumentError for
    fields that its kind of run does not have.
    """
    own, step, params = completion.load_run(Path(workdir))
    config = own if config is None else config
    kind = kind_of(config)
    for name, value in fields.items():
        if name not in KINDS[kind].options:
            known = ", ".join(KINDS[kind].options)
            raise ArgumentError(f"{name}: a {config.task!r} run is not judged by it; there are {known}")
        KINDS[kind].options[name].rule(name, value, ArgumentError)
    mesh = sharding.mesh_here()
    evaluator = make_evaluator(config, fields | dict(kind=kind), mesh, store)
    return step, evaluator(params, dict(step=step, weights=checkpoint.digest(params)))


def make_evaluators(config: ConfigDict, mesh: Mesh) -> dict[str, Evaluator]:
    """Those of a config's table, by their names there, on the devices of a mesh."""
    mesh, found = sharding.to_sample(mesh), {}
    for name, fields in config.evals.items():
        try:
            found[name] = make_evaluator(config, fields.to_dict(), mesh)
        except ArgumentError as e:
            raise UserError(f"evals.{name}.{str(e).removeprefix('--')}") from e
    return found


def numbers_of(config: ConfigDict) -> list[str]:
    """The numbers that the evaluators of a config give, 'name/fd_efficientnet', for `checkpoint_best`."""
    found = []
    for name, given in config.evals.items():
        fields = filled(given.to_dict())
        network, reference = fields["features"].partition(":")[0], fields.get("reference", "")
        kinds = ["frechet", *(["spatial", "inception_score"] if network == "inception" else [])]
        kinds += [] if reference.endswith(".npz") else ["precision", "recall"]  # statistics may have no features
        named = [networks.called(network, kind) for kind in kinds]
        if fields["kind"] == "reconstructions":
            named = [f"r{n}" for n in named] + [f"p{named[0]}"]
        found += [f"{name}/{n}" for n in named]
    return found


def judge_state(evaluators: dict[str, Evaluator], state: TrainState, config: ConfigDict, writer: Writer) -> None:
    """Runs evaluators on a state; writes their numbers under their names, with their protocol, and their pictures."""
    step = int(state.step)
    params = states.averaged(state, completion.NETS[config.task])
    about = dict(step=step, weights=checkpoint.digest(params))
    for name, evaluator in evaluators.items():
        write(evaluator(params, about), writer, step, name, moves=True)


def write(judged: Judged, writer: Writer, step: int, name: str, moves: bool = False) -> None:
    """Writes numbers, protocol and picture under a name. moves: see `record.write`."""
    writer.scalars(step, name, judged.numbers)
    if judged.sheet is not None:
        writer.picture(step, f"{name}_nearest", judged.sheet)
    if writer.active:
        record.write(writer.workdir, name, judged.numbers, judged.protocol, judged.by_class, moves)
