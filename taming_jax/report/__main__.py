"""Reports runs: their last figures on the terminal, a page in HTML for each, and an index over several.

    python -m taming_jax.report runs/openmoji_vq runs/openmoji_transformer runs/openmoji_samples
    python -m taming_jax.report runs
    python -m taming_jax.report runs/* --out=pages

A run directory, a folder of samples, or a folder that holds some. The page of a run is its `report.html`: pictures over
the steps, curves, codes, evaluations, config, commands. Of several runs, `index.html` in the folder that holds them all
has them side by side. Each page is one file, which can be moved or sent, and needs no network. A page is written anew
each time, also while a run is being trained; a file of that name that is no such page stays. Nothing else is changed.
"""

import os
from pathlib import Path
from urllib.parse import quote

import jax
from absl import flags

from taming_jax import checkpoint, cli, values
from taming_jax.console import say
from taming_jax.errors import UserError
from taming_jax.report import page
from taming_jax.report.index import index_page
from taming_jax.report.lines import lines
from taming_jax.report.run import Run, find, read

PAGE, INDEX = "report.html", "index.html"


def main(*names: str) -> None:
    jax.config.update("jax_platforms", "cpu")  # the accelerator is the training's that may run beside this
    for name in names:
        values.path("run directory", name)
    given = [Path(name) for name in names]
    given = [place for place in given if not page.is_ours(place)]  # runs/* names the index of the last time too
    folders = [folder for place in given for folder in find(place)]
    runs = {folder.resolve(): read(folder) for folder in {folder.resolve(): folder for folder in folders}.values()}
    for folder in folders:
        print("\n".join(lines(runs[folder.resolve()])))
    if runs:
        write(runs, cli.folder("out"))


def write(runs: dict[Path, Run], out: Path | None) -> None:
    """Writes the pages of runs, by where they are, and the index of several; says where they are.

    Raises UserError, before anything is written, where other files are in their places.
    """
    top = Path(os.path.commonpath([folder.parent for folder in runs]))
    if out is None and len(runs) > 1 and top == Path(top.anchor):
        raise UserError("no folder holds all of these runs, so that the index has no place; name one by --out=FOLDER")
    homes = [run.folder if out is None else out / folder.relative_to(top) for folder, run in runs.items()]
    index = (checkpoint.from_here(top) if out is None else out) / INDEX if len(runs) > 1 else None
    for file in [*(home / PAGE for home in homes), *([index] if index else [])]:
        page.check_ours(file)
    for run, home in zip(runs.values(), homes, strict=True):
        page.write(home / PAGE, page.run_page(run, link(index, home) if index else None))
        say(f"page of {run.name}: {home / PAGE}")
    if index:
        page.write(index, index_page(list(runs.values()), [link(home / PAGE, index.parent) for home in homes]))
        say(f"all side by side: {index}")


def link(file: Path, folder: Path) -> str:
    """The address of a file on a page in a folder."""
    return quote(os.fsencode(os.path.relpath(file.resolve(), folder.resolve())))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "Folder for all pages, in place of the run directories; made if needed.")
    cli.run(main, operands="RUN")
