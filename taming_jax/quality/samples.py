"""Judges a transformer by its samples: against a split of its data, or against whatever it is given."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from taming_jax import request
from taming_jax.console import say
from taming_jax.errors import UserError
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
    if fields["by_class"] and not (painter.stage.cond.FINITE and len(painter.class_names) > 1 and split in SPLITS):
        raise UserError("by_class: for transformers that are conditioned on several classes, against a split alone")

    @functools.cache
    def reference() -> tuple[Pictures | None, Reference]:
        if split not in SPLITS:
            return None, read_reference(viewer, Path(split))
        pictures = of_split(config, split)
        return pictures, viewer.refer(pictures, f"the {split} split")

    def judge_stage(params: dict, about: dict) -> Judged:
        pictures, references = reference()
        rows = make_rows(painter, plan, count)
        samples = sampled(painter.at(about["step"], params), plan, rows, about)
        seen = viewer.see(samples, "samples")
        judged = viewer.judge(seen, samples.about, references)
        if pictures is None:
            return judged
        if fields["by_class"]:
            classes = seen.split(rows["label"]), references.seen.split(pictures.labels())
            judged = judged._replace(by_class=judge_classes(viewer, *classes, painter.class_names))
        shown = min(SHOWN, count)
        near = nearest(seen.all("pool")[:shown], references.seen.all("pool"))
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


def make_rows(generator: Generator, plan: Plan, count: int) -> dict[str, np.ndarray]:
    """What is painted: all classes or held-out conditions in turn, as many of each as `count` needs; [count,...]."""
    rows = request.make_rows(generator.stage, generator.config, plan.size, {}, None, min(count, CONDITIONS))
    kinds, numbers = len(rows["label"]), np.arange(count)
    return {name: value[numbers % kinds] for name, value in rows.items()} | {
        "index": (numbers // kinds).astype(np.int32)
    }


def sampled(generator: Generator, plan: Plan, rows: dict[str, np.ndarray], about: dict) -> Pictures:
    """Samples of a transformer. The same seed gives the same pictures, whatever the parts that they are painted in."""
    count = len(rows["label"])

    def read(start: int, stop: int) -> np.ndarray:
        part = {name: value[start:stop] for name, value in rows.items()}
        return np.concatenate(list(generator.paint(part, plan, stop - start, progress=False)))

    told = dict(kind="samples", count=count, seed=plan.seed, **plan.sampling._asdict())
    return Pictures(count, told | dict(conditions=int((rows["index"] == 0).sum()), run=about), read)
