"""Every test sees some CPU devices, so that any of them can build a mesh; runs go to temporary folders."""

import atexit
import fcntl
import os
import runpy
import shutil
import sys
import tempfile
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")  # eight in `make test-slow`: two cores would lose time with so many
# Most of the tests' time is XLA's: the models are tiny, so quick compilation beats quick programs. Each of the last two
# took a sixth off that of a training; two workers on two cores gain nothing from parts that are compiled at once.
QUICK = [
    "--xla_backend_optimization_level=0",
    "--xla_cpu_experimental_ynn_fusion_type=",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if version("jax").startswith("0.10."):  # unknown to later ones, which end at an unknown flag
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK))
# Tests compile the same small programs over and over. pytest itself makes the cache; its workers and the commands that
# they start find the variable set, and so all have one.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax_cache_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from absl import flags

from taming_jax import cli
from taming_jax.generator import Generator
from taming_jax.loop import train
from tests.tiny import ROOT, annotate, draw_pictures, tiny_transformer, tiny_vq

flags.FLAGS.mark_as_parsed()

# Files that take longest. They come first, so that no worker is left with one at the end.
DEAR = [f"test_{name}" for name in "loop generator wave golden golden_successors finetune successors runs".split()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in DEAR)


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Makes a folder by its name, once for all workers: the first that asks makes it, the others wait."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        folder = root / name
        root.mkdir(exist_ok=True)
        with open(root / f"{name}.made", "a+") as made:
            fcntl.flock(made, fcntl.LOCK_EX)
            if made.seek(0, os.SEEK_END) == 0:
                shutil.rmtree(folder, ignore_errors=True)  # what a worker that failed has left
                make(folder)
                made.write("whole\n")
        return folder

    return make_once


@pytest.fixture(scope="session")
def picture_folder(make_once: MakeOnce) -> Path:
    """48 coloured shapes of many sizes in three class folders."""
    return make_once("pictures", draw_pictures)


@pytest.fixture(scope="session")
def annotated_folder(picture_folder: Path, make_once: MakeOnce) -> Path:
    """The same pictures in the layout of docs/data.md, with all that can belong to them."""
    return make_once("annotated", lambda folder: annotate(picture_folder, folder))


@pytest.fixture(scope="session")
def vq_run(picture_folder: Path, make_once: MakeOnce) -> Path:
    """A finished first stage."""
    return make_once("vq", lambda workdir: train(tiny_vq(picture_folder), workdir))


@pytest.fixture(scope="session")
def transformer_run(vq_run: Path, make_once: MakeOnce) -> Path:
    """A finished second stage on top of `vq_run`, profiled on its way."""
    return make_once("transformer", lambda workdir: train(tiny_transformer(vq_run), workdir, profile_step=2))


@pytest.fixture(scope="session")
def generator(transformer_run: Path) -> Generator:
    """That second stage, loaded once."""
    return Generator.load(transformer_run)


@pytest.fixture
def run_here(monkeypatch) -> Callable[..., None]:
    """Runs a command in this process, which takes no seconds for imports; what it defines is gone after the test."""
    before, environment = set(flags.FLAGS), dict(os.environ)
    monkeypatch.setattr(cli, "_begun", {})
    monkeypatch.chdir(ROOT)

    def forget() -> None:
        for name in set(flags.FLAGS) - before:
            if flags.FLAGS.find_module_defining_flag(name) != "absl.app":  # which adds --help once
                delattr(flags.FLAGS, name)
        cli._begun.clear()

    def run_here(module: str, *args: str) -> None:
        forget()
        monkeypatch.setattr(sys, "argv", ["command", *args])
        runpy.run_module(module, run_name="__main__")

    yield run_here
    forget()
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def type_here(run_here, capfd) -> Callable[..., CompletedProcess]:
    """`tiny.run`, but for mistakes, in this process."""

    def type_here(module: str, *args: str) -> CompletedProcess:
        code = 0
        try:
            run_here(f"taming_jax.{module}", *args)
        except SystemExit as ended:
            code = ended.code
        return CompletedProcess(args, code, *capfd.readouterr())

    return type_here
