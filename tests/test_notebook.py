"""The notebook for Colab, every cell, on a small trained run."""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


def test_notebook(prior_run, tmp_path):
    notebook = nbformat.read(ROOT / "launch" / "colab.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    values = dict(
        REPOSITORY="",
        WORKDIR=str(prior_run),
        CKPT="",
        CKPT_CONFIG="",
        OUT=str(tmp_path),
        CLASSES="cross",
        IMAGE="",
        SIZE="18x24",
        BATCH_SIZE=8,
    )
    assert set(re.findall(r"^(\w+) =", cell.source, re.MULTILINE)) == set(values)
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "launch")}}
    )
    client.execute()
    shown = {
        cell.id: [kind for output in cell.outputs for kind in output.get("data", {}) if kind.startswith("image/")]
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    assert shown == {
        "where": [],
        "install": [],
        "convert": [],
        "classes": ["image/png"],
        "half": ["image/png"] * 2,
        "large": ["image/png", "image/gif"],
    }
