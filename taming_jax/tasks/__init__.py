"""The two stages. Each module has `check(config)` and `make_task(config) -> Task`."""

from ml_collections import ConfigDict

from taming_jax.state import Task
from taming_jax.tasks import transformer, vqgan

TASKS = {"vqgan": vqgan, "transformer": transformer}


def make_task(config: ConfigDict) -> Task:
    """The task of a complete config."""
    return TASKS[config.task].make_task(config)
