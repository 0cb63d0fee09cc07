"""Run directories into published runs, and published runs into run directories."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict
from PIL import Image
from safetensors import SafetensorError

from taming_jax import checkpoint, completion, places, published
from taming_jax.console import say
from taming_jax.convert.checkpoints import check_place, write_runs
from taming_jax.errors import ArgumentError, UserError
from taming_jax.hub import address, card
from taming_jax.quality import record
from taming_jax.state import TrainState
from taming_jax.tasks import make_task

CARD, PICTURES = "README.md", "pictures"


class Run(NamedTuple):
    """What is published of a run directory.

    stages: first stages by the groups of the config. pictures: files. began: with the weights of which run, or ''.
    """

    config: ConfigDict
    state: TrainState
    stages: dict[str, tuple[ConfigDict, TrainState]]
    numbers: card.Told
    pictures: list[Path]
    began: str


def push(
    workdir: Path,
    to: str,
    dtype: str = "float32",
    licence: str | None = None,
    private: bool = False,
    update: bool = False,
) -> None:
    """Publishes the newest whole checkpoint of a run directory: in a new folder, or on the hub.

    to: the folder, or 'hf://user/name'. update: whether a repository that is there gets another commit. Raises
    UserError.
    """
    if not address.is_hub(to):
        for name, given in dict(private=private, update=update).items():
            if given:
                raise ArgumentError(f"{name}: it is for a repository on the hub, to={to} is a folder")
        out = Path(to)
        places.check_empty("to", out)
        place = next(path for path in out.absolute().parents if path.exists())
        run = read(workdir)
        with writing(to), tempfile.TemporaryDirectory(prefix=".publishing-", dir=place) as part:
            write(run, Path(part) / "run", out.name, dtype, licence)
            out.parent.mkdir(parents=True, exist_ok=True)
            (Path(part) / "run").replace(out)  # raises where it is not empty any more
        say(f"published in {out}")
        return
    repo, revision = address.parse(to)
    if revision is not None:
        raise ArgumentError(f"to={to}: a new version has no revision yet; leave @{revision} out")
    from huggingface_hub import HfApi

    api = HfApi(**address.client())
    with address.telling(to):  # before minutes of work
        me, exists = api.whoami()["name"], api.repo_exists(repo)
        if exists and not update:
            raise UserError(f"{to} is there already; --update adds a version, and leaves those before by their commits")
        if exists and private and not api.repo_info(repo).private:
            raise UserError(f"{to} is public, and --private makes new repositories alone: change it on its page first")
        held = set(api.list_repo_files(repo)) if exists else set()
    if held - {".gitattributes", CARD}:
        address.begin(to)  # what is no published run stays as it is
    run = read(workdir)
    with tempfile.TemporaryDirectory(prefix="taming_jax_") as part:
        folder = Path(part) / "run"
        with writing(part):
            write(run, folder, to, dtype, licence)
        with address.telling(to):
            api.create_repo(repo, private=private, exist_ok=update)
            # Files of the version before that this one does not have go.
            old = ["*.safetensors", "*/config.json", f"{PICTURES}/*", record.FILE]
            api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=f"Weights of step {run.state.step}",
                delete_patterns=old,
            )
    say(f"published by {me}: {to}, {api.endpoint}/{repo}")


@contextmanager
def writing(place: str) -> Iterator[None]:
    """Within, what the disk refuses is a UserError."""
    try:
        yield
    except (OSError, SafetensorError) as e:
        raise UserError(f"{place} cannot be written: {checkpoint.cause_of(e)}") from e


def read(workdir: Path) -> Run:
    """The newest whole checkpoint of a run directory, and what lies beside it. Raises UserError."""

    def load(step: int) -> tuple[ConfigDict, TrainState]:
        return completion.load_config(workdir, step)[0], checkpoint.load_nets(workdir, step)

    (config, state), step, _ = checkpoint.newest(workdir, load, checkpoint.required_steps(workdir))
    stages = {}
    for name in completion.stages_of(config):
        stage = config[name]
        found = completion.load_config(Path(stage.workdir), stage.step)[0]
        own = checkpoint.load_nets(Path(stage.workdir), stage.step)
        if stage.digest and checkpoint.digest(own.params["gen"]) != stage.digest:
            raise UserError(f"{stage.workdir} is not the first stage that {workdir} was trained on")
        stages[name] = found, own
    began = config.init_from if address.is_address(config.init_from) else Path(config.init_from).name
    return Run(config, state, stages, card.read_numbers(workdir, step), pictures_in(workdir, workdir), began)


def pictures_in(folder: Path, home: Path) -> list[Path]:
    """The PNGs and GIFs in a folder, as Pillow reads them; without links that lead out of `home`."""

    def is_picture(file: Path) -> bool:
        try:
            with Image.open(file, formats=("PNG", "GIF")):
                return True
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return False

    files = sorted(file for kind in ("png", "gif") for file in folder.glob(f"*.{kind}"))
    return [file for file in files if lies_in(home, file) and is_picture(file)]


def lies_in(home: Path, file: Path) -> bool:
    """Whether a file is there, and where its links lead is inside a folder."""
    return file.is_file() and file.resolve().is_relative_to(home.resolve())


def write(run: Run, out: Path, to: str, dtype: str, licence: str | None) -> None:
    """Writes the folder of a published run. to: by what it will be loaded, whose last part is the card's title."""
    config = run.config.copy_and_resolve_references()
    for name, stage in run.stages.items():
        config[name].digest = write_net(out / published.COPIES[name], *stage, dtype)
    write_net(out, config, run.state, dtype)
    for file in run.pictures:
        (out / PICTURES).mkdir(exist_ok=True)
        shutil.copyfile(file, out / PICTURES / file.name)
    if run.numbers.judged:
        (out / record.FILE).write_text(json.dumps(run.numbers.judged, indent=1) + "\n")
    asked = dict(license=licence, dtype=dtype, began=run.began)
    asked["size"] = sum(x.size for x in jax.tree.leaves(run.state.params[completion.NETS[config.task]]))
    pictures = [f"{PICTURES}/{file.name}" for file in run.pictures]
    text = card.write(to.split("/")[-1], to, config, int(run.state.step), run.numbers, pictures, **asked)
    (out / CARD).write_text(text)


def write_net(out: Path, config: ConfigDict, state: TrainState, dtype: str) -> str:
    """Writes the two files of a run, of the net that is used alone; -> the digest of its weights."""
    net = completion.NETS[config.task]
    tree = TrainState(state.step, {net: state.params[net]}, {}, {net: state.extra[net]}, {})
    tree = published.rounded({name: np.asarray(x) for name, x in checkpoint.by_name(tree).items()}, dtype)
    stored = json.loads(json.dumps(published.at_home(config.to_dict())))
    place = {"next_batch": 0, "optimizers": False, "summed": True}
    sums = {"config": checkpoint.sum_json(stored), "data": checkpoint.sum_json(place)}
    sums["state"], finite = checkpoint.sum_arrays(tree)
    if bad := [name for name, whole in finite.items() if not whole]:
        raise UserError(f"{bad[0]} holds numbers that are not finite, or that {dtype} cannot hold")
    described = {"step": int(state.step), "config": stored, "data": place, "sums": sums}
    published.write(out, described, tree, dtype)
    mega = sum(file.stat().st_size for file in out.iterdir() if file.is_file()) / 1e6
    say(f"{config.task} of step {state.step}: {len(tree)} arrays, {mega:.1f} MB")
    return checkpoint.digest(traverse_util.unflatten_dict(tree, sep="/")["params"][net])


def pull(source: str, workdir: Path) -> None:
    """Makes a run directory of a published run, by its folder or address. Raises UserError; all is compared first."""
    check_place(workdir)
    places.check_empty("workdir", workdir)
    folder = address.find(source, address.BESIDE)
    if not published.is_published(folder):
        lacks = f"it has no {published.CONFIG} of taming_jax" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{source} is no published run: {lacks}")
    place = Path(os.path.realpath(workdir))
    part = place.with_name(f"{place.name}.part")
    runs, config = {}, completion.load_config(folder)[0]
    for name in completion.stages_of(config):
        copy = published.COPIES[name]
        runs[part / copy] = read_net(folder / copy, config[name].digest)
        config[name].update(workdir=str(part / copy), origin=source)
    runs[part] = config, read_net(folder)[1]
    home = folder.parents[1] if address.is_hub(source) else folder  # the hub's cache is made of links
    beside = [file for file in (folder / CARD, folder / record.FILE) if lies_in(home, file)]
    with places.claimed(workdir):
        shutil.rmtree(part, ignore_errors=True)  # what an interrupted pull has left
        write_runs(runs, part)
        with writing(str(part)):
            for file in (*beside, *pictures_in(folder / PICTURES, home)):
                shutil.copyfile(file, part / file.name)
    with writing(str(workdir)):
        part.replace(place)  # raises where it is not empty any more
    say(f"pulled into {workdir}")


def read_net(folder: Path, digest: str = "") -> tuple[ConfigDict, TrainState]:
    """The config and the nets of a published run. Raises UserError where they do not fit each other or the digest."""
    config, step = completion.load_config(folder)
    state, net = checkpoint.load_nets(folder, step), completion.NETS[config.task]
    like = jax.eval_shape(make_task(config).init, jax.random.key(0))
    like = like.replace(params={net: like.params[net]}, opt={}, extra={net: like.extra[net]}, frozen={})
    if misfit := checkpoint.find_difference(state, like, f"in {folder}"):
        raise UserError(f"{folder} is no whole published run: {misfit}")
    found = checkpoint.by_name(state)  # which has no groups without arrays
    state = jax.tree.map_with_path(lambda where, _: found[checkpoint.name_of(where)], like)
    if digest and checkpoint.digest(state.params[net]) != digest:
        raise UserError(f"{folder} is not the first stage that {folder.parent} was trained on")
    return config, state
