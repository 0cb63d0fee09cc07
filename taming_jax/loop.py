"""The loop that trains a stage: a config and a run directory in; checkpoints, metrics and pictures out."""

import json
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from clu import parameter_overview
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from taming_jax import (
    best,
    checkpoint,
    completion,
    data,
    encoded,
    images,
    memory,
    metrics,
    origin,
    places,
    sharding,
    stopping,
)
from taming_jax.backend import compiler_options
from taming_jax.console import Progress, say
from taming_jax.errors import UserError
from taming_jax.evaluation import evaluate, make_evaluators, numbers_of
from taming_jax.fields import check_fields, differences
from taming_jax.state import Task, TrainState
from taming_jax.tasks import make_task
from taming_jax.writer import Writer, note_start, read_records

PROFILED_STEPS = 3
SILENCE = 30  # seconds of compiling after which the terminal hears that it goes on


def train(config: ConfigDict, workdir: Path, profile_step: int | None = None) -> dict[str, float]:
    """Trains to `config.steps`, from the newest checkpoint in `workdir` if there is one; returns the last evaluation.

    Raises UserError for mistakes that the user can correct. Raises SystemExit once a checkpoint is saved: PREEMPTED
    after SIGTERM, INTERRUPTED after Ctrl-C. In a notebook, Ctrl-C is a KeyboardInterrupt: the newest checkpoint stays.
    """
    check_fields(config)
    check_agreement({**config.to_dict(), "workdir": str(workdir)})
    if is_finished(config, workdir):
        return {}
    with places.claimed(workdir), telling_newest(workdir), stopping.listen() as stop, ExitStack() as exits:
        stored = completion.load_config(workdir)[0] if checkpoint.steps(workdir) else None
        config = completion.complete(config, stored)
        begins_from = completion.find_origin(config) if stored is None and config.init_from else None
        mesh = sharding.make_mesh(config.mesh)
        sharding.check_batch(config.batch_size, mesh, config.accumulate)
        on_codes = "codes" in config and bool(config.codes)
        config, source, held_out = open_data(config, stored, begins_from, on_codes)
        source = encoded.open_codes(config) if on_codes else source
        config = completion.keep_stages(config, workdir)
        task = make_task(config)
        augment = None if on_codes else data.make_augment(config.data, task.annotator)
        init_key, run_key = jax.random.split(jax.random.key(config.seed))
        begin = None if begins_from is None else origin.load(config, begins_from, jax.eval_shape(task.init, init_key))

        exits.enter_context(jax.set_mesh(mesh))
        # By jit: device_put brings no key to devices of other processes.
        run_key = jax.jit(lambda key: key, out_shardings=NamedSharding(mesh, PartitionSpec()))(run_key)
        manager = exits.enter_context(checkpoint.open_manager(workdir, config.keep_checkpoints))
        with completion.explain_misfit(stored, config):
            state, next_batch = checkpoint.init_or_restore(manager, task, init_key, mesh, set_aside=True, begin=begin)
        start = int(state.step)
        judges = make_evaluators(config, mesh)
        if config.checkpoint_best:
            best.check(config.checkpoint_best, numbers_of(task, state, held_out, config))
        writer = exits.enter_context(Writer(workdir, config, start))
        describe(config, workdir, mesh, state, source, held_out)
        for change in differences(stored, config) if stored is not None else []:
            say(f"going on with another config: {change}")

        phases = find_phases(task.phase, start, config.steps)
        progress = Progress(start, config.steps, config.batch_size, config.eval_every, dict.fromkeys(phases, 1.0))
        window, result, in_row, told = None, {}, 0, {}

        def evaluate_now() -> dict[str, float]:
            checkpoint.wait(manager)
            with stop.nothing_to_lose(), progress.evaluating():
                found = evaluate(task, state, held_out, config, mesh, writer, judges)
                if config.checkpoint_best:
                    best.keep(workdir, config.checkpoint_best)
                return found

        def save_and_stop() -> None:
            if in_row:  # what fails may be the state
                say(f"stopped at step {state.step}, which was skipped; {checkpoint.newest_is(workdir)}")
            else:
                checkpoint.save(manager, state, next_batch, config)
                checkpoint.wait(manager)
                say(f"stopped at step {state.step}, checkpoint saved; the same command goes on from there")
            raise SystemExit(stopping.CODES[stop.received])

        if lacks_evaluation(config, workdir, start):
            say(f"step {start} was not evaluated before the run was stopped")
            result = evaluate_now()
        elif config.checkpoint_best:  # the run may have been stopped before it was kept
            best.keep(workdir, config.checkpoint_best)
        if start >= config.steps:
            return result
        batches = exits.enter_context(closing(data.train_batches(source, config, next_batch, augment)))
        batch = sharding.shard_batch(next(batches), mesh)
        if profile_step is not None and not start < profile_step <= config.steps:
            say(f"profile_step={profile_step} is not among the steps {start + 1} to {config.steps}: no profile")

        for step in range(start + 1, config.steps + 1):
            if step - 1 in phases:
                try:
                    with stop.nothing_to_lose() if step - 1 == start else nullcontext():
                        step_fn = compile_step(task, run_key, phases[step - 1], state, batch, stop)
                except stopping.Interrupted:
                    save_and_stop()
                if step - 1 == start:
                    progress.costs = phase_costs(task, run_key, phases, state, batch)
                window = None  # the metrics of another phase have other names
                progress.restart(step - 1)
            if step == profile_step:
                profile = exits.enter_context(ExitStack())
                profile.enter_context(jax.profiler.trace(str(workdir / "profile")))

            state, logged = step_fn(state, batch, run_key)
            window = logged if window is None else metrics.merge(window, logged)
            next_batch += 1
            if step == start + 1 and config.log_every > 1:
                progress.first(step, metrics.summarize(logged))

            # Asked once: a later signal waits for the next step.
            stops = agreed(stop, step, config) and step < config.steps
            if step < config.steps and not stops:
                try:
                    with progress.waiting():
                        batch = sharding.shard_batch(next(batches), mesh)
                except UserError:  # too many bad pictures, or a reader that was killed
                    if jax.process_count() == 1 and not count_skipped(metrics.summarize(window), in_row):
                        checkpoint.save(manager, state, next_batch, config)
                    raise
            if profile_step is not None and step == profile_step + PROFILED_STEPS - 1:
                jax.block_until_ready(state.step)
                profile.close()
                say(f"profile of steps {profile_step} to {step} in {workdir / 'profile'}")

            evaluating = not stops and (step == config.steps or step % config.eval_every == 0)
            saving = stops or evaluating or step % config.checkpoint_every == 0
            if saving or step % config.log_every == 0:
                checkpoint.check(manager)
                summary, window = metrics.summarize(window), None
                in_row = count_skipped(summary, in_row)
                check_skipped(in_row, summary, state, config, workdir)
                writer.scalars(step, "train", {**summary, **progress.report(step, summary)})
                alarms = task.alarms(summary)
                for line in (line for what, line in alarms.items() if what not in told):
                    say(f"careful: {line}")
                told = alarms
            if stops:
                save_and_stop()
            if saving and (not in_row or step == config.steps):  # what fails may be the state, not the batch
                checkpoint.save(manager, state, next_batch, config)
            if evaluating:
                result = evaluate_now()
            if saving:
                progress.restart(step)
        return result


def open_data(
    config: ConfigDict, stored: ConfigDict | None, begins_from: ConfigDict | None, on_codes: bool
) -> tuple[ConfigDict, Any, Any]:
    """-> (the config with what the data tell, the data to train on, the data held out).

    begins_from: the config of the run with whose weights this one begins. Classes keep its numbers where it has them
    all. on_codes: the data to train on are the held-out ones, in place of codes.
    """

    def sources(known: ConfigDict | None) -> tuple:
        config.data.class_names = () if known is None else known.data.class_names  # not those of the first stage
        held_out = data.in_turn(lambda: data.open_source(config.data, "validation"))
        return held_out if on_codes else data.in_turn(lambda: data.open_source(config.data, "train")), held_out

    known, learned = stored, encoded.learned(config) if on_codes else None
    if begins_from is not None and not on_codes and completion.learns_alike(config, begins_from):
        known, learned = begins_from, begins_from.cond
    source, held_out = sources(known)
    if stored is None and known is not None and not completion.fits_classes(config, source.class_names):
        known = None
        source, held_out = sources(known)
    return completion.complete_from_data(config, source, known, learned), source, held_out


@contextmanager
def telling_newest(workdir: Path) -> Iterator[None]:
    """Within, what the system refuses, such as a full log, is a UserError that names the newest checkpoint."""
    try:
        yield
    except OSError as e:
        raise UserError(f"{e.filename or workdir}: {e.strerror or e}; {checkpoint.newest_is(workdir)}") from e


def is_finished(config: ConfigDict, workdir: Path) -> bool:
    """Whether a run has all its steps and its last evaluation; says so.

    Raises UserError for a run of another task, or one that has begun with other weights than the config names.
    """
    if not checkpoint.steps(workdir):
        return False
    stored, done = completion.load_config(workdir)
    if stored.task != config.task:
        raise UserError(f"{workdir} holds a {stored.task!r} run, the config is for {config.task!r}: name another one")
    completion.check_origin(config, stored, workdir)
    if done < config.steps or (done == config.steps and lacks_evaluation(config, workdir, done)):
        return False
    if config.checkpoint_best and best.find_better(workdir, config.checkpoint_best) is not None:
        return False
    try:
        checkpoint.verify(workdir, checkpoint.steps(workdir)[-1])
    except checkpoint.Damaged:
        return False  # it is named where the one before it is read, and trained from
    say(f"{workdir} is finished at step {done}. To go on, raise steps; else name another run directory.")
    say(f"Its figures and pictures again: python -m taming_jax.evaluate --workdir={workdir}")
    return True


def lacks_evaluation(config: ConfigDict, workdir: Path, step: int) -> bool:
    """Whether a run that has logged its training was stopped between a save and the evaluation that follows it."""
    lacks = False
    if jax.process_index() == 0 and step > 0 and (step == config.steps or step % config.eval_every == 0):
        logged = [(r["step"], r.get("split")) for r in read_records(workdir / "metrics.jsonl")]
        lacks = (step, "train") in logged and (step, "validation") not in logged
    return bool(multihost_utils.broadcast_one_to_all(np.array(lacks))) if jax.process_count() > 1 else lacks


def count_skipped(summary: dict[str, float], before: int) -> int:
    """How many steps in a row were skipped until now, `before` of them until the window of this summary."""
    in_row, steps = int(summary.pop("skipped_in_row")), int(summary.pop("steps"))
    return before + in_row if in_row == steps else in_row


def check_skipped(in_row: int, summary: dict, state: TrainState, config: ConfigDict, workdir: Path) -> None:
    """Raises UserError where too many steps in a row were skipped, or more than one at the end of the run."""
    if in_row >= config.max_skipped or (in_row > 1 and int(state.step) == config.steps):
        raise UserError(
            f"the loss is {summary['loss']:g} and the norm of the weights {optax.tree.norm(state.params):g} at step"
            f" {state.step}: the last {in_row} steps were not finite and were skipped;"
            f" {checkpoint.newest_is(workdir)}. Lower optim.learning_rate, set optim.clip_norm=1, or"
            f" dtype='float32'"
        )


def describe(config: ConfigDict, workdir: Path, mesh: Mesh, state: TrainState, source, held_out) -> None:
    """Says what is about to be trained; the run directory gets the parameters, and the devices and versions."""
    sizes = ", ".join(f"{net} {parameter_overview.count_parameters(p) / 1e6:.2f} M" for net, p in state.params.items())
    epochs = config.steps * config.batch_size / len(source)
    say(f"{workdir}: task {config.task}, parameters {sizes}")
    kind = source.kind if isinstance(source, encoded.Codes) else "images"
    say(f"{len(source)} {kind} to train on, {len(held_out)} held out")
    say(f"{config.steps} steps of {config.batch_size} images, {epochs:.1f} epochs, starting at step {state.step}")
    if config.task == "transformer" and (numbered := images.legend(config.data.class_names)):
        say(f"in pictures, {numbered[:200]}")
    say(f"{jax.device_count()} devices ({jax.devices()[0].device_kind}), mesh {dict(mesh.shape)}")
    if jax.process_index() == 0:
        (workdir / "parameters.txt").write_text(
            parameter_overview.get_parameter_overview(state.params, include_stats="sharding")
        )
        note_start(workdir, int(state.step))


def trace_step(task: Task, run_key: jax.Array, phase: Hashable, state: TrainState, batch: dict) -> jax.stages.Traced:
    """The training step of a phase, with explicit shardings and a donated state, for arrays or for shapes of them.

    It takes (state, batch, run_key), so that runs of other seeds find it compiled in a cache.
    """

    def step(state, batch, run_key):
        return task.train_step(state, batch, jax.random.fold_in(run_key, state.step), phase)

    replicated = NamedSharding(state.step.sharding.mesh, PartitionSpec())
    shardings = jax.tree.map(lambda x: x.sharding, state)
    run_key = jax.ShapeDtypeStruct(run_key.shape, run_key.dtype, sharding=replicated)
    return jax.jit(step, out_shardings=(shardings, replicated), donate_argnums=0).trace(state, batch, run_key)


def compile_step(
    task: Task,
    run_key: jax.Array,
    phase: Hashable,
    state: TrainState,
    batch: dict,
    stop: stopping.StopSignal | None = None,
) -> jax.stages.Compiled:
    """That step, compiled for these shapes; says what memory it takes. Raises Interrupted where a signal asks to stop.

    The compiler has a thread of its own, since it may take minutes, in which the main thread would hear nothing.
    """
    say("compiling the training step" + (f" for {phase}" if phase else ""))
    began, found = time.monotonic(), []
    lowered = trace_step(task, run_key, phase, state, batch).lower()
    options = compiler_options(task.learns_convolutions)

    def compile() -> None:
        try:
            found.append(lowered.compile(options))
        except Exception as e:  # raised below
            found.append(e)

    thread = threading.Thread(target=compile, name=stopping.COMPILER, daemon=True)
    thread.start()
    told = began
    while thread.is_alive():
        thread.join(0.2)
        if stop is not None and stop.received is not None and jax.process_count() == 1:
            raise stopping.Interrupted
        if time.monotonic() - told > SILENCE:
            told = time.monotonic()
            say(f"compiling for {told - began:.0f} s")
    (compiled,) = found
    if isinstance(compiled, Exception):
        raise compiled
    say(f"compiled in {time.monotonic() - began:.0f} s; {memory.describe(compiled)}")
    return compiled


def find_phases(phase: Callable[[int], Hashable], start: int, end: int) -> dict[int, Hashable]:
    """The phases of the steps from `start` to before `end`, by the step before their first; phases never come back."""
    if start >= end:
        return {}
    first, last = phase(start), phase(end - 1)
    if first == last:
        return {start: first}
    middle = (start + end) // 2
    found = find_phases(phase, start, middle) | find_phases(phase, middle, end)
    return {step: p for step, p in found.items() if step == start or phase(step - 1) != p}


def phase_costs(
    task: Task, run_key: jax.Array, phases: dict[int, Hashable], state: TrainState, batch: dict
) -> dict[int, float]:
    """The arithmetic of a step in each phase, as XLA counts it before it compiles; all 1 where it does not count."""
    if len(phases) < 2:
        return dict.fromkeys(phases, 1.0)
    counted = {
        step: (trace_step(task, run_key, phase, state, batch).lower().cost_analysis() or {}).get("flops", 0.0)
        for step, phase in phases.items()
    }
    return counted if all(counted.values()) else dict.fromkeys(phases, 1.0)


def check_agreement(fields: dict) -> None:
    """Raises UserError, in every process, where a process was started with another config than process 0."""
    if jax.process_count() == 1:
        return
    written = json.dumps(fields)
    text = np.frombuffer(written.encode(), np.uint8)
    longest = int(multihost_utils.process_allgather(np.array(len(text))).max())
    padded = np.pad(text, (0, longest - len(text)), constant_values=ord(" "))
    first = ConfigDict(json.loads(multihost_utils.broadcast_one_to_all(padded).tobytes()))
    other = differences(first, ConfigDict(json.loads(written)))
    differ = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(other))))
    if other:
        raise UserError(f"process {jax.process_index()} differs from process 0: {', '.join(other)}")
    if len(differ):
        raise UserError(f"the processes {', '.join(map(str, differ))} were started with another config than process 0")


def agreed(stop: stopping.StopSignal, step: int, config: ConfigDict) -> bool:
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
