"""What `--help` of every command says, and what comments say of the fields of configs."""

import ast
import os
import re
import runpy
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from taming_jax import cli, config_files
from taming_jax.__main__ import COMMANDS
from taming_jax.errors import UserError
from taming_jax.fields import flat
from taming_jax.help import examples_of
from taming_jax.meanings import meaning_of, read_meanings
from tests.tiny import ROOT

OWN = """
from configs import openmoji_vq

def get_config():
    c = openmoji_vq.get_config()
    c.steps = 7  # mine
    # of nothing
    c.seed = 1
    c.data.update(size=64, flip=True)  # of two
    c.data.update(
        path="x",  # another one
    )
    c.disc = dict(  # of all
        ndf=1
    )
    return c
"""
CONFIGS = sorted({p.stem for p in (ROOT / "configs").glob("*.py")} - {"common", "finetune", "stored"})


def docstring(command: str) -> str:
    source = ROOT / "taming_jax" / f"{command}.py"
    source = source if source.exists() else ROOT / "taming_jax" / command / "__main__.py"
    return ast.get_docstring(ast.parse(source.read_text()))


EXAMPLES = [(module, *args) for command in COMMANDS for module, *args in examples_of(docstring(command))]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_flag_and_what_its_examples_use(command, run_here, capsys):
    with pytest.raises(SystemExit) as ended:
        run_here(f"taming_jax.{command}", "--help")
    assert not ended.value.code
    text = capsys.readouterr().out
    listed = re.findall(r"^  --(?:\[no\])?([\w-]+)", text, re.M)
    assert listed == [flag.name for flag in cli.own_flags()]
    examples = [args for module, *args in examples_of(docstring(command)) if module == f"taming_jax.{command}"]
    assert examples and {re.split(r"[=.]", arg)[0] for args in examples for arg in args if arg[:2] == "--"} <= {
        f"--{name}" for name in listed
    }
    assert all(f"python -m taming_jax.{command} {args[0]}" in text for args in examples)
    assert "Exit codes\n" in text and "show this help" not in text and "\033" not in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("example", EXAMPLES, ids=" ".join)
def test_examples_are_understood(example, run_here, monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "run", lambda main, operands="": seen.append(cli.parse(sys.argv, bool(operands))))
    run_here(*example)
    assert seen == [[arg for arg in example[1:] if not arg.startswith("-")]]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_help_shows_the_fields_of_the_config_that_is_given(run_here, capsys):
    with pytest.raises(SystemExit):
        run_here("taming_jax.train", "--config=imagenet_transformer:v5e-16", "--config.seed=7", "--help")
    text = capsys.readouterr().out
    assert re.search(r"^  seed=7 +the same one repeats a run", text, re.M)
    assert re.search(r"^  gpt.num_layers=48 +blocks of attention", text, re.M)
    assert "quantizer" not in text.partition("Fields of the config imagenet_transformer")[2]
    with pytest.raises(SystemExit) as ended:
        run_here("taming_jax.train", "--config=imagenet_transfomer", "--help")
    assert ended.value.code == 2 and "did you mean 'imagenet_transformer'" in capsys.readouterr().err


@pytest.mark.parametrize("name", CONFIGS)
def test_comments_say_what_every_field_means(name):
    meanings, fields = read_meanings(name), flat(config_files.load(name))
    groups = {field for field, value in fields.items() if isinstance(value, ConfigDict) and len(value)}
    assert not [field for field in set(fields) - groups if not meaning_of(field, meanings)]


def test_the_nearest_comment_counts(tmp_path):
    """One's own file, then what it builds on; a comment of a line with several fields means none of them."""
    (tmp_path / "own.py").write_text(OWN)
    meanings, ours = read_meanings(str(tmp_path / "own.py")), read_meanings("openmoji_vq")
    assert meanings["steps"] == "mine" and meanings["data.path"] == "another one" and meanings["disc"] == "of all"
    assert {name: text for name, text in meanings.items() if name not in ("steps", "data.path", "disc")} == {
        name: text for name, text in ours.items() if name not in ("steps", "data.path", "disc")
    }
    assert meaning_of("mesh.other.one", {"mesh": "all"}) == "all" and meaning_of("other", meanings) == ""
    with pytest.raises(UserError, match="no config of that name"):
        read_meanings("nothing")


def test_a_laptop_with_the_compiler_of_tpus_hears_nothing_of_it(vq_run):
    """As with the extra `aot`; and whoever has said which TPU there is, has said so."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_PLATFORMS", "TPU_"))}
    command = [sys.executable, "-m", "taming_jax", "check", str(vq_run)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.endswith("all is whole\n")


def test_a_command_without_its_words_says_so(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["taming", "check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("taming_jax", run_name="__main__")
    assert ended.value.code == 2 and "RUN is missing: taming check RUN ..., or" in capsys.readouterr().err
