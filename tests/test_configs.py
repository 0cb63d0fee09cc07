"""Every config builds, has the size that it should, and trains when its sizes are made small."""

import importlib
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from taming_jax import tasks

# Parameters of each net. The paper's generator and discriminator were counted in the original's code as well.
PARAMETERS = {
    "custom_vq": {"gen": 72_142_467, "disc": 2_765_633},
    "imagenet_vq": {"gen": 72_142_467, "disc": 2_765_633},
    "openmoji_vq": {"gen": 0, "disc": 0},
    "custom_transformer": {"gpt": 0},
    "openmoji_transformer": {"gpt": 0},
}


def load(name: str) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config()


def test_no_config_is_left_untested():
    assert {p.stem for p in Path("configs").glob("*.py")} - {"common"} == set(PARAMETERS)


def completed(name: str) -> ConfigDict:
    config = load(name)
    if config.task == "prior":  # as `complete` does from a finished first stage
        first = load(name.replace("transformer", "vq"))
        with config.unlocked():
            config.first_stage.config = first
            config.data = ConfigDict({**first.data, **config.data})
    return config


@pytest.mark.parametrize("name", PARAMETERS)
def test_config_builds_with_its_exact_size(name):
    config = completed(name)
    shapes = jax.eval_shape(tasks.find(config.task).make(config).init, jax.random.key(0))
    counts = {net: sum(leaf.size for leaf in jax.tree.leaves(p)) for net, p in shapes.params.items()}
    assert counts == PARAMETERS[name]
