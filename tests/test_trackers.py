"""Who is told a run's numbers and pictures beside its own files."""

import json
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest

from taming_jax import completion, config_files, trackers
from taming_jax.errors import UserError
from taming_jax.fields import check_fields
from taming_jax.images import Sheet
from taming_jax.sampling.animation import Animation
from taming_jax.writer import Writer
from tests.tiny import changed


def told(tracker: str):
    return changed(config_files.load("openmoji_vq"), tracker=tracker)


@pytest.mark.parametrize(
    ("asked", "parsed"),
    [
        ("", {}),
        ("tensorboard", {"tensorboard": ""}),
        ("trackio, wandb:faces", {"trackio": "", "wandb": "faces"}),
        ("tensorboard,wandb:a:b", {"tensorboard": "", "wandb": "a:b"}),
    ],
)
def test_one_field_says_who(asked, parsed):
    check_fields(told(asked))
    assert trackers.parse(asked) == parsed


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("wanbd", "did you mean 'wandb'"),
        ("tensorboard:x", "tensorboard has no projects"),
        ("a\nb", "cannot be printed"),
    ],
)
def test_others_are_refused(asked, message):
    with pytest.raises(UserError, match=rf"^tracker=.*{message}"):
        check_fields(told(asked))


def test_the_key_of_older_runs_works():
    fields = config_files.load("openmoji_vq").to_dict()
    del fields["tracker"]
    for old, new in (({"wandb_project": "faces"}, "tensorboard,wandb:faces"), ({"wandb_project": ""}, "tensorboard")):
        assert completion.upgrade(completion.ConfigDict(fields | old)).tracker == new
    assert completion.upgrade(completion.ConfigDict(fields)).tracker == "tensorboard"


def test_a_missing_package_and_a_service_that_refuses_get_one_line(monkeypatch, tmp_path):
    for name in trackers.SERVICES:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=rf"^tracker='{name}' needs a package: pip install .*\[{name}\]"):
            Writer(tmp_path / "run", told(name))
    monkeypatch.undo()
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match=r"^tracker='wandb:a/b': .*project name 'a/b'") as refused:
        Writer(tmp_path / "run", told("wandb:a/b"))
    assert "\n" not in str(refused.value) and not (tmp_path / "run" / "events").exists()


def write(workdir: Path, tracker: str, step: int) -> None:
    with Writer(workdir, told(tracker), step=step - 1) as writer:
        writer.scalars(step, "train", {"loss": float(step)})
        writer.picture(step, "samples", Sheet(np.zeros((1, 2, 8, 8, 3), np.uint8)))
        writer.picture(step, "painting", Animation(np.zeros((8, 8, 3), np.uint8), np.arange(4).reshape(2, 2), 2))


def test_weights_and_biases_in_place_of_tensorboard(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(tmp_path / "run", "wandb:tests", 1)
    assert not (tmp_path / "run" / "events").exists()
    (media,) = (tmp_path / "run" / "wandb").glob("offline-run-*/files/media")
    sent = {file.suffix: file.read_bytes() for file in media.rglob("*.*")}
    assert sent[".png"] == (tmp_path / "run" / "samples.png").read_bytes()
    assert sent[".gif"] == (tmp_path / "run" / "painting.gif").read_bytes()
    assert (tmp_path / "run" / "wandb_id").read_text() in media.parents[1].name


def test_trackio_beside_tensorboard_and_a_run_that_goes_on(monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when the package is imported
    pytest.importorskip("trackio")
    for step in (1, 2):
        write(tmp_path / "run", "tensorboard,trackio:tests", step)
    assert any((tmp_path / "run" / "events").iterdir())
    (base,) = (tmp_path / "trackio").rglob("tests*.db")
    with sqlite3.connect(base) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    logged = [(run, step, json.loads(content)) for run, step, content in rows]
    losses = [(run, step, values["train/loss"]) for run, step, values in logged if "train/loss" in values]
    name = (tmp_path / "run" / "trackio_id").read_text()
    assert losses == [(name, 1, 1.0), (name, 2, 2.0)] and name.startswith("run-")
    kept = {file.suffix: file.read_bytes() for file in (tmp_path / "trackio").rglob("*.*") if file.is_file()}
    assert kept[".gif"] == (tmp_path / "run" / "painting.gif").read_bytes() and ".png" in kept
