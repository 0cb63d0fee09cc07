"""The wheel holds all that its commands need: built, installed into an environment of its own, run from elsewhere."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from taming_jax.__main__ import COMMANDS
from taming_jax.hub import address
from taming_jax.published import CONFIG, WEIGHTS

ROOT = Path(__file__).parents[1]
SMALL = """data.name=folder data.size=16 data.validation_share=0.2 model.ch_mult=(1,) model.num_res_blocks=1
    model.z_channels=32 quantizer.codebook_size=32 quantizer.embed_dim=8 loss.perceptual_weight=0.0 disc.weight=0.0
    batch_size=4 steps=2 eval_every=2"""
MINE = "from configs import openmoji_vq\n\ndef get_config():\n    return openmoji_vq.get_config()\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, since building leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs")
    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--quiet", f"--wheel-dir={folder}", str(folder / "source")], check=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def commands(wheel, tmp_path_factory) -> Path:
    """The commands' folder of an environment with the wheel, which borrows all other packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", f"--python={folder / 'bin/python'}"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    borrowed = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    return folder / "bin"


@pytest.fixture
def run(commands, tmp_path):
    """Runs a command in an empty folder."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_NUM_CPU_DEVICES": "1"}

    def run(name: str, *args: str) -> subprocess.CompletedProcess:
        return subprocess.run([commands / name, *args], cwd=tmp_path, env=env, capture_output=True, text=True)

    return run


def test_wheel_has_the_package_and_its_configs_alone(wheel):
    files = [
        p for p in (ROOT / "taming_jax").rglob("*") if p.suffix in (".py", ".csv", ".css", ".html", ".js", ".typed")
    ]
    expected = {p.relative_to(ROOT).as_posix() for p in files}
    expected |= {f"taming_jax/configs/{p.name}" for p in (ROOT / "configs").glob("*.py")}
    expected |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "taming_jax/nets").rglob("*") if p.is_file()}
    for folder in address.NAMES.values():
        assert {(folder / file).relative_to(ROOT).as_posix() for file in (CONFIG, WEIGHTS)} <= expected
    held = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert sorted(held) == sorted(expected)


def test_commands_are_listed_in_no_time(run):
    code = "import sys, runpy; runpy.run_module('taming_jax', run_name='__main__'); print(*sys.modules, *sys.path)"
    listed, read = run("taming"), run("python", "-c", code)
    lines = [line.split(maxsplit=1) for line in listed.stdout.splitlines() if line.startswith("  ")]
    assert [name for name, _ in lines] == list(COMMANDS) and all(text.endswith(".") for _, text in lines)
    assert read.stdout.startswith(listed.stdout), read.stderr
    loaded = read.stdout[len(listed.stdout) :].split()
    assert "taming_jax.errors" in loaded and not {"jax", "numpy", str(ROOT)} & set(loaded)


@pytest.mark.slow
def test_a_first_stage_trains_from_another_folder(run, picture_folder, tmp_path):
    flags = ["--workdir=vq", f"--config.data.path={picture_folder}", *(f"--config.{field}" for field in SMALL.split())]
    trained = run("taming", "train", "--config=openmoji_vq", *flags)
    assert trained.returncode == 0, trained.stderr
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/mine.py").write_text(MINE)
    again = [
        run("taming", "train", "--config", "configs/openmoji_vq.py", *flags),
        run("python", "-m", "taming_jax.train", "--config=configs/mine.py", *flags),
    ]
    for done in again:
        assert done.returncode == 0 and "finished" in done.stdout + done.stderr, done


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("taming trian", "error: 'trian' is no command (did you mean 'train'?)"),
        ("taming train --config=openmoji_vg", "no config of that name (did you mean 'openmoji_vq'?)"),
        ("python -m taming_jax.convert", "error: --workdir is missing"),
    ],
)
def test_a_mistake_gets_one_line(command, message, run):
    done = run(*command.split())
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done
