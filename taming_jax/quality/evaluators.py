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
from taming_jax.quality.features import BATCH_SIZE, Seen, see
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


class Viewer(NamedTuple):
    """A network on the devices of a mesh. store: where what it sees is kept, None for nowhere."""

    network: Network
    mesh: Mesh
    store: Path | None = None
    batch_size: int = BATCH_SIZE

    def see(self, pictures: Pictures, word: str) -> Seen:
        """What the network sees in pictures; word: what they are called in messages."""
        return see(self.network, pictures, self.mesh, self.batch_size, self.store, word)

    def refer(self, pictures: Pictures, word: str) -> Reference:
        """A reference of pictures."""
        return refer(self.see(pictures, word), pictures.about)

    def judge(self, seen: Seen, about: dict, reference: Reference) -> Judged:
        """Judges what was seen of samples by a reference; says where there are few. about: as in `Pictures`."""
        if seen.count < FEW:
            say(
                f"{seen.count} samples: a Fréchet distance of so few is too large, and comparable to those of as many"
                " alone"
            )
        return Judged(judge(self.network, seen, reference), protocol(self.network, about, reference.about))


def compare(viewer: Viewer, samples: Path, reference: Path) -> Judged:
    """Judges pictures of a folder or archive by those of another, or by saved statistics. Raises ArgumentError."""
    found = open_pictures("samples", samples)
    other = read_reference(viewer, reference)
    return viewer.judge(viewer.see(found, "samples"), found.about, other)


def read_reference(viewer: Viewer, path: Path) -> Reference:
    """A reference of a folder's or archive's pictures, or of saved statistics. Raises ArgumentError."""
    if path.suffix == ".npz" and path.is_file():
        if (told := read_statistics("reference", path, viewer.network)) is not None:
            return told
    return viewer.refer(open_pictures("reference", path), "reference")


def judge_first_stage(
    viewer: Viewer, config: ConfigDict, params: dict, about: dict, disturb: of_runs.Disturb, most: int = 0
) -> Judged:
    """A first stage by its reconstructions of the validation split: rFID and SSIM, and the perturbed rFID.

    rfid (rfd_efficientnet, ...), precision and recall as `judge` has them; pfid likewise of disturbed codes. ssim: see
    `losses.ssim`. about: the run and its step. most: how many pictures, 0 for all. Raises UserError where its input is
    no picture in colours.
    """
    if config.input != "image":
        raise UserError(f"the run's input is {config.input!r}: Fréchet distances are of pictures in colours")
    stage = make_first_stage(config)
    disturb = disturb._replace(neighbours=min(disturb.neighbours, stage.codebook_size - 1))
    originals = of_runs.shown(config, "validation", most)
    reference, once = viewer.refer(originals, "originals"), viewer._replace(store=None)
    made = of_runs.reconstructed(stage, params, viewer.mesh, originals, about)
    plain = once.judge(once.see(made, "samples"), made.about, reference)
    disturbed = of_runs.reconstructed(stage, params, viewer.mesh, originals, about, disturb)
    perturbed = judge(viewer.network, once.see(disturbed, "disturbed codes"), reference)
    numbers = {f"r{name}": value for name, value in plain.numbers.items()}
    numbers |= {f"p{name}": value for name, value in perturbed.items() if name.startswith("f")}
    numbers["ssim"] = mean_ssim(originals, made, viewer.mesh)
    return Judged(numbers, plain.protocol | {"disturb": disturb._asdict()})


def mean_ssim(originals: Pictures, made: Pictures, mesh: Mesh) -> float:
    """The mean of `losses.ssim` over two sets."""
    score = jax.jit(lambda rows: losses.ssim(*map(to_float, rows)))
    parts = [slice(start, start + BATCH_SIZE) for start in range(0, originals.count, BATCH_SIZE)]
    pairs = ([x.read(p.start, min(p.stop, x.count)) for x in (originals, made)] for p in parts)
    found = [in_batches(mesh, score, pair, BATCH_SIZE, False, "ssim") for pair in pairs]
    return float(np.concatenate(found).mean())


def judge_second_stage(
    viewer: Viewer,
    generator: Generator,
    plan: Plan,
    about: dict,
    count: int,
    split: str = "train",
    reference: Reference | None = None,
) -> Judged:
    """A transformer by `count` samples, against a split of its data or another reference; the nearest pictures beside.

    Raises UserError for data without pictures in colours.
    """
    samples = of_runs.sampled(generator, plan, count, about)
    pictures = of_runs.shown(generator.config, split) if reference is None else None
    if reference is None:
        reference = viewer.refer(pictures, f"the {split} split")
    seen = viewer.see(samples, "samples")
    judged = viewer.judge(seen, samples.about, reference)
    if pictures is None:
        return judged
    shown = min(SHOWN, count)
    near = nearest(seen.all("pool")[:shown], reference.seen.all("pool"))
    beside = np.concatenate([pictures.read(int(i), int(i) + 1) for i in near])
    rows = np.stack([samples.read(0, shown), beside])
    return judged._replace(sheet=Sheet(rows, ("sample", f"nearest of {split}")))
