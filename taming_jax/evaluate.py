"""Evaluates a run: numbers over its whole validation split, and its picture.

python -m taming_jax.evaluate --workdir=runs/openmoji_vq
python -m taming_jax.evaluate --workdir=runs/openmoji_vq --data_path=/my/images
"""

import hashlib
import os
from pathlib import Path

import jax
from absl import flags

from taming_jax import checkpoint, cli, completion, data, places, sharding
from taming_jax.evaluation import evaluate
from taming_jax.tasks import make_task
from taming_jax.writer import Writer


def place_of(workdir: Path, data_path: Path) -> Path:
    """The folder for the figures of other data: its name and a hash of its place, since names may be the same."""
    whole = data_path.resolve()
    digest = hashlib.blake2b(os.fsencode(whole), digest_size=4).hexdigest()
    return workdir / "evaluated" / f"{whole.name or 'root'}-{digest}"


def main() -> None:
    workdir, pictures = cli.required_folder("workdir"), cli.folder("data_path")
    config, _ = completion.load_config(workdir)
    config.batch_size = flags.FLAGS.batch_size or config.batch_size
    out = workdir
    if pictures is not None:
        config.data.update(name="folder", path=str(pictures), validation_share=1.0)
        out = place_of(workdir, pictures)
    mesh, task = sharding.make_mesh(config.mesh), make_task(config)
    sharding.check_batch(config.batch_size, mesh)
    source = data.open_source(config.data, "validation")
    completion.check_classes(config, source.class_names)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if flags.FLAGS.batch_size is not None:  # more than there is would be filled up
        config.batch_size = min(config.batch_size, -(-len(source) // parts) * parts)
    with (
        places.claimed(out),
        jax.set_mesh(mesh),
        checkpoint.open_manager(workdir, read_only=True) as manager,
        Writer(out) as writer,
    ):
        state, _ = checkpoint.init_or_restore(manager, task, jax.random.key(config.seed), mesh)
        evaluate(task, state, source, config, mesh, writer)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Run directory of either stage.")
    flags.DEFINE_string(
        "data_path",
        None,
        "Folder of images, all of them, in place of the run's validation split;"
        " figures and pictures go to evaluated/<its name>-<a hash of its place>/ in the run directory.",
    )
    flags.DEFINE_integer("batch_size", None, "Default: that of training.", lower_bound=1)
    cli.run(main)
