"""Evaluates a run: numbers over its whole validation split, and its picture; and judges pictures by a network.

    python -m taming_jax.evaluate --workdir=runs/openmoji_vq
    python -m taming_jax.evaluate --workdir=runs/openmoji_transformer --features=efficientnet --num_samples=2000
    python -m taming_jax.evaluate --samples=A --reference=B --features=inception:FILE

Without --features, the numbers of training's evaluations. With it, a network judges what a run reconstructs or samples
(FID and its relatives, docs/quality.md), or any two sets of pictures.
"""

import hashlib
import os
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from taming_jax import checkpoint, cli, completion, data, places, published, sharding, trackers
from taming_jax.console import say
from taming_jax.errors import ArgumentError, printable
from taming_jax.evaluation import evaluate, make_evaluators
from taming_jax.quality import evaluators, networks, record
from taming_jax.quality import viewer as viewers
from taming_jax.quality.options import BATCH_SIZE, KINDS
from taming_jax.tasks import make_task
from taming_jax.writer import LOG, Writer, key_of, read_records


def place_of(workdir: Path, data_path: Path) -> Path:
    """The folder for the figures of other data: its name and a hash of its place, since names may be the same."""
    whole = data_path.resolve()
    digest = hashlib.blake2b(os.fsencode(whole), digest_size=4).hexdigest()
    return workdir / "evaluated" / f"{whole.name or 'root'}-{digest}"


def main() -> None:
    given = flags.FLAGS
    judging = {name for kind in KINDS.values() for name in kind.options} - {"features", "batch_size"}
    if given.samples is not None:
        refuse(
            ["workdir", "data_path", *(judging - {"reference", "dtype"})], "--samples judges pictures that are there"
        )
        compare_folders()
        return
    if given.features is None:
        refuse(judging, "it is for --features, the network that judges")
    workdir, pictures = cli.required_folder("workdir"), cli.folder("data_path")
    published.check_writable(workdir)
    config, _ = completion.load_config(workdir)
    config.batch_size = given.batch_size or config.batch_size
    out = workdir
    if pictures is not None:
        config.data.update(name="folder", path=str(pictures), validation_share=1.0)
        for name, fields in config.evals.items():
            if fields.kind == "samples" and fields.get("reference", "train") == "train":  # all of it is validation
                say(f"evals.{name}: against {pictures}, which has no training split")
                with fields.unlocked():
                    fields.reference = "validation"
        out = place_of(workdir, pictures)
    with places.claimed(out):
        if given.features is None:
            evaluate_run(workdir, config, out)
        else:
            judge_run(workdir, config, out)


def refuse(names: Iterable[str], why: str) -> None:
    """Raises ArgumentError for a flag that is given and would do nothing."""
    for name in sorted(names):
        if flags.FLAGS[name].value is not None:
            raise ArgumentError(f"{name}: {why}")


def evaluate_run(workdir: Path, config: ConfigDict, out: Path) -> None:
    """The task's metrics and pictures."""
    mesh, task = sharding.make_mesh(config.mesh), make_task(config)
    sharding.check_batch(config.batch_size, mesh)
    source = data.open_source(config.data, "validation")
    completion.check_classes(config, source.class_names)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if flags.FLAGS.batch_size is not None:  # more than there is would be filled up
        config.batch_size = min(config.batch_size, -(-len(source) // parts) * parts)
    with jax.set_mesh(mesh), checkpoint.open_manager(workdir, read_only=True) as manager:
        state, _ = checkpoint.init_or_restore(manager, task, jax.random.key(config.seed), mesh)
        tracked = "tensorboard" in trackers.parse(config.tracker)
        again = (int(state.step), "validation") in map(key_of, read_records(out / LOG))
        with Writer(out, events=not again and tracked) as writer:
            evaluate(task, state, source, config, mesh, writer, make_evaluators(config, mesh))


def judge_run(workdir: Path, config: ConfigDict, out: Path) -> None:
    """Judges a first stage's reconstructions, or a transformer's samples; keeps the numbers with their protocol."""
    given = flags.FLAGS
    names = {name for kind in KINDS.values() for name in kind.options}
    fields = {name: given[name].value for name in names if given[name].value is not None}
    step, judged = evaluators.judge_run(workdir, config=config, store=out / "features", **fields)
    tell(judged)
    with Writer(out, events="tensorboard" in trackers.parse(config.tracker)) as writer:
        evaluators.write(judged, writer, step, f"{evaluators.kind_of(config)}_{given.features.partition(':')[0]}")
    say(f"with their protocol in {out / record.FILE}")


def compare_folders() -> None:
    """Judges a folder or archive of pictures by another, or by saved statistics."""
    given = flags.FLAGS
    samples, reference = Path(cli.required("samples")), Path(cli.required("reference"))
    network, out = networks.load(cli.required("features"), given.dtype or "float32"), cli.folder("out")
    store = out / "features" if out is not None else None
    viewer = viewers.Viewer(network, sharding.mesh_here(), store, given.batch_size or BATCH_SIZE)
    with places.claimed(out) if out is not None else nullcontext():
        judged = viewers.compare(viewer, samples, reference)
        tell(judged)
        if out is not None:
            record.write(out, f"folders_{network.name}", judged.numbers, judged.protocol)
            say(f"with their protocol in {out / record.FILE}")


def tell(judged: viewers.Judged) -> None:
    """Says the numbers, also those of each class."""
    say(listed(judged.numbers))
    for name, numbers in (judged.by_class or {}).items():
        say(f"{printable(name)}: {listed(numbers)}")


def listed(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())


if __name__ == "__main__":
    cli.group("What is evaluated")
    flags.DEFINE_string("workdir", None, "Run directory of either stage.")
    flags.DEFINE_string(
        "data_path",
        None,
        "Folder of images, all of them, in place of the run's validation split;"
        " figures and pictures go to evaluated/<its name>-<a hash of its place>/ in the run directory.",
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Images at once; by default as in training, or 32 for a network that judges.",
        lower_bound=1,
        upper_bound=2**16,
    )
    cli.group("A network that judges")
    flags.DEFINE_string("features", None, "inception:FILE (FID; without :FILE it is fetched), efficientnet, or vgg.")
    flags.DEFINE_enum("dtype", None, ("float32", "bfloat16"), "Of that network; float32 by default.")
    flags.DEFINE_integer(
        "num_samples", None, "Samples to judge, 2048 by default; reconstructions of a first stage, by default all."
    )
    flags.DEFINE_boolean("by_class", None, "The numbers of each class too, for a transformer with classes.")
    flags.DEFINE_integer("seed", None, "Of the samples, and of the codes that are disturbed; 0 by default.")
    cli.group("Pictures that are there, without a run")
    flags.DEFINE_string("samples", None, "Pictures to judge, a folder or an .npz file with arr_0.")
    flags.DEFINE_string(
        "reference",
        None,
        "What samples are judged by: train (the default of a run) or validation, or a folder, an .npz file with arr_0,"
        " or statistics (mu, sigma).",
    )
    flags.DEFINE_string("out", None, "With --samples: folder for the numbers and their protocol, made if needed.")
    cli.group("The perturbed rFID of a first stage")
    flags.DEFINE_float("disturbed_images", None, "The share of images, 0.1 by default.")
    flags.DEFINE_float("disturbed_codes", None, "The share of codes in them, 0.9 by default.")
    flags.DEFINE_integer("disturbed_to", None, "Of how many nearest codes one takes a code's place; 100 by default.")
    cli.define_sampling()
    cli.run(main)
