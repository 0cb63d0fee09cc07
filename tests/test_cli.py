"""Every command's mistakes."""

import pytest

from tests.tiny import run

MISTAKES = {
    "no config": (["train", "--workdir=x"], "--config is missing"),
    "no workdir": (["train", "--config=configs/openmoji_vq.py"], "--workdir is missing"),
    "config file": (["train", "--config=configs/nothing.py", "--workdir=x"], "configs/nothing.py"),
    "misspelt field": (
        ["train", "--config=configs/openmoji_vq.py", "--workdir=x", "--config.batch_sise=8"],
        "batch_size",
    ),
    "misspelt flag": (["train", "--config=configs/openmoji_vq.py", "--workdri=x"], "did you mean 'workdir'"),
    "bad value": (["train", "--config=configs/openmoji_vq.py", "--workdir=x", "--config.batch_size=many"], "many"),
    "sample of nothing": (["sample", "--workdir=/nowhere", "--out=x"], "/nowhere does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_on_the_command_line_gets_one_line(mistake):
    args, message = MISTAKES[mistake]
    done = run(*args)
    assert done.returncode == 2, done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert message in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flags", [[], ["--help"]])
def test_a_report_of_nothing_says_how_it_is_called(flags):
    done = run("report", *flags)
    assert done.returncode == 0, done.stderr
    assert "python -m taming_jax.report runs/" in done.stdout
