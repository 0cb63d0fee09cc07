"""A run directory -> numbers over its whole validation split, and its picture.

python -m taming_jax.evaluate --workdir=runs/openmoji_vq
python -m taming_jax.evaluate --workdir=runs/openmoji_vq --data_path=/my/images
"""

from pathlib import Path

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from tqdm import tqdm

from taming_jax import checkpoint, cli, data, metrics, sharding, tasks
from taming_jax.metrics import say
from taming_jax.state import Task, TrainState
from taming_jax.tasks import prior

PICTURED = 24  # images at least, where there are so many


def evaluate(
    task: Task, state: TrainState, source, config: ConfigDict, mesh: Mesh, writer: metrics.Writer
) -> dict[str, float]:
    """The task's metrics over a whole source; writes them, and the task's pictures."""
    step, key = int(state.step), jax.random.key(config.seed)
    replicated = NamedSharding(mesh, PartitionSpec())
    eval_step = jax.jit(task.eval_step, out_shardings=replicated)
    pictures = jax.jit(task.pictures, out_shardings=replicated)
    batches = data.eval_batches(source, config)
    shown = [batches[i] for i in range(min(len(batches), -(-PICTURED // config.batch_size)))]
    shown = {name: np.concatenate([batch[name] for batch in shown]) for name in shown[0]}
    for name, sheet in pictures(state, sharding.shard_batch(shown, mesh), key).items():
        writer.picture(step, name, sheet)
    for name, painted in task.paint(state, key).items() if task.paint else ():
        writer.animation(step, name, painted)
    total = None
    quiet = jax.process_index() > 0
    for batch in tqdm(batches, "evaluating", unit="batch", leave=False, mininterval=1, disable=quiet):
        new = eval_step(state, sharding.shard_batch(batch, mesh))
        total = new if total is None else metrics.merge(total, new)
    result = metrics.summarize(total)
    writer.scalars(step, "validation", result)
    writer.code_histogram(step, total)
    say(
        f"validation of {len(source)} images at step {step}: "
        + "  ".join(f"{name} {value:.4g}" for name, value in result.items())
    )
    return result


def main() -> None:
    workdir = Path(cli.required("workdir"))
    config, _ = checkpoint.load_config(workdir)
    config.batch_size = flags.FLAGS.batch_size or config.batch_size
    out = workdir
    if flags.FLAGS.data_path is not None:
        config.data.update(name="folder", path=flags.FLAGS.data_path, validation_share=1.0)
        out = workdir / "evaluated" / Path(flags.FLAGS.data_path).name
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.batch_size, mesh)
    task = tasks.find(config.task).make(config)
    source = data.open_source(config.data, "validation")
    prior.check_classes(config, source.class_names)
    with (
        jax.set_mesh(mesh),
        checkpoint.open_manager(workdir) as manager,
        metrics.Writer(out) as writer,
    ):
        state, _ = checkpoint.init_or_restore(manager, task, jax.random.key(config.seed), mesh)
        evaluate(task, state, source, config, mesh, writer)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Run directory of either stage.")
    flags.DEFINE_string(
        "data_path",
        None,
        "Folder of images, all of them, in place of the run's validation split;"
        " figures and pictures go to evaluated/<its name>/ in the run directory.",
    )
    flags.DEFINE_integer("batch_size", None, "Default: that of training.", lower_bound=1)
    cli.run(main)
