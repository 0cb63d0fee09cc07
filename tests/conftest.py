"""Every test sees eight CPU devices, so that any of them can build a mesh; runs go to temporary folders."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Most of the tests' time is XLA's: the models are tiny, so quick compilation beats quick programs.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_experimental_ynn_fusion_type=")
# Tests compile the same small programs over and over, in this process and in those that they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jax_cache_"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
from absl import flags

from taming_jax.generator import Generator
from taming_jax.loop import train
from tests.tiny import annotate, draw_pictures, tiny_transformer, tiny_vq

flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 coloured shapes of many sizes in three class folders."""
    root = tmp_path_factory.mktemp("pictures")
    draw_pictures(root)
    return root


@pytest.fixture(scope="session")
def annotated_folder(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in the layout of docs/data.md, with all that can belong to them."""
    root = tmp_path_factory.mktemp("annotated")
    annotate(picture_folder, root)
    return root


@pytest.fixture(scope="session")
def vq_run(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished first stage, profiled on its way."""
    workdir = tmp_path_factory.mktemp("runs") / "vq"
    train(tiny_vq(picture_folder), workdir, profile_step=2)
    return workdir


@pytest.fixture(scope="session")
def transformer_run(vq_run: Path) -> Path:
    """A finished second stage on top of `vq_run`."""
    workdir = vq_run.parent / "transformer"
    train(tiny_transformer(vq_run), workdir)
    return workdir


@pytest.fixture(scope="session")
def generator(transformer_run: Path) -> Generator:
    """That second stage, loaded once."""
    return Generator.load(transformer_run)
