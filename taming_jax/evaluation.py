"""Evaluates a state: what the evaluators of its config say, metrics over a whole source, and pictures."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from taming_jax import data, metrics, sharding
from taming_jax.console import bar, say
from taming_jax.state import Task, TrainState
from taming_jax.writer import Writer

if TYPE_CHECKING:
    from taming_jax.quality.evaluators import Evaluator

PICTURED = 24  # images in the pictures, at least, if the source has so many


def evaluate(
    task: Task,
    state: TrainState,
    source,
    config: ConfigDict,
    mesh: Mesh,
    writer: Writer,
    evaluators: "dict[str, Evaluator]",
) -> dict[str, float]:
    """The task's metrics over a whole source; writes them, and the task's pictures, and what the evaluators find.

    The metrics are written last: where a step has them, its evaluation is complete.
    """
    step = int(state.step)
    if evaluators:
        from taming_jax.quality.evaluators import judge_state

        judge_state(evaluators, state, config, writer)
    eval_step = jax.jit(task.eval_step, out_shardings=NamedSharding(mesh, PartitionSpec()))
    batches = data.eval_batches(source, config, data.make_augment(config.data, task.annotator))
    shown = [batches[i] for i in range(min(len(batches), -(-PICTURED // config.batch_size)))]
    shown = {name: np.concatenate([batch[name] for batch in shown]) for name in shown[0]}
    for name, picture in task.pictures(state, sharding.shard_batch(shown, mesh)).items():
        writer.picture(step, name, picture)
    total = None
    quiet = jax.process_index() > 0
    for batch in bar(batches, "evaluating", unit="batch", leave=False, disable=quiet):
        new = eval_step(state, sharding.shard_batch(batch, mesh))
        total = new if total is None else metrics.merge(total, new)
    result = metrics.summarize(total)
    writer.scalars(step, "validation", result)
    writer.code_histogram(step, total)
    numbers = "  ".join(f"{name} {value:.4g}" for name, value in result.items())
    say(f"validation of {len(source) - len(source.bad)} images at step {step}: {numbers}")
    return result


def make_evaluators(config: ConfigDict, mesh: Mesh) -> "dict[str, Evaluator]":
    """The evaluators of a config, see `quality.evaluators`; imported where there are some, since it takes a second."""
    if not config.evals:
        return {}
    from taming_jax.quality import evaluators

    return evaluators.make_evaluators(config, mesh)


def numbers_of(task: Task, state: TrainState, source, config: ConfigDict) -> list[str]:
    """The names of the numbers that evaluations give, without computing them: 'lpips', 'samples/fd_efficientnet'."""
    batch = data.eval_batches(source, config, data.make_augment(config.data, task.annotator))[0]
    shapes = jax.eval_shape(task.eval_step, state, batch)
    own = list(metrics.summarize(jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)))
    if not config.evals:
        return own
    from taming_jax.quality import evaluators

    return own + evaluators.numbers_of(config)
