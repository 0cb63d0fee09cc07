"""Judges a transformer by its samples: against a split of its data, or against whatever it is given."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from taming_jax import request
from taming_jax.console import say
from taming_jax.errors import ArgumentError, UserError, not_among
from taming_jax.generator import Generator
from taming_jax.images import Sheet
from taming_jax.painting import Plan
from taming_jax.quality import networks
from taming_jax.quality.features import Seen
from taming_jax.quality.judge import Reference, judge, refer
from taming_jax.quality.pictures import Pictures, of_split
from taming_jax.quality.statistics import nearest
from taming_jax.quality.viewer import Judged, Viewer, read_reference
from taming_jax.sampling.draw import RULES as SAMPLING
from taming_jax.second_stage import make_second_stage

SPLITS = ("train", "validation")
SHOWN = 8  # samples on the sheet beside their nearest pictures
CONDITIONS = 1024  # held-out images whose conditions samples are painted for, at most


def make(config: ConfigDict, fields: dict[str, Any], mesh: Mesh, store: Path | None = None) -> Callable:
    """-> judge(params, about): a transformer's weights, and which they are, -> Judged.

    fields: see `options`. Raises UserError for sampling that does not fit the run, and for numbers by class of a run
    without classes.
    """
    viewer = Viewer(networks.load(fields["features"], fields["dtype"]), mesh, store, fields["batch_size"])
    painter = Generator(config, 0, make_second_stage(config), {})
    plan = painter.plan(seed=fields["seed"], **{name: fields[name] for name in SAMPLING})
    split, count = fields["reference"], fields["num_samples"]
    if split not in SPLITS and not Path(split).exists():
        raise not_among("reference", split, [*SPLITS, "a folder or an .npz file"], ArgumentError)
    if fields["by_class"] and not (painter.stage.cond.FINITE and len(painter.class_names) > 1 and split in SPLITS):
        raise UserError("by_class: for transformers that are conditioned on several classes, against a split alone")

    @functools.cache
    def reference() -> tuple[Pictures | None, Reference]:
        if split not in SPLITS:
            return None, read_reference(viewer, Path(split))
        pictures = of_split(config, split, size=plan.size)
        return pictures, viewer.refer(pictures, f"the {split} split")

    def judge_stage(params: dict, about: dict) -> Judged:
        pictures, references = reference()
        asked = ask(painter, plan, count, pictures)
        samples = sampled(painter.at(about["step"], params), plan, asked, about)
        seen = viewer.see(samples, "samples")
        judged = viewer.judge(seen, samples.about, references)
        if pictures is None:
            return judged
        if fields["by_class"]:
            labels = asked.kinds["label"][asked.which]
            classes = seen.split(labels), references.seen.split(pictures.labels(pictures.count))
            judged = judged._replace(by_class=judge_classes(viewer, *classes, painter.class_names))
        shown = min(SHOWN, count)
        near = nearest(seen.first("pool", shown), references.seen.each("pool"))
        beside = np.concatenate([pictures.read(int(i), int(i) + 1) for i in near])
        pairs = np.stack([samples.read(0, shown), beside])
        return judged._replace(sheet=Sheet(pairs, ("sample", f"nearest of {split}")))

    return judge_stage


def judge_classes(
    viewer: Viewer, samples: dict[int, Seen], reference: dict[int, Seen], names: tuple[str, ...]
) -> dict[str, dict[str, float]]:
    """The numbers of each class, samples against pictures of that class; says which classes have less than two."""
    found, few = {}, []
    for label, name in enumerate(names):
        pair = samples.get(label), reference.get(label)
        if any(seen is None or seen.count < 2 for seen in pair):
            few.append(name)
        else:
            found[name] = judge(viewer.network, pair[0], refer(pair[1], {}))
    if few:
        say(f"no numbers of classes with less than two pictures: {', '.join(few)[:200]}")
    return found


class Asked(NamedTuple):
    """What each of the samples is painted for.

    kinds: the conditions, as rows. which: the kind of each sample; index: how many samples before it are of that kind;
    int32 [count]. told: a hash of how often each class occurs, where that follows the reference.
    """

    kinds: dict[str, np.ndarray]
    which: np.ndarray
    index: np.ndarray
    told: dict[str, str]


def ask(generator: Generator, plan: Plan, count: int, pictures: Pictures | None) -> Asked:
    """Chooses the conditions of samples: the classes of the reference's first pictures, or held-out images in turn.

    pictures: the reference, if it is a split, in a random order; without it, all classes occur alike.
    """
    names, told = generator.class_names if generator.stage.cond.FINITE else (), {}
    if names:
        kinds = {"label": np.arange(len(names), dtype=np.int32)}
    else:
        kinds = request.make_rows(generator.stage, generator.config, plan.size, {}, None, min(count, CONDITIONS))
    which = np.arange(count) % len(kinds["label"])
    if names and pictures is not None:
        which = np.resize(pictures.labels(min(count, pictures.count)), count)
        # Which samples there are, and in which order, follows from the numbers of the classes alone.
        which = np.random.default_rng(0).permutation(np.sort(which))
        told = {"classes": hashlib.sha256(np.bincount(which).tobytes()).hexdigest()}
    elif count < len(names):
        say(f"{count} samples are of the first {count} of {len(names)} classes alone: a Fréchet distance needs all")
    order = np.argsort(which, kind="stable")
    index = np.empty(count, np.int32)
    index[order] = np.arange(count) - np.searchsorted(which[order], which[order])
    return Asked(kinds, which.astype(np.int32), index, told)


def sampled(generator: Generator, plan: Plan, asked: Asked, about: dict) -> Pictures:
    """Samples of a transformer. The same seed gives the same pictures, whatever the parts that they are painted in."""
    parts = generator.mesh.shape["data"]

    def read(start: int, stop: int) -> np.ndarray:
        part = {name: value[asked.which[start:stop]] for name, value in asked.kinds.items()}
        part["index"] = asked.index[start:stop]
        batch_size = -(-(stop - start) // parts) * parts
        return np.concatenate(list(generator.paint(part, plan, batch_size, progress=False)))

    count = len(asked.which)
    told = dict(kind="samples", count=count, seed=plan.seed, **plan.sampling._asdict())
    return Pictures(count, told | dict(conditions=len(asked.kinds["label"]), run=about) | asked.told, read)
