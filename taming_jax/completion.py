"""Completes a config from its first stages and its data, checks it, and reads and upgrades the config of a run.

A complete config holds everything that determines a run; everything is built from one.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from taming_jax import checkpoint, published
from taming_jax.conditions import find_condition
from taming_jax.console import say
from taming_jax.data.classes import number_classes
from taming_jax.data.walk import listed
from taming_jax.errors import UserError, nearest, printable, reason, show
from taming_jax.fields import LAYOUT, STEP, check_fields, differences
from taming_jax.first_stage import code_side, make_first_stage
from taming_jax.hub import address
from taming_jax.models.quantize import QUANTIZERS, CodebookQuantizer, make_quantizer
from taming_jax.parts import CODES, PARTS, within
from taming_jax.published import COPIES
from taming_jax.second_stage import make_second_stage
from taming_jax.tasks import transformer, vqgan
from taming_jax.values import among

NETS = {"vqgan": "gen", "transformer": "gpt"}  # the net that is sampled with
LoadConfig = Callable[[Path, int | None], tuple[ConfigDict, int]]

# Fields that came after the first runs, each with the value that a run without it has: for all tasks, by task, and by
# quantizer.
LATER = {
    "accumulate": 1,
    "ema_decay": 0.0,
    "init_from": "",
    "fresh": (),
    "freeze": (),
    "max_skipped": 20,
    "checkpoint_best": "",
    "evals": {},
    "tracker": "tensorboard",
    "optim.name": "adam",
    "optim.momentum": 0.95,
    "optim.eps": 1e-8,
    "optim.final_share": 0.01,
    "data.random_scale": False,
    "data.num_labels": 0,
    "data.label_shift": 0,
    "data.downscale": 4,
    "data.splits": {"train": "train", "validation": "validation"},
}
LATER_OF = {
    "vqgan": {
        "model.network": "vqgan",
        "model.remat": False,
        "model.patch": 1,
        "loss.perceptual_crop": 0,
        "loss.pixel_weight": 1.0,
        "disc.delta": 1e-4,
        "disc.network": "patch",
        "disc.adaptive": True,
        "disc.lecam_weight": 0.0,
        "disc.lecam_decay": 0.999,
    },
    "transformer": {
        "codes": "",
        "noise_until": 0,
        "vector_weight": 0.0,
        "vector_init": 0.0,
        "canvas": (0, 0),
        "gpt.remat": "none",
        "gpt.architecture": "gpt",
        "gpt.mlp_dim": None,
        "gpt.num_kv_heads": None,
        "gpt.random_order": (0, 0),
        "gpt.context.kind": "window",
        "gpt.context.lag": 3,
        "gpt.context.reach": (4, 4),
        "gpt.context.places": False,
        "gpt.context.label_smoothing": 0.1,
        "gpt.context.unmasked_weight": 0.0,
        "cond.drop": 0.0,
        "cond.aligned": False,
        "cond.layout.categories": "",
        "data.layout.categories": "",
        "cond.max_words": 16,
        "cond.max_vocabulary": 8192,
        "cond.vocabulary": (),
        "sample.guidance": 1.0,
        "sample.guidance_power": 0.0,
        "sample.guidance_codes": 0,
        "sample.passes": 16,
        "sample.choice_temperature": 4.5,
        # Which weights a first stage has, and where this run's own copy of them comes from; empty without a copy.
        "first_stage.digest": "",
        "first_stage.origin": "",
        "cond.digest": "",
        "cond.origin": "",
    },
}
LATER_OF_QUANTIZER = {"ema": {"eps": 1e-5}}


def upgrade(config: ConfigDict) -> ConfigDict:
    """Gives a stored config of any age the fields of today; what it does stays the same.

    Raises UserError for an unknown task. Whatever else is wrong stays so, and is for `check_stored`.
    """
    fields = config.to_dict()
    if fields.get("task") == "prior":  # its name until 0.1.0
        fields["task"] = "transformer"
    among(LATER_OF)("task", fields.get("task"))
    if project := fields.pop("wandb_project", ""):  # which was beside TensorBoard
        fill(fields, "tracker", f"tensorboard,wandb:{project}")
    if fields.get("input") == "segmentation" and "out_ch" in group(fields, "model"):
        fill(fields, "data.num_labels", fields["model"]["out_ch"])
    later = LATER | LATER_OF[fields["task"]]
    for kind, added in LATER_OF_QUANTIZER.items():
        if group(fields, "quantizer").get("name") == kind:
            later |= {f"quantizer.{name}": value for name, value in added.items()}
    for path, value in later.items():
        fill(fields, path, value)
    for name in COPIES:
        if stage := group(group(fields, name), "config"):
            with about(f"{name}.config"):
                fields[name]["config"] = upgrade(ConfigDict(stage)).to_dict()
    return ConfigDict(fields)


def group(fields: dict, name: str) -> dict:
    """A group of fields; {} where there is none, or something else in its place."""
    found = fields.get(name)
    return found if isinstance(found, dict) else {}


def fill(fields: dict, path: str, value: object) -> None:
    """Sets a field that is missing, with its groups."""
    *parents, name = path.split(".")
    for parent in parents:
        fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict):
            return
    fields.setdefault(name, value)


@contextmanager
def about(what: str) -> Iterator[None]:
    """Within, a UserError says what it is about."""
    try:
        yield
    except UserError as e:
        raise UserError(f"{what}: {e}") from e


def load_config(workdir: Path, step: int | None = None) -> tuple[ConfigDict, int]:
    """The complete config of a run at a step (None for the newest that can be read), upgraded; and that step.

    A published run's config has the paths of its own folder alone. Runs from before they had copies of their first
    stages name them by a path, relative to the folder in which they were trained: it is looked for around the run, then
    here, then by its name beside the run and in it. Raises UserError where there is no config, or one that no run can
    have.
    """
    try:
        config, step = checkpoint.read_config(workdir, step)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as e:  # of a ConfigDict
        raise UserError(f"the config that {workdir} has stored is none: {reason(e)}") from e
    with about(f"the config that {workdir} has stored at step {step}"):
        config = upgrade(config)
        check_stored(config)
    if published.is_published(workdir):
        for name in stages_of(config):
            if not config[name].digest:
                raise checkpoint.Damaged(f"{workdir / published.CONFIG} is damaged: {name}.digest is missing")
    for name, copy in COPIES.items():
        stage = config.get(name)
        if stage is not None and stage.workdir:
            path, around = Path(stage.workdir), Path(os.path.abspath(workdir))
            places = [] if path.is_absolute() or stage.digest else [above / path for above in around.parents]
            places += [path, workdir / copy, workdir.parent / path.name, workdir / path.name]
            found = next((place for place in places if checkpoint.steps(place)), path)
            stage.workdir = str(checkpoint.from_here(found))
    return config, step


def check_stored(config: ConfigDict) -> None:
    """Raises UserError where a complete config, or that of a first stage in it, is wrong; names the field."""
    check_fields(config, complete=True)
    check_parts(config)
    for name in stages_of(config):
        stage = config[name].get("config")
        if not isinstance(stage, ConfigDict):
            raise UserError(f"{name}.config={show(stage)}: it is the config of a first stage")
        with about(f"{name}.config"):
            among(("vqgan",))("task", stage.get("task"))
            check_stored(stage)
        STEP(f"{name}.step", config[name].step)
    check_stages(config)
    if lacking := features_of(config) - set(config.data.features):
        raise UserError(f"data.features={show(config.data.features)}: {min(lacking)!r} is missing")
    layout = config.data.get("layout", {})
    if "objects" in config.data.features and (missing := [name for name in LAYOUT if name not in layout]):
        raise UserError(f"data.layout.{missing[0]} is missing from the config")


def check_parts(config: ConfigDict) -> None:
    """Raises UserError where fields do not fit each other, whatever the first stages and the data are."""
    check_begin(config)
    if config.task == "vqgan":
        vqgan.check(config)
    else:
        transformer.check(config)
        find_condition(config.cond.name).check(config)


def check_begin(config: ConfigDict) -> None:
    """Raises UserError where what stays as it is and what begins anew do not go together."""
    freeze, fresh = tuple(config.freeze), tuple(config.fresh)
    if both := [part for part in freeze if part in fresh]:
        raise UserError(f"freeze={freeze}, fresh={fresh}: {both[0]!r} either stays as it is or begins anew")
    if fresh and not config.init_from:
        raise UserError(f"fresh={fresh}: all parts begin anew; with init_from, some begin with another run's weights")
    can_learn = set(PARTS[config.task])
    if config.task == "vqgan" and not issubclass(QUANTIZERS[config.quantizer.name], CodebookQuantizer):
        can_learn -= {"codebook"}
    if can_learn <= set(freeze):
        raise UserError(f"freeze={freeze}: nothing is left to learn; leave one of them out")


def stages_of(config: ConfigDict) -> list[str]:
    """The groups of a config that name first stages."""
    if config.task == "vqgan":
        return []
    return ["first_stage", *(["cond"] if find_condition(config.cond.name).HAS_STAGE else [])]


def check_stages(config: ConfigDict) -> None:
    """Raises UserError where a complete config does not fit those of its first stages."""
    for name in stages_of(config):
        stage = config[name].config
        size, patch = stage.data.size, code_side(stage.model)
        if config.gpt.context.kind == "wavefront":  # it learns on crops of any size
            if config.data.size % patch:
                raise UserError(f"data.size={config.data.size}: a multiple of {patch}, a code of {name}")
            continue
        if size != config.data.size:
            named = {"first_stage": "the first stage", "cond": "the condition's first stage"}[name]
            raise UserError(f"data.size={config.data.size}: {named} was trained at {size}")
    if config.task == "transformer" and config.first_stage.used:
        codes, used = make_quantizer(config.first_stage.config.quantizer).codebook_size, config.first_stage.used
        if max(used) >= codes:
            raise UserError(f"first_stage.used holds {max(used)}; the first stage has the codes 0 to {codes - 1}")


def features_of(config: ConfigDict) -> set[str]:
    """The features of the data that a run reads, by a config that has those of its first stages."""
    if config.task == "vqgan":
        return {"image", config.input}
    inputs = [config[name].config.input for name in stages_of(config)]
    return {"image", *inputs, *find_condition(config.cond.name).FEATURES}


def load_run(workdir: Path, step: int | None = None) -> tuple[ConfigDict, int, dict]:
    """-> (a run's complete config, its step, the weights that are sampled with, as numpy arrays).

    step: None for the newest that is whole; damaged ones are named and passed over. Raises UserError where there is no
    run, and Damaged where no checkpoint is whole.
    """
    workdir = Path(workdir)

    def read(step: int) -> tuple[ConfigDict, dict]:
        config, _ = load_config(workdir, step)
        return config, checkpoint.load_net(workdir, step, NETS[config.task], net_shapes(config))

    (config, params), step, _ = checkpoint.newest(workdir, read, checkpoint.required_steps(workdir, step))
    return config, step, params


def net_shapes(config: ConfigDict) -> dict:
    """The shapes of the weights of a complete config's main net."""
    if config.task == "vqgan":
        return make_first_stage(config).parameter_shapes()
    return jax.eval_shape(make_second_stage(config).init, jax.random.key(0))


def load_whole_config(workdir: Path, step: int | None = None) -> tuple[ConfigDict, int]:
    """`load_config` of the newest checkpoint whose weights are whole too."""
    return load_run(workdir, step)[:2]


def complete(config: ConfigDict, stored: ConfigDict | None = None, load: LoadConfig = load_whole_config) -> ConfigDict:
    """Completes a config, except for what `complete_from_data` adds, as it is stored with a run.

    stored: the config of the run that is resumed, if any. Raises UserError for values out of range (see `fields`), and
    where the parts do not fit.
    """
    check_fields(config)
    config = config.copy_and_resolve_references()
    if "run" in config:  # for `train` alone
        with config.unlocked():
            del config.run
    check_parts(config)
    if stored is not None:  # a run begins but once
        config.init_from, config.fresh = stored.init_from, stored.fresh
    elif config.freeze and not config.init_from:
        raise UserError(f"freeze={tuple(config.freeze)}: without init_from, chance alone has made what would stay")
    if config.task == "vqgan":
        check_path(config.data.path, config.data.name)
        config.data.features = tuple(sorted({*features_of(config), *config.data.features}))
        config.data.num_labels = config.model.out_ch if config.input == "segmentation" else 0
        return config
    first, *seen = [find_stage(config, stored, name, load) for name in stages_of(config)]
    check_path(config.data.get("path"), config.data.get("name") or first.data.name)
    with config.unlocked():
        moved = {name: value for name, value in config.data.items() if value is not None}
        for stage in seen:
            moved = {name: stage.data[name] for name in ("num_labels", "label_shift", "downscale")} | moved
        moved |= {"features": tuple(sorted(features_of(config))), "layout": config.cond.layout}
        config.data = ConfigDict({**first.data, **moved})
    check_stages(config)
    return config


def find_origin(config: ConfigDict) -> ConfigDict:
    """The config of the run with whose weights a new one begins. Raises UserError where it is of the other stage."""
    with about("init_from"):
        workdir = address.find(config.init_from)
        found, _ = load_config(workdir)
    if found.task != config.task:
        own = ""
        if found.task == "transformer":
            own = f"; its tokenizer is {workdir / COPIES['first_stage']}"
        raise UserError(
            f"init_from={config.init_from} holds a {found.task!r} run, the config is for {config.task!r}{own}"
        )
    return found


def learns_alike(config: ConfigDict, other: ConfigDict) -> bool:
    """Whether two transformers have conditions of one kind, so that classes and words of the one are the other's."""
    return config.task == "transformer" and config.cond.name == other.cond.name


def fits_classes(config: ConfigDict, class_names: Sequence[str]) -> bool:
    """Whether a run has all classes of the data, so that it can number them as it did."""
    try:
        check_classes(config, class_names)
    except UserError:
        return False
    return True


def check_origin(config: ConfigDict, stored: ConfigDict, workdir: Path) -> None:
    """Raises UserError where a config is to begin with another run's weights in a run that has begun otherwise."""
    if not config.init_from or (stored.init_from and same_place(config.init_from, stored.init_from)):
        return
    began = f"which began with {stored.init_from}" if stored.init_from else "which began with no other run's weights"
    raise UserError(
        f"init_from={config.init_from}: {workdir} holds a run already, {began}; name another run directory, or go on"
        f" with that run by --config=stored:{workdir}"
    )


def same_place(a: str, b: str) -> bool:
    """Whether two paths, which need not be there, lead to the same place."""
    return os.path.realpath(a) == os.path.realpath(b)


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
    check_fields(config)
    if config.task != "transformer" and stages:
        raise UserError(f"--{min(stages)}: only a transformer has it, the config is for {config.task!r}")
    ahead = {address.find(config[name].workdir): complete(stage) for name, stage in stages.items()}

    def load(workdir: Path, step: int | None) -> tuple[ConfigDict, int]:
        if workdir in ahead:
            return ahead[workdir].copy_and_resolve_references(), 0
        return load_config(workdir, step)

    return complete(config, None, load)


def check_path(path: str | None, name: str) -> None:
    """Raises UserError for a folder of images that the data set `name` does not read."""
    if path and name != "folder":
        raise UserError(
            f"data.path={path}: data.path is read where data.name='folder' only, and it is {name!r}; add"
            " --config.data.name=folder, or --config.data.path= for that data set"
        )


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

    A resumed run keeps the weights of the first stages that it began with, its own copies: others would give other
    codes. Raises UserError where the config names a first stage with other weights.
    """
    stage = config[name]
    if stored is not None and stored[name].digest:
        own = stored[name]
        check_same(name, stage, own)
        with config.unlocked():
            stage.update({field: own[field] for field in ("workdir", "origin", "step", "digest", "config")})
        return own.config
    if stored is not None and stage.step is None:
        stage.step = stored[name].step
    given, stage.workdir = stage.workdir, str(address.find(stage.workdir))
    found, step = load(Path(stage.workdir), stage.step)
    if found.task != "vqgan":
        raise UserError(f"{name}.workdir={stage.workdir} holds a {found.task!r} run; a first stage is a 'vqgan' run")
    with config.unlocked():
        stage.update(step=step, config=found, digest="", origin=given if address.is_address(given) else "")
    return found


def check_same(name: str, asked: ConfigDict, own: ConfigDict) -> None:
    """Compares the first stage that a config asks for with the copy that the run has.

    Says so where the one that was copied has other weights by now, as it has if it was trained further; raises
    UserError where another one is asked for.
    """
    if asked.workdir == own.origin and address.is_address(asked.workdir):
        return  # what an address leads to may change
    found = address.find(asked.workdir)
    place = os.path.abspath(found)
    if place == os.path.abspath(own.workdir) and asked.step in (None, own.step):
        return
    elsewhere = place not in map(os.path.abspath, (own.workdir, own.origin))
    step = own.step if asked.step is None and not elsewhere else asked.step
    try:
        config, step = load_config(found, step)
        digest = checkpoint.digest(checkpoint.load_net(found, step, "gen", net_shapes(config)))
    except UserError as e:
        if elsewhere and found.is_dir():
            raise UserError(f"{name}.workdir={asked.workdir}: {e}") from e
        return  # it is gone, or trained further: the run has its own
    if digest == own.digest:
        return
    further = step > own.step and config.model == own.config.model and config.quantizer == own.config.quantizer
    if (elsewhere or step != own.step) and not further:
        raise UserError(
            f"{name}.workdir={asked.workdir}, step {step}, has other weights than the first stage that this run was"
            f" trained on (from {own.origin}); name another run directory for training on it, or go on with the run's"
            f" own copy, {name}.workdir={own.workdir}"
        )
    say(f"{asked.workdir} has other weights by now; the run goes on with its own copy of them, {own.workdir}")


def digest_of_codes(stage: ConfigDict, params: dict | None = None) -> str:
    """Identifies what determines the codes of a first stage, its encoder and its codebook, wherever they are.

    stage: `config.first_stage` of a complete config. params: its weights, where they are read already.
    """
    if params is None:
        like = make_first_stage(stage.config).parameter_shapes()
        params = checkpoint.load_net(Path(stage.workdir), stage.step, "gen", like)
    levels = np.asarray(stage.config.quantizer.get("levels", ()))  # a codebook without parameters
    return checkpoint.digest({**within("gen", params, CODES), "levels": levels})


def find_moved(stage: ConfigDict, workdir: Path) -> ConfigDict:
    """`config.first_stage` of a complete config with a first stage at another place, in place of the run's own.

    It is taken at its newest step where it gives the same codes by other weights, those of a decoder that was trained
    further.
    """
    stage = stage.copy_and_resolve_references()
    if stage.digest and checkpoint.steps(workdir) and checkpoint.steps(Path(stage.workdir)):
        found, step, params = load_run(workdir)
        if found.task == "vqgan" and digest_of_codes(stage) == digest_of_codes(stage, params):
            stage.update(step=step, digest=checkpoint.digest(params))
            stage.config = found
    stage.workdir = str(workdir)
    return stage


def keep_stages(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Copies the first stages of a complete config into its run directory, -> the config with them.

    Copies hold the weights that are used: averages where there are some. What is copied already stays.
    """
    config = config.copy_and_resolve_references()
    for name, copy in COPIES.items():
        stage, place = config.get(name), workdir / copy
        if stage is None or not stage.workdir or stage.digest:
            continue
        like = make_first_stage(stage.config).parameter_shapes()
        digest = checkpoint.digest(checkpoint.load_net(Path(stage.workdir), stage.step, "gen", like))
        if not is_copy(place, stage.step, like, digest):
            if checkpoint.steps(workdir) and place.exists():
                raise UserError(
                    f"{place} is not the first stage that {workdir} was trained on, {stage.workdir}; move it"
                )
            checkpoint.copy_nets(
                Path(stage.workdir), stage.step, place
            )  # a start that came to nothing may have left one
        with config.unlocked():
            stage.update(origin=stage.origin or stage.workdir, workdir=str(place), digest=digest)
    return config


def is_copy(place: Path, step: int, like: dict, digest: str) -> bool:
    """Whether a folder holds a first stage with these weights; one that is damaged does not."""
    if checkpoint.steps(place) != [step]:
        return False
    try:
        return checkpoint.digest(checkpoint.load_net(place, step, "gen", like)) == digest
    except UserError:
        return False


@contextmanager
def explain_misfit(stored: ConfigDict | None, config: ConfigDict) -> Iterator[None]:
    """Within, a checkpoint of other arrays than the config's is explained by the fields that differ."""
    try:
        yield
    except checkpoint.Misfit as e:
        changed = differences(stored, config) if stored is not None else []
        changed.sort(key=lambda field: not field.startswith("optim.name"))  # with it, all of the optimizer's arrays
        told = f"; changed since: {', '.join(changed[:5])}" if changed else ""
        raise UserError(
            f"{e}{told}; set the fields back, go on with the run's own by --config=stored:RUN, or name another run"
            " directory"
        ) from e
