"""Judges runs and folders: what is shown to the network, and the numbers that come of it."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from taming_jax import losses
from taming_jax.console import say
from taming_jax.errors import UserError
from taming_jax.first_stage import make_first_stage
from taming_jax.generator import Generator
from taming_jax.images import Sheet, to_float
from taming_jax.painting import Plan
from taming_jax.quality import of_runs
from taming_jax.quality.features import BATCH_SIZE, see
from taming_jax.quality.judge import FEW, Reference, judge, protocol, read_statistics, refer
from taming_jax.quality.networks import Network
from taming_jax.quality.pictures import Pictures, open_pictures
from taming_jax.quality.statistics import nearest
from taming_jax.tokenizer import in_batches

SHOWN = 8  # samples on the sheet beside their nearest pictures


class Judged(NamedTuple):
    """What came of an evaluation: numbers by name, the protocol that they follow, and maybe a picture."""

    numbers: dict[str, float]
    protocol: dict
    sheet: Sheet | None = None


def compare(
    network: Network, samples: Path, reference: Path, mesh: Mesh, batch_size: int, store: Path | None
) -> Judged:
    """Judges pictures of a folder or archive by those of another, or by saved statistics. Raises ArgumentError."""
    found = open_pictures("samples", samples)
    return against(network, found, read_reference(reference, network, mesh, store, batch_size), mesh, batch_size, store)


def read_reference(
    path: Path, network: Network, mesh: Mesh, store: Path | None, batch_size: int = BATCH_SIZE
) -> Reference:
    """A reference of a folder's or archive's pictures, or of saved statistics. Raises ArgumentError."""
    if path.suffix == ".npz" and path.is_file():
        if (told := read_statistics("reference", path, network)) is not None:
            return told
    return look_at("reference", open_pictures("reference", path), network, mesh, batch_size, store)


def look_at(
    word: str, pictures: Pictures, network: Network, mesh: Mesh, batch_size: int, store: Path | None
) -> Reference:
    """A reference of pictures; word: what it is called in messages."""
    return refer(see(network, pictures, mesh, batch_size, store, word), pictures.about)


def against(
    network: Network, samples: Pictures, reference: Reference, mesh: Mesh, batch_size: int, store: Path | None
) -> Judged:
    """Judges samples by a reference; says where there are few."""
    seen = see(network, samples, mesh, batch_size, store, "samples")
    if seen.count < FEW:
        say(
            f"{seen.count} samples: a Fréchet distance of so few is too large, and comparable to those of as many alone"
        )
    return Judged(judge(network, seen, reference), protocol(network, samples.about, reference.about))


def judge_first_stage(
    config: ConfigDict,
    params: dict,
    network: Network,
    mesh: Mesh,
    about: dict,
    disturb: of_runs.Disturb,
    store: Path | None = None,
    most: int = 0,
) -> Judged:
    """A first stage by its reconstructions of the validation split: rFID and SSIM, and the perturbed rFID.

    rfid (rfd_efficientnet, ...), precision and recall as `judge` has them; pfid likewise of disturbed codes. ssim: see
    `losses.ssim`. about: the run and its step. most: how many pictures, 0 for all. Raises UserError where its input is
    no picture in colours.
    """
    if config.input != "image":
        raise UserError(f"the run's input is {config.input!r}: Fréchet distances are of pictures in colours")
    stage = make_first_stage(config)
    most_near = stage.codebook_size - 1
    disturb = disturb._replace(neighbours=min(disturb.neighbours, most_near))
    originals = of_runs.shown(config, "validation", most)
    reference = look_at("originals", originals, network, mesh, BATCH_SIZE, store)
    made = of_runs.reconstructed(stage, params, mesh, originals, about)
    plain = against(network, made, reference, mesh, BATCH_SIZE, None)
    disturbed = of_runs.reconstructed(stage, params, mesh, originals, about, disturb)
    seen = see(network, disturbed, mesh, BATCH_SIZE, None, "disturbed codes")
    numbers = {f"r{name}": value for name, value in plain.numbers.items()}
    numbers |= {f"p{name}": value for name, value in judge(network, seen, reference).items() if name.startswith("f")}
    numbers["ssim"] = mean_ssim(originals, made, mesh)
    return Judged(numbers, plain.protocol | {"disturb": disturb._asdict()})


def mean_ssim(originals: Pictures, made: Pictures, mesh: Mesh) -> float:
    """The mean of `losses.ssim` over two sets."""
    score = jax.jit(lambda rows: losses.ssim(*map(to_float, rows)))
    parts = [slice(start, start + BATCH_SIZE) for start in range(0, originals.count, BATCH_SIZE)]
    pairs = ([x.read(p.start, min(p.stop, x.count)) for x in (originals, made)] for p in parts)
    found = [in_batches(mesh, score, pair, BATCH_SIZE, False, "ssim") for pair in pairs]
    return float(np.concatenate(found).mean())


def judge_second_stage(
    generator: Generator,
    plan: Plan,
    network: Network,
    mesh: Mesh,
    about: dict,
    count: int,
    split: str = "train",
    store: Path | None = None,
    reference: Reference | None = None,
) -> Judged:
    """A transformer by `count` samples, against a split of its data or another reference; the nearest pictures beside.

    Raises UserError for data without pictures in colours.
    """
    samples = of_runs.sampled(generator, plan, count, about)
    pictures = of_runs.shown(generator.config, split) if reference is None else None
    if reference is None:
        reference = look_at(f"the {split} split", pictures, network, mesh, BATCH_SIZE, store)
    seen = see(network, samples, mesh, BATCH_SIZE, store, "samples")
    judged = Judged(judge(network, seen, reference), protocol(network, samples.about, reference.about))
    if pictures is None:
        return judged
    shown = min(SHOWN, count)
    near = nearest(seen.all("pool")[:shown], reference.seen.all("pool"))
    beside = np.concatenate([pictures.read(int(i), int(i) + 1) for i in near])
    rows = np.stack([samples.read(0, shown), beside])
    return judged._replace(sheet=Sheet(rows, ("sample", f"nearest of {split}")))
