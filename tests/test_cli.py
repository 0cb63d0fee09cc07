"""Every command's mistakes."""

import errno
import json
import re
import shutil
import subprocess
import sys

import jax
import pytest

from taming_jax import cli, completion, config_files, console
from taming_jax.errors import ArgumentError, UserError
from taming_jax.report.lines import lines as report_lines
from taming_jax.report.run import read as read_run
from taming_jax.train import check_weights
from tests.tiny import ROOT

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
    "digits": (["train", "--config=openmoji_vq", f"--config.seed={'9' * 5000}"], r"9\.\.\. Exceeds the limit"),
    "bucket": (["train", "--config=openmoji_vq", "--workdir=gs://bucket/x"], "--workdir='gs://bucket/x': .*gcsfuse"),
    "sample of nothing": (["sample", "--workdir=/nowhere", "--out=x"], "/nowhere does not exist"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_on_the_command_line_gets_one_line(mistake, type_here):
    args, message = MISTAKES[mistake]
    done = type_here(*args)
    assert done.returncode == 2, done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert re.search(message, line) and len(line) < 600
    assert "Traceback" not in done.stderr


WAYS_TO_END = {
    "its own line": (ArgumentError("out is wrong"), "error: --out is wrong"),
    "no trace of lines": (UserError("one\nand two"), "error: one and two"),
    "full disk": (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "error: /x/y: No space left on device"),
    "system": (OSError("odd"), "error: odd"),
    "memory": (MemoryError(), "error: out of memory"),
    "device": (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: of 3 bytes"), "error: out of memory"),
}


@pytest.mark.parametrize("way", WAYS_TO_END)
def test_what_the_user_or_the_system_is_the_reason_of_gets_one_line(way, capsys):
    raised, message = WAYS_TO_END[way]
    with pytest.raises(SystemExit) as ended, cli.one_line():
        raise raised
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


@pytest.mark.parametrize("raised", [ValueError("x"), KeyError("x"), jax.errors.JaxRuntimeError("INTERNAL: x")])
def test_a_programming_error_keeps_its_trace(raised):
    with pytest.raises(type(raised)), cli.one_line():
        raise raised


def test_who_reads_a_part_of_the_output_gets_no_complaint(vq_run):
    command = f"{sys.executable} -m taming_jax.report {' '.join([str(vq_run)] * 2000)} | head -n 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout == f"{vq_run}\n" and done.stderr == ""


def test_a_reader_that_is_gone_does_not_end_what_it_reads():
    """As tee, which Ctrl-C ends before the run that has a checkpoint to save."""
    code = "import sys; from taming_jax.console import Lasting; sys.stdout = Lasting(sys.stdout)\n"
    code += "for i in range(100_000): print(i, flush=True)\nprint('done', file=sys.stderr)"
    done = subprocess.run(
        f'{sys.executable} -c "{code}" | head -n 1', shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "0\n" and done.stderr == "done\n"


def test_bars_are_for_terminals_and_logs_have_lines(monkeypatch, capsys):
    assert list(console.bar(range(3), "scoring", unit="batch")) == [0, 1, 2]
    assert capsys.readouterr().err == "", "it took no minute"
    monkeypatch.setattr(console, "MINUTE", 1e-9)
    assert list(console.bar(range(3), "scoring", unit="batch")) == [0, 1, 2]
    with console.bar(desc="fetching", total=None, unit="B", unit_scale=True, leave=False) as shown:
        shown.update(2000)
    list(console.bar(range(3), "quiet", disable=True))
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(r"scoring: \d of 3, .*batch/s, [\d:]+ so far, [\d:?]+ left$", line) for line in lines[:-1])
    assert len(lines) > 2 and lines[-1].startswith("fetching: 2.00k of ?, ") and lines[-1].endswith(" so far")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    list(console.bar(range(3), "scoring"))
    assert "\rscoring: 100%" in capsys.readouterr().err


def test_a_report_passes_over_what_is_no_record(tmp_path):
    record = {"step": 1, "split": "train", "steps_per_second": 2.0, "seconds": 60.0}
    odd = [record | {"seconds": x} for x in (float("nan"), float("inf"), 10**400, True, None, [])]
    last = {
        "step": 1,
        "split": "validation",
        "psnr": "high",
        "l1": 0.5,
        "l2": float("nan"),
        "lpips": 10**400,
        "mse": -(10**400),
    }
    lines = [json.dumps(x) for x in (record, [1], 3, {"step": 1}, *odd, last)]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join([*lines, "{", "[" * 100_000]).encode() + b"\n\xff")
    assert [line.split() for line in report_lines(read_run(tmp_path))[1:]] == [
        ["l1", "0.5"],
        ["training", "1:00"],
        ["steps", "per", "second", "2", "to", "2"],
    ]


def test_the_config_of_a_run_does_not_begin_again_in_another(vq_run, tmp_path):
    """It would begin without the run's weights. A copy of the file that reads it, or a config upon it, is the same."""
    shutil.copy(ROOT / "configs" / "stored.py", tmp_path / "mystored.py")
    upon = "from configs import stored\ndef get_config(run):\n    c = stored.get_config(run)\n    return c\n"
    (tmp_path / "upon.py").write_text(upon)
    for name in ("stored", tmp_path / "mystored.py", tmp_path / "upon.py"):
        config = config_files.load(f"{name}:{vq_run}")
        assert config.run == str(vq_run) and "run" not in completion.complete(config)
        with pytest.raises(UserError, match=f"cp -r {vq_run} {tmp_path / 'other'}"):
            check_weights(config.run, tmp_path / "other")
        check_weights(config.run, vq_run)
    check_weights(config_files.load("openmoji_vq").get("run"), tmp_path / "other")
