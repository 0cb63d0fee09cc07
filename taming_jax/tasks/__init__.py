"""The two stages. Each module has `complete(config, stored)` and `make(config) -> Task`."""

from types import ModuleType

from taming_jax.errors import UserError, nearest
from taming_jax.tasks import prior, vqgan

TASKS = {"vqgan": vqgan, "prior": prior}


def find(name: str) -> ModuleType:
    """The module of a task; raises UserError for a name that is not there."""
    if name not in TASKS:
        raise UserError(f"config.task={name!r}: allowed are {', '.join(map(repr, TASKS))}{nearest(name, TASKS)}")
    return TASKS[name]
