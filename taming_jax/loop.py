"""The loop that trains a stage: a config and a run directory in; checkpoints, metrics and pictures out."""

import json
import math
import signal
import time
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import jax
import numpy as np
import optax
from clu import parameter_overview
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from taming_jax import checkpoint, completion, data, encoded, metrics, sharding
from taming_jax.backend import compiler_options
from taming_jax.console import Progress, say
from taming_jax.errors import UserError, not_among
from taming_jax.evaluation import evaluate
from taming_jax.state import Task, TrainState
from taming_jax.tasks import make_task
from taming_jax.writer import Writer

PROFILED_STEPS = 3
PREEMPTED = 75  # sysexits.h's "try again": the launcher starts the job again


def train(config: ConfigDict, workdir: Path, profile_step: int | None = None) -> dict[str, float]:
    """Trains to `config.steps`, from the newest checkpoint in `workdir` if there is one; returns the last evaluation.

    Raises UserError for mistakes that the user can correct. Raises SystemExit once a checkpoint is saved: PREEMPTED
    after SIGTERM, 130 after Ctrl-C.
    """
    check(config)
    check_agreement({**config.to_dict(), "workdir": str(workdir)})
    completion.check_task(config.task)
    stored = None
    if checkpoint.steps(workdir):
        stored, done = completion.load_config(workdir)
        if stored.task != config.task:
            raise UserError(
                f"{workdir} holds a {stored.task!r} run, the config is for {config.task!r}: name another one"
            )
        if done >= config.steps:
            say(f"{workdir} is finished at step {done}. To go on, raise steps; else name another run directory.")
            say(f"Its figures and pictures again: python -m taming_jax.evaluate --workdir={workdir}")
            return {}

    config = completion.complete(config, stored)
    config.data.class_names = () if stored is None else stored.data.class_names  # not those of the first stage
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.batch_size, mesh, config.accumulate)
    held_out = data.in_turn(lambda: data.open_source(config.data, "validation"))
    on_codes = "codes" in config and bool(config.codes)
    source = held_out if on_codes else data.in_turn(lambda: data.open_source(config.data, "train"))
    config = completion.complete_from_data(config, source, stored, encoded.learned(config) if on_codes else None)
    task = make_task(config)
    source = encoded.open_codes(config) if on_codes else source
    augment = None if on_codes else data.make_augment(config.data, task.annotator)
    init_key, run_key = jax.random.split(jax.random.key(config.seed))

    with (
        jax.set_mesh(mesh),
        checkpoint.open_manager(workdir, config.keep_checkpoints) as manager,
        Writer(workdir, config) as writer,
        ExitStack() as exits,
        stop_signal() as stop,
    ):
        state, next_batch = checkpoint.init_or_restore(manager, task, init_key, mesh)
        start = int(state.step)
        describe(config, workdir, mesh, state, source, held_out)
        for change in completion.differences(stored, config) if stored is not None else []:
            say(f"going on with another config: {change}")

        batches = exits.enter_context(closing(data.train_batches(source, config, next_batch, augment)))
        batch = sharding.shard_batch(next(batches), mesh)
        if profile_step is not None and not start < profile_step <= config.steps:
            say(f"profile_step={profile_step} is not among the steps {start + 1} to {config.steps}: no profile")
        step_fn, phase, window, result = None, None, None, {}
        progress = Progress(start, config.steps, config.batch_size)

        for step in range(start + 1, config.steps + 1):
            if task.phase(step - 1) != phase or step_fn is None:
                phase = task.phase(step - 1)
                step_fn = compile_step(task, run_key, phase, state, batch)
                window = None  # the metrics of another phase have other names
                progress.restart(step - 1)
            if step == profile_step:
                profile = exits.enter_context(ExitStack())
                profile.enter_context(jax.profiler.trace(str(workdir / "profile")))

            state, logged = step_fn(state, batch)
            window = logged if window is None else metrics.merge(window, logged)
            next_batch += 1

            # Asked once: a later signal waits for the next step.
            stopping = agreed(stop, step, config) and step < config.steps
            if step < config.steps and not stopping:
                batch = sharding.shard_batch(next(batches), mesh)
            if profile_step is not None and step == profile_step + PROFILED_STEPS - 1:
                jax.block_until_ready(state.step)
                profile.close()
                say(f"profile of steps {profile_step} to {step} in {workdir / 'profile'}")

            evaluating = not stopping and (step == config.steps or step % config.eval_every == 0)
            saving = stopping or evaluating or step % config.checkpoint_every == 0
            if saving or step % config.log_every == 0:
                summary, window = metrics.summarize(window), None
                check_finite(summary["loss"], state, step, manager.latest_step())
                writer.scalars(step, "train", {**summary, **progress.report(step, summary)})
            if saving:
                checkpoint.save(manager, state, next_batch, config)
            if evaluating:
                result = evaluate(task, state, held_out, config, mesh, writer)
            if stopping:
                manager.wait_until_finished()
                say(f"stopped at step {step}, checkpoint saved; the same command goes on from there")
                raise SystemExit(130 if stop.received == signal.SIGINT else PREEMPTED)
            if saving:
                progress.restart(step)
        return result


def check(config: ConfigDict) -> None:
    """Raises UserError for values that no task can train with."""
    if config.dtype not in ("float32", "bfloat16"):
        raise not_among("dtype", config.dtype, ("float32", "bfloat16"))
    for name in (
        "batch_size",
        "steps",
        "log_every",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
        "accumulate",
    ):
        if config[name] < 1:
            raise UserError(f"{name}={config[name]}: it must be at least 1; a number over steps means never")


def check_finite(loss: float, state: TrainState, step: int, saved: int | None) -> None:
    """Raises UserError where the loss or the weights are not finite, before they are saved."""
    if not (math.isfinite(loss) and math.isfinite(optax.tree.norm(state.params))):
        raise UserError(
            f"the loss is {loss:g} and the norm of the weights {optax.tree.norm(state.params):g} at step {step};"
            f" the newest checkpoint is of step {saved}. Lower optim.learning_rate or set optim.clip_norm=1"
        )


def describe(config: ConfigDict, workdir: Path, mesh: Mesh, state: TrainState, source, held_out) -> None:
    """Says what is about to be trained, and writes the table of parameters into the run directory."""
    sizes = ", ".join(f"{net} {parameter_overview.count_parameters(p) / 1e6:.2f} M" for net, p in state.params.items())
    epochs = config.steps * config.batch_size / len(source)
    say(f"{workdir}: task {config.task}, parameters {sizes}")
    kind = source.kind if isinstance(source, encoded.Codes) else "images"
    say(f"{len(source)} {kind} to train on, {len(held_out)} held out")
    say(f"{config.steps} steps of {config.batch_size} images, {epochs:.1f} epochs, starting at step {state.step}")
    say(f"{jax.device_count()} devices ({jax.devices()[0].device_kind}), mesh {dict(mesh.shape)}")
    if jax.process_index() == 0:
        (workdir / "parameters.txt").write_text(
            parameter_overview.get_parameter_overview(state.params, include_stats="sharding")
        )


def trace_step(task: Task, run_key: jax.Array, phase: Hashable, state: TrainState, batch: dict) -> jax.stages.Traced:
    """The training step of a phase, with explicit shardings and a donated state, for arrays or for shapes of them."""

    def step(state, batch):
        return task.train_step(state, batch, jax.random.fold_in(run_key, state.step), phase)

    replicated = NamedSharding(state.step.sharding.mesh, PartitionSpec())
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(step, out_shardings=(shardings, replicated), donate_argnums=0).trace(state, batch)


def compile_step(
    task: Task, run_key: jax.Array, phase: Hashable, state: TrainState, batch: dict
) -> jax.stages.Compiled:
    """That step, compiled for these shapes."""
    say("compiling the training step" + (f" for {phase}" if phase else ""))
    began = time.monotonic()
    options = compiler_options(task.learns_convolutions)
    compiled = trace_step(task, run_key, phase, state, batch).lower().compile(options)
    say(f"compiled in {time.monotonic() - began:.0f} s")
    return compiled


def check_agreement(fields: dict) -> None:
    """Raises UserError, in every process, where a process was started with another config than process 0."""
    if jax.process_count() == 1:
        return
    written = json.dumps(fields)
    text = np.frombuffer(written.encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.array(len(text))).max())
    padded = np.pad(text, (0, longest - len(text)), constant_values=ord(" "))
    first = ConfigDict(json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes()))
    other = completion.differences(first, ConfigDict(json.loads(written)))
    differ = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(other))))
    if other:
        raise UserError(f"process {jax.process_index()} differs from process 0: {', '.join(other)}")
    if len(differ):
        raise UserError(f"the processes {', '.join(map(str, differ))} were started with another config than process 0")


def agreed(stop: "StopSignal", step: int, config: ConfigDict) -> bool:
    """Whether all processes stop after this step.

    jax itself passes on a notice of pre-emption (SIGTERM to any process); Ctrl-C is passed on every `log_every` steps.
    """
    if jax.process_count() == 1:
        return stop.received is not None
    if multihost_utils.reached_preemption_sync_point(step):
        stop.received = signal.SIGTERM
        return True
    interrupted = np.array(stop.received == signal.SIGINT)
    if step % config.log_every or not multihost_utils.process_allgather(interrupted).any():
        return False
    stop.received = signal.SIGINT
    return True


@contextmanager
def stop_signal() -> Iterator["StopSignal"]:
    """Inside this context, the first Ctrl-C or SIGTERM is only noted; a second Ctrl-C interrupts."""
    flag = StopSignal()
    # With several processes, jax itself catches SIGTERM and tells the others.
    caught = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else (signal.SIGINT,)
    before = {s: signal.signal(s, flag.handle) for s in caught}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignal:
    """Which signal asked the run to stop, if one did."""

    def __init__(self):
        self.received = None

    def handle(self, number: int, frame) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
        say("stopping, with a checkpoint; Ctrl-C once more stops at once, without one")
