"""A run's config beside that of the file that it was most likely made of, and the commands that repeat the run."""

import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from taming_jax import completion, config_files
from taming_jax.errors import UserError
from taming_jax.fields import flat
from taming_jax.hub.address import is_address
from taming_jax.published import is_published
from taming_jax.report.run import Run

COMPLETED = {"data.class_names", "data.features", "data.num_labels", "cond.vocabulary"}  # from the data
OF_STAGES = {f"{stage}.{field}" for stage in completion.COPIES for field in ("workdir", "digest", "step", "origin")}
OPEN = ("evals.", "quantizer.")  # groups whose fields depend on others
PROGRAMS = ("stored", "finetune", "common")  # configs that read a run, or are a part of others


class Base(NamedTuple):
    """A config by its name; (field, the config's value, the run's) where they differ, None for a field that is not."""

    name: str
    changed: list[tuple[str, Any, Any]]


def find(run: Run) -> Base | None:
    """The config that a run was most likely made of, since no run stores its name. None where there is none.

    That is the one with the run directory's name, if it is of the same task, else the one with the fewest fields that
    differ; of a run that began with another's weights, `finetune` of that one is among them.
    """
    found = {name: changes(config, run.config) for name, config in candidates(run.config)}
    name = run.name if run.name in found else min(found, key=lambda name: len(found[name]), default=None)
    return None if name is None else Base(name, found[name])


def candidates(config: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
    """Our configs, and those of a user in configs/, that can be loaded and are of the same task.

    Without `finetune` of an address: nothing is downloaded for a page.
    """
    names = {file.stem: None for folder in config_files.folders() for file in sorted(folder.glob("*.py"))}
    given = [name for name in names if name not in PROGRAMS and not name.startswith("_")]
    local = config.init_from and not is_address(config.init_from)
    for name in [*([f"finetune:{config.init_from}"] if local else []), *given]:
        try:
            loaded = config_files.load(name).copy_and_resolve_references()
        except UserError:  # of a run that has gone, or of a user's own
            continue
        if loaded.get("task") == config.task:
            yield name, loaded


def changes(base: ConfigDict, config: ConfigDict) -> list[tuple[str, Any, Any]]:
    """The fields in which a complete config differs from the one in a file, without those that completion has set."""
    before, after = flat(base), flat(config)
    found = []
    for name in sorted({*before, *(name for name in after if name.startswith(OPEN))}):
        a, b = before.get(name), after.get(name)
        if name in COMPLETED | OF_STAGES or a == b or isinstance(a, ConfigDict) or isinstance(b, ConfigDict):
            continue
        if a is not None or name not in before:
            found.append((name, a, b))
    for stage in completion.COPIES:
        a, b = before.get(f"{stage}.workdir"), after.get(f"{stage}.origin") or after.get(f"{stage}.workdir")
        if a and b and not completion.same_place(a, b):
            found.append((f"{stage}.workdir", a, b))
    return found


def commands(run: Run, base: Base | None) -> list[tuple[str, str]]:
    """(what it does, the command) to repeat what a folder holds."""
    folder = str(run.folder)
    if run.made_by is not None:
        return [("The same images, into another folder", sampling(run.made_by, f"{folder}_again"))]
    found = []
    if base is not None:
        settable = [(name, value) for name, before, value in base.changed if before is not None and value is not None]
        words = [f"--config.{name}={value}" for name, value in settable]
        command = ["taming", "train", f"--config={base.name}", f"--workdir={folder}_again", *words]
        others = [name for name, before, value in base.changed if before is None or value is None]
        but = f", but for {', '.join(others)}, for which it needs a config file of its own" if others else ""
        found.append((f"The same training, into another folder{but}", shlex.join(command)))
    if run.config is not None:
        if is_published(run.folder):  # which is to be read alone
            pulled = ["taming", "hub", "pull", f"--from={folder}", f"--workdir={folder}_run"]
            found.append(("A run directory of it, to evaluate and to train further", shlex.join(pulled)))
        else:
            further = ["taming", "train", f"--config=stored:{folder}", f"--workdir={folder}"]
            found.append(("On from its newest checkpoint", shlex.join(further)))
            found.append(("Its numbers and pictures again", shlex.join(["taming", "evaluate", f"--workdir={folder}"])))
        if run.config.task == "transformer":
            painted = ["taming", "sample", f"--workdir={folder}", f"--out={folder}_samples"]
            found.append(("Images", shlex.join(painted)))
    return [*found, ("This page", shlex.join(["taming", "report", folder]))]


def sampling(made_by: dict, out: str) -> str:
    """The command of `sample` that a folder of samples was made by, as its record says."""
    asked = {name: value for name, value in made_by.items() if name not in ("step", "first_stage", "files")}
    for name in ("size", "keep"):
        if isinstance(asked.get(name), (list, tuple)):
            asked[name] = ("x" if name == "size" else ",").join(map(str, asked[name]))
    words = ["taming", "sample", f"--workdir={asked.pop('workdir', '')}", f"--out={out}"]
    if first_stage := made_by.get("first_stage"):
        words.append(f"--first_stage={first_stage}")
    for name, value in asked.items():
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no'}{name}")
        elif value is not None:
            words.append(f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return shlex.join(words)
