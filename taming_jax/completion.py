"""Completes a config from its first stages and its data, checks it, and reads and upgrades the config of a run.

A complete config holds everything that determines a run; everything is built from one.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from taming_jax import checkpoint
from taming_jax.conditions import find_condition
from taming_jax.data.classes import number_classes
from taming_jax.data.walk import listed
from taming_jax.errors import UserError, nearest, not_among, printable
from taming_jax.second_stage import make_second_stage
from taming_jax.tasks import TASKS, transformer, vqgan

LoadConfig = Callable[[Path, int | None], tuple[ConfigDict, int]]

# Fields that came after the first runs, each with the value that a run without it has: for all tasks, by task, and by
# quantizer.
LATER = {
    "accumulate": 1,
    "ema_decay": 0.0,
    "wandb_project": "",
    "optim.eps": 1e-8,
    "optim.final_share": 0.01,
    "data.random_scale": False,
    "data.num_labels": 0,
    "data.label_shift": 0,
    "data.downscale": 4,
    "data.splits": {"train": "train", "validation": "validation"},
}
LATER_OF = {
    "vqgan": {"model.remat": False, "loss.pixel_weight": 1.0, "disc.delta": 1e-4},
    "transformer": {
        "codes": "",
        "canvas": (0, 0),
        "gpt.remat": "none",
        "cond.drop": 0.0,
        "cond.aligned": False,
        "cond.layout.categories": "",
        "cond.max_words": 16,
        "cond.max_vocabulary": 8192,
        "cond.vocabulary": (),
        "sample.guidance": 1.0,
    },
}
LATER_OF_QUANTIZER = {"ema": {"eps": 1e-5}}


def upgrade(config: ConfigDict) -> ConfigDict:
    """Gives a stored config of any age the fields of today; what it does stays the same."""
    fields = config.to_dict()
    if fields["task"] == "prior":  # its name until 0.1.0
        fields["task"] = "transformer"
    if fields.get("input") == "segmentation":
        fields["data"].setdefault("num_labels", fields["model"]["out_ch"])
    for path, value in (LATER | LATER_OF[fields["task"]]).items():
        *parents, name = path.split(".")
        functools.reduce(lambda place, parent: place.setdefault(parent, {}), parents, fields).setdefault(name, value)
    if "quantizer" in fields:
        fields["quantizer"] = LATER_OF_QUANTIZER.get(fields["quantizer"]["name"], {}) | fields["quantizer"]
    for stage in ("first_stage", "cond"):
        if "config" in fields.get(stage, {}):
            fields[stage]["config"] = upgrade(ConfigDict(fields[stage]["config"])).to_dict()
    return ConfigDict(fields)


def load_config(workdir: Path, step: int | None = None) -> tuple[ConfigDict, int]:
    """The complete config of a run at a step (None for the newest that can be read), upgraded; and that step.

    If a first stage's run directory has moved, it is looked for beside this one, and in it. Raises UserError where
    there is no config.
    """
    config, step = checkpoint.read_config(workdir, step)
    config = upgrade(config)
    for stage in (config.get("first_stage"), config.get("cond")):
        if stage is not None and stage.workdir and not Path(stage.workdir).is_dir():
            moved = [place / Path(stage.workdir).name for place in (workdir.parent, workdir)]
            stage.workdir = str(next((m for m in moved if (m / "checkpoints").is_dir()), stage.workdir))
    return config, step


def complete(config: ConfigDict, stored: ConfigDict | None = None, load: LoadConfig = load_config) -> ConfigDict:
    """Completes a config, except for what `complete_from_data` adds, as it is stored with a run.

    stored: the config of the run that is resumed, if any. Raises UserError where the parts do not fit.
    """
    config = config.copy_and_resolve_references()
    check_task(config.task)
    if config.task == "vqgan":
        vqgan.check(config)
        segments = config.input == "segmentation"
        config.data.features = tuple(sorted({"image", config.input, *config.data.features}))
        config.data.num_labels = config.model.out_ch if segments else 0
        return config
    transformer.check(config)
    kind = find_condition(config.cond.name)
    kind.check(config)
    first = find_stage(config, stored, "first_stage", load)
    seen = find_stage(config, stored, "cond", load) if kind.HAS_STAGE else None
    with config.unlocked():
        moved = {name: value for name, value in config.data.items() if value is not None}
        if seen is not None:
            moved = {name: seen.data[name] for name in ("num_labels", "label_shift", "downscale")} | moved
        features = {"image", first.input, *kind.FEATURES} | ({seen.input} if seen is not None else set())
        moved |= {"features": tuple(sorted(features)), "layout": config.cond.layout}
        config.data = ConfigDict({**first.data, **moved})
    if config.data.size != first.data.size:
        raise UserError(f"data.size={config.data.size}: the first stage was trained at {first.data.size}")
    if seen is not None and seen.data.size != config.data.size:
        raise UserError(
            f"cond.workdir={config.cond.workdir} was trained at {seen.data.size} pixels, not {config.data.size}"
        )
    return config


def complete_from_data(
    config: ConfigDict, source, stored: ConfigDict | None = None, learned: dict | None = None
) -> ConfigDict:
    """Adds what only the training data tell: the names of the classes, and what the condition learns.

    source: the training data. learned: fields of `config.cond` that are known already. Raises UserError where the
    run that is resumed lacks one of the classes, or where the transformer's vocabulary is too small for them.
    """
    config = config.copy_and_resolve_references()
    config.data.class_names = tuple(source.class_names)
    if stored is not None and counts_classes(config):
        config.data.class_names = stored.data.class_names
        check_classes(config, source.class_names)
    if config.task == "transformer":
        kind = find_condition(config.cond.name)
        known = stored.cond if stored is not None else learned
        if known is None:
            kind.learn(config, source)
        else:
            config.cond.update({name: known[name] for name in kind.LEARNED})
        stage = make_second_stage(config)
        if any(config.canvas):
            stage.check_size("canvas", tuple(config.canvas))
    return config


def complete_ahead(config: ConfigDict, stages: dict[str, ConfigDict]) -> ConfigDict:
    """`complete` before the first stages are trained: takes their configs under the keys 'first_stage' and 'cond'."""
    ahead = {Path(config[name].workdir): complete(stage) for name, stage in stages.items()}

    def load(workdir: Path, step: int | None) -> tuple[ConfigDict, int]:
        if workdir in ahead:
            return ahead[workdir].copy_and_resolve_references(), 0
        return load_config(workdir, step)

    return complete(config, None, load)


def check_task(task: str) -> None:
    """Raises UserError for an unknown task."""
    if task not in TASKS:
        raise not_among("task", task, TASKS)


def counts_classes(config: ConfigDict) -> bool:
    """Whether a run numbers the classes of its data."""
    return config.task == "transformer" and find_condition(config.cond.name).COUNTS_CLASSES


def check_classes(config: ConfigDict, class_names: Sequence[str]) -> None:
    """Raises UserError where data have a class that a run lacks, or none and the run has several; names decide."""
    known, data = tuple(config.data.class_names), printable(config.data.path or config.data.name)
    if not counts_classes(config) or len(class_names) + len(known) <= 1:  # a single class is as good as none
        return
    if not class_names:
        raise UserError(f"{data} has no classes, the run was trained with {len(known)}: {listed(known)}")
    if not known:
        raise UserError(f"{data} has {len(class_names)} classes, the run was trained without any")
    numbers = number_classes(class_names, known)
    if lacking := [name for name, number in zip(class_names, numbers, strict=True) if number is None]:
        raise UserError(
            f"{data} has the class {lacking[0]!r}, which the run was not trained with{nearest(lacking[0], known)};"
            f" the run has {listed(known, 20)}"
        )


def find_stage(config: ConfigDict, stored: ConfigDict | None, name: str, load: LoadConfig) -> ConfigDict:
    """Fills in the step and the config of the VQGAN's run at `config[name].workdir`; -> its config.

    A resumed run keeps the checkpoints of the first stages that it began with: other weights would give other codes.
    """
    stage = config[name]
    if stored is not None and stage.step is None:
        stage.step = stored[name].step
    found, step = load(Path(stage.workdir), stage.step)
    if found.task != "vqgan":
        raise UserError(f"{name}.workdir={stage.workdir} holds a {found.task!r} run; a first stage is a 'vqgan' run")
    with config.unlocked():
        stage.update(step=step, config=found)
    return found


def differences(old: ConfigDict, new: ConfigDict, prefix: str = "") -> list[str]:
    """'batch_size 8 -> 16' for each field that differs, by full name."""
    found = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, ConfigDict) and isinstance(b, ConfigDict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} {a!r} -> {b!r}")
    return found
