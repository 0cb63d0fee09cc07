"""Who is told a run's numbers and pictures, beside its own files: TensorBoard, Weights & Biases, Trackio.

`config.tracker` names them, with commas between: 'tensorboard,wandb:faces'. What follows a colon is a project.
"""

import importlib
import secrets
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from taming_jax.errors import UserError, printable, show, with_extra
from taming_jax.values import among, line

SERVICES = ("wandb", "trackio")  # packages; the second one has the interface of the first
KINDS = ("tensorboard", *SERVICES)
PROJECT = "taming_jax"  # where a config names none


def parse(asked: str) -> dict[str, str]:
    """'tensorboard,wandb:faces' -> {'tensorboard': '', 'wandb': 'faces'}; '' -> {}."""
    words = [word.strip().partition(":") for word in asked.split(",") if word.strip()]
    return {kind: project for kind, _, project in words}


def rule(name: str, value: Any, kind: type[UserError] = UserError) -> None:
    """Such a text; see `values`."""
    line(name, value, kind)
    for tracker, project in parse(value).items():
        among(KINDS)(name, tracker, kind)
        if project and tracker not in SERVICES:
            raise kind(f"{name}={show(value)}: {tracker} has no projects; its events lie in the run directory")


class Service:
    """A run of a service; it goes on with the one that this run directory has begun."""

    def __init__(self, kind: str, project: str, workdir: Path, config: ConfigDict):
        """Raises UserError where the package is missing, or where the service refuses: no login, no network."""
        try:
            self.package = importlib.import_module(kind)
        except ImportError as e:
            raise UserError(f"tracker={config.tracker!r} needs a package: {with_extra(kind)}") from e
        workdir.mkdir(parents=True, exist_ok=True)
        stored = workdir / f"{kind}_id"
        begun = stored.read_text() if stored.exists() else None
        fields = dict(project=project or PROJECT, config=config.to_dict(), resume="allow")
        if kind == "wandb":
            fields |= dict(id=begun, name=workdir.name, dir=str(workdir))
        else:  # a run is known by its name
            fields |= dict(name=begun or f"{workdir.name}-{secrets.token_hex(3)}")
        try:
            self.run = self.package.init(**fields)
        except Exception as e:  # each service has its own kinds
            text = printable(" ".join(str(e).split()))[:200]
            raise UserError(f"tracker={config.tracker!r}: {text or type(e).__name__}") from e
        stored.write_text(self.run.id if kind == "wandb" else self.run.name)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def picture(self, step: int, name: str, file: Path) -> None:
        """A PNG, or an animation as a GIF."""
        video = file.suffix == ".gif"
        shown = self.package.Video(str(file), format="gif") if video else self.package.Image(str(file))
        self.run.log({name: shown}, step=step)

    def finish(self) -> None:
        self.run.finish()
