"""Every config builds, has the size that it should, and trains when its sizes are made small."""

import importlib
from pathlib import Path

import jax
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from taming_jax import tasks
from taming_jax.train import train
from tests.conftest import changed

# Parameters of each net.
PARAMETERS = {
    "custom_vq": {"gen": 72_141_699, "disc": 2_765_633},
    "imagenet_vq": {"gen": 72_141_699, "disc": 2_765_633},
    "openmoji_vq": {"gen": 809_843, "disc": 167_841},
    "custom_transformer": {"gpt": 304_670_720},
    "openmoji_transformer": {"gpt": 3_438_080},
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


SMALL_VQ = dict(
    batch_size=8,
    steps=2,
    eval_every=2,
    data__size=16,
    data__workers=0,
    model__ch=32,
    model__ch_mult=(1, 1),
    model__num_res_blocks=1,
    disc__ndf=8,
    disc__n_layers=1,
    quantizer__codebook_size=16,
)


@pytest.mark.parametrize("name", ["imagenet_vq", "custom_vq"])  # tests/test_train.py is all openmoji_vq
def test_first_stages_run_small(name, picture_folder, tmp_path):
    """The paper's config on TFDS's mock of ImageNet, the other on a folder; with all losses on."""
    config = changed(load(name), **SMALL_VQ, loss__perceptual_start=0, disc__start=0, disc__gen_start=0)
    if name == "imagenet_vq":
        with tfds.testing.mock_data(num_examples=16):
            assert train(config, tmp_path)["psnr"] > 0
    else:
        config = changed(config, data__name="folder", data__path=str(picture_folder), data__validation_share=0.2)
        assert train(config, tmp_path)["psnr"] > 0


@pytest.mark.parametrize("name", ["custom_transformer", "openmoji_transformer"])
def test_second_stages_run_small(name, vq_run, tmp_path):
    small = dict(batch_size=8, steps=2, eval_every=2, gpt__num_layers=1, gpt__num_heads=2, gpt__embed_dim=16)
    config = changed(load(name), first_stage__workdir=str(vq_run), **small)
    assert 0 < train(config, tmp_path)["nll"] < 10
