"""The two stages. Each module has `complete(config, stored)` and `make(config) -> Task`."""

from types import ModuleType

from ml_collections import ConfigDict

from taming_jax.errors import not_among
from taming_jax.tasks import prior, vqgan

TASKS = {"vqgan": vqgan, "prior": prior}


def find(name: str) -> ModuleType:
    """The module of a task; raises UserError for a name that is not there."""
    if name not in TASKS:
        raise not_among("task", name, TASKS)
    return TASKS[name]


def complete_ahead(config: ConfigDict, stages: dict[str, ConfigDict]) -> ConfigDict:
    """A config of either task as a first run would complete it; `stages` as of `prior.complete_ahead`."""
    task = find(config.task)
    return prior.complete_ahead(config, stages) if task is prior else task.complete(config, None)
