"""The notebook for Colab, every cell, on a small trained run."""

import hashlib
import io
import os
import re
import sys
import types
import urllib.request
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.tiny import ROOT


def shown_by(name: str, values: dict) -> dict[str, list[str]]:
    """Runs a notebook of launch/ with values in its first cell; -> the kinds of pictures that each cell shows."""
    notebook = nbformat.read(ROOT / "launch" / name, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert set(re.findall(r"^(\w+) =", cell.source, re.MULTILINE)) == set(values)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    where = {"metadata": {"path": str(ROOT / "launch")}}
    alone = {**os.environ, "JAX_NUM_CPU_DEVICES": "1"}  # as people open it
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute(env=alone)
    return {
        cell.id: [kind for output in cell.outputs for kind in output.get("data", {}) if kind.startswith("image/")]
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


@pytest.mark.slow
def test_notebook(transformer_run, tmp_path):
    values = dict(
        REPOSITORY="",
        WORKDIR=str(transformer_run),
        CKPT="",
        CKPT_CONFIG="",
        OUT=str(tmp_path),
        CLASSES="cross",
        IMAGE="",
        SIZE="18x24",
        BATCH_SIZE=8,
        TRAIN_STEPS=3,
    )
    assert shown_by("colab.ipynb", values) == {
        "where": [],
        "install": [],
        "import": [],
        "convert": [],
        "classes": ["image/png"],
        "half": ["image/png"] * 2,
        "large": ["image/png", "image/gif"],
        "train": ["image/png"],
    }


@pytest.mark.slow
def test_the_method_on_a_picture_of_ones_own(vq_run, transformer_run, picture_folder):
    values = dict(TOKENIZER=str(vq_run), TRANSFORMER=str(transformer_run), PICTURE=str(picture_folder / "cross/0.png"))
    shown = shown_by("method.ipynb", values)
    assert [shown.pop(cell) for cell in ("where", "here", "window")] == [[], [], ["image/gif"]]
    assert len(shown) == 6 and all("image/png" in kinds for kinds in shown.values())


def test_the_project_comes_from_an_uploaded_file(tmp_path, monkeypatch):
    """Colab has nothing but the notebook; the project's ZIP file may have a folder around it, or none."""
    notebook = nbformat.read(ROOT / "launch" / "colab.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if cell.id == "install"]
    names = dict(REPOSITORY="") | dict.fromkeys(("WORKDIR", "CKPT", "CKPT_CONFIG", "OUT", "IMAGE"), "")
    monkeypatch.chdir(ROOT / "launch")
    exec(cell.source, names)
    with pytest.raises(AssertionError, match="REPOSITORY is empty"):
        names["fetch_project"](tmp_path / "none")

    uploads = types.SimpleNamespace(upload=lambda: {"project.zip": chosen})
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(files=uploads))
    for around in ("", "project-main/"):
        for wrong in (b"no archive", zipped("other.txt")):
            chosen = wrong
            with pytest.raises(AssertionError, match="no ZIP file of this project"):
                names["fetch_project"](tmp_path / f"home{len(around)}")
        chosen = zipped(f"{around}taming_jax/__init__.py")
        names["fetch_project"](home := tmp_path / f"home{len(around)}")
        assert (home / "taming_jax" / "__init__.py").exists()


def zipped(name: str) -> bytes:
    """A ZIP file with one empty file."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "")
    return content.getvalue()


def test_checkpoints_are_fetched_once_and_not_mixed_up(tmp_path, monkeypatch):
    """Addresses of one host may differ in their query alone; what is cut off is fetched anew."""
    notebook = nbformat.read(ROOT / "launch" / "colab.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if cell.id == "convert"]
    monkeypatch.chdir(tmp_path)
    names = dict(CKPT="", hashlib=hashlib, urllib=urllib, Path=Path)
    exec(cell.source, names)
    addresses = []
    for name in ("last.ckpt", "model.yaml"):
        (tmp_path / name).write_text(name)
        addresses.append((tmp_path / name).as_uri())
    files = [names["fetch"](address) for address in addresses]
    assert [Path(file).read_text() for file in files] == ["last.ckpt", "model.yaml"] and len(set(files)) == 2
    (tmp_path / "last.ckpt").unlink()
    assert names["fetch"](addresses[0]) == files[0]  # not again
    assert names["fetch"]("model.yaml") == str(tmp_path / "model.yaml")
