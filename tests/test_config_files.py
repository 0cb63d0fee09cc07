"""Configs by name, by file and with an argument; a user's own beside ours."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from taming_jax import config_files
from taming_jax.errors import UserError

OURS = Path(__file__).parents[1] / "configs"
MINE = """
from configs import common, openmoji_vq

def get_config(steps="7"):
    c = openmoji_vq.get_config()
    c.steps = int(steps)
    return c
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Another folder with configs of its own, from which nothing of the repository can be imported."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "configs"}
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p or ".").resolve() != OURS.parent])
    monkeypatch.chdir(tmp_path)
    for name in before:
        del sys.modules[name]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/mine.py").write_text(MINE)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
        del sys.modules[name]
    sys.modules.update(before)


@pytest.mark.parametrize("given", ["imagenet_vq", "imagenet_vq.py", "configs/imagenet_vq.py"])
def test_ours_are_found_from_another_folder(given, elsewhere):
    assert config_files.find(given) == str(OURS / "imagenet_vq.py")
    assert config_files.find(f"{given}:v5e-16") == f"{OURS / 'imagenet_vq.py'}:v5e-16"
    assert config_files.load(f"{given}:v5e-16").batch_size == 256


def test_a_config_of_ones_own_builds_on_ours(elsewhere):
    (elsewhere / "configs/common.py").write_text("raise RuntimeError")  # ours come first
    for given in ("mine", "configs/mine.py", str(elsewhere / "configs/mine.py")):
        assert config_files.load(given).steps == 7 and config_files.load(f"{given}:9").steps == 9
    (elsewhere / "openmoji_vq.py").write_text(MINE)
    assert config_files.load("openmoji_vq.py").steps == 7  # a file that is there is meant
    assert config_files.load("openmoji_vq").steps == 1500


def test_another_package_of_that_name_steps_behind_ours(elsewhere):
    for name in ("common", "theirs"):
        (elsewhere / f"{name}.py").write_text("number = 1")
    package = sys.modules["configs"] = ModuleType("configs")
    package.__path__ = [str(elsewhere)]
    assert importlib.import_module("configs.common").number == 1
    assert config_files.load("openmoji_vq").batch_size == 8
    assert importlib.import_module("configs.theirs").number == 1


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("openmoji_vg", "did you mean 'openmoji_vq'"),
        ("configs/imagenet_vqq.py:v5e-16", "did you mean 'imagenet_vq'"),
        ("min", "did you mean 'mine'"),
        ("other/mine.py", "did you mean 'mine'"),
        ("zzz", f"names are those in {OURS}"),
        ("", f"names are those in {OURS}"),
    ],
)
def test_a_misspelt_config_gets_the_nearest_name(given, hint, elsewhere):
    with pytest.raises(UserError, match="there is no such file, and no config of that name") as caught:
        config_files.load(given)
    assert hint in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("def get_config():\n    return 1 / 0\n", r"own.py:2: ZeroDivisionError: division by zero"),
        ("def get_config(:\n", r"own.py:1: SyntaxError"),
        ("x = 1\nimport nothing_of_this_name\n", r"own.py:2: ModuleNotFoundError"),
        ("import sys\nsys.exit('no')\n", r"own.py:2: SystemExit: no"),
        ("def get_config():\n    return get_config()\n", r"own.py:2: RecursionError"),
        ("def get_config():\n    raise ValueError('two\\nlines')\n", r"own.py:2: ValueError: two lines"),
        ("def get_config():\n    pass\n", r"own.py: get_config returns None, no ConfigDict"),
        ("get_config = 3\n", r"own.py: TypeError"),
        ("", r"own.py: AttributeError: .*get_config"),
        ("\0", r"own.py.*SyntaxError"),
    ],
)
def test_whatever_a_config_does_is_told_with_its_line(program, message, tmp_path):
    (tmp_path / "own.py").write_text(program)
    with pytest.raises(UserError, match=message) as caught:
        config_files.load(str(tmp_path / "own.py"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
