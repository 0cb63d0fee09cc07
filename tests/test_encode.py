"""Codes written once: training on them is training on the images, and writing them survives whatever happens."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from taming_jax import checkpoint, completion, data, sharding
from taming_jax.encoded import encode, open_codes, prepare
from taming_jax.errors import UserError
from taming_jax.loop import train
from taming_jax.second_stage import make_second_stage
from taming_jax.state import TrainState
from taming_jax.stopping import PREEMPTED
from taming_jax.tasks import transformer
from tests.tiny import (
    ROOT,
    change_stored,
    changed,
    finish,
    free_port,
    put,
    records,
    state_of,
    tiny_transformer,
    tiny_vq,
)

VIEWS = 80  # of some 38 images: several files


@pytest.fixture(scope="module")
def crops_run(vq_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vq_run`, as if its data were random crops and flips."""
    workdir = tmp_path_factory.mktemp("crops") / "vq"
    shutil.copytree(vq_run, workdir)
    change_stored(workdir, lambda config: config["data"].update(flip=True, random_crop=True))
    return workdir


@pytest.fixture(scope="module")
def line_run(annotated_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first stage of line art."""
    workdir = tmp_path_factory.mktemp("runs") / "line_vq"
    line = dict(input="line", model__out_ch=1, loss__perceptual_weight=0.0, disc__weight=0.0, steps=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taming_jax.loop.evaluate", lambda *_: {})
        train(changed(tiny_vq(annotated_folder), **line), workdir)
    return workdir


@pytest.fixture(scope="module")
def class_codes(vq_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("codes") / "class"
    write(tiny_transformer(vq_run), out)
    return out


@pytest.fixture(scope="module")
def many_codes(crops_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several files, written in one go."""
    out = tmp_path_factory.mktemp("codes") / "many"
    write(tiny_transformer(crops_run), out, VIEWS)
    return out


def write(config: ConfigDict, out: Path, views: int = 1) -> None:
    encode(completion.complete(config), out, views, batch_size=16)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def command(first_stage: Path, out: Path) -> list[str]:
    flags = f"--config=configs/openmoji_transformer.py --workdir={first_stage} --out={out} --views={VIEWS}"
    return [sys.executable, "-m", "taming_jax.encode", *flags.split()]


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["class", "image"])
def test_a_run_on_codes_is_the_run_on_images(
    condition, vq_run, line_run, annotated_folder, class_codes, tmp_path, monkeypatch
):
    """Over more than an epoch, with everything that chance does after reading, and resumed in between: bit for bit."""
    monkeypatch.setattr("taming_jax.loop.evaluate", lambda *_: {})
    used = dict(first_stage__used=tuple(range(4, 30)), cond__drop=0.2, pkeep=0.9, gpt__num_layers=1)
    config, out = changed(tiny_transformer(vq_run), **used, steps=6, eval_every=6, checkpoint_every=6), class_codes
    if condition == "image":
        config.cond.update(name="image", workdir=str(line_run))
        config.data.path, out = str(annotated_folder), tmp_path / "codes"
        write(config, out)
    train(config, tmp_path / "images")
    config.codes = str(out)
    for steps in (2, 6) if condition == "class" else (6,):
        config.steps = steps
        train(config, tmp_path / "codes_run")
    on_images, on_codes = (records(tmp_path / run, "train") for run in ("images", "codes_run"))
    assert [r["loss"] for r in on_codes] == [r["loss"] for r in on_images] and len(on_codes) == 6
    whole, other = state_of(tmp_path / "images"), state_of(tmp_path / "codes_run")
    for name, leaf in whole.items():
        np.testing.assert_array_equal(other[name], leaf, err_msg=name)


def test_a_record_is_a_view_that_follows_from_seed_image_and_number(crops_run, many_codes):
    config = completion.complete(tiny_transformer(crops_run))
    source = data.open_source(config.data, "train")
    config.data.class_names, config.codes = tuple(source.class_names), str(many_codes)
    records, augment = open_codes(config), data.make_augment(config.data)
    assert len(records) == VIEWS * len(source) and records.views == VIEWS
    chosen = [(image, view) for image in (0, 30) for view in (0, 1, 2, 79)]
    pictures = [augment(source[i], np.random.default_rng((config.seed, i, v))) for i, v in chosen]
    batch = {name: np.stack([picture[name] for picture in pictures]) for name in pictures[0]}
    frozen = jax.device_put(transformer.make_task(config).load_frozen())
    with jax.set_mesh(sharding.make_mesh(config.mesh)):
        cond, grid = jax.jit(make_second_stage(config).read)(frozen, batch)
    found = [records[i * VIEWS + v] for i, v in chosen]
    np.testing.assert_array_equal(np.stack([record["codes"] for record in found]), grid)
    np.testing.assert_array_equal(np.stack([record["cond"] for record in found]), cond)
    assert found[0]["codes"].dtype == np.int32 and len({record["codes"].tobytes() for record in found}) > 4


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_killed_goes_on_to_the_same_bytes(number, crops_run, many_codes, tmp_path):
    out, names = tmp_path / "codes", sorted(many_codes.glob("*.array_record"))
    assert len(names) > 2
    process = subprocess.Popen(command(crops_run, out), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (out / names[0].name).exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)
    process.send_signal(number)
    printed, _ = process.communicate()
    assert process.returncode == (PREEMPTED if number == signal.SIGTERM else -number), printed
    assert not (out / names[-1].name).exists()
    kept = (out / names[0].name).stat().st_mtime_ns
    again = subprocess.run(command(crops_run, out), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and f"{len(names)} files, 1 are there" in again.stdout, again.stderr
    assert (out / names[0].name).stat().st_mtime_ns == kept
    assert contents(out) == contents(many_codes)
    write(tiny_transformer(crops_run), out, VIEWS)
    assert contents(out) == contents(many_codes)


@pytest.mark.slow
def test_two_processes_write_what_one_does(crops_run, many_codes, tmp_path):
    out, port = tmp_path / "codes", free_port()
    processes = [
        subprocess.Popen(
            [
                *command(crops_run, out),
                f"--coordinator_address=127.0.0.1:{port}",
                "--num_processes=2",
                f"--process_id={i}",
            ],
            cwd=ROOT,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "4"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    first, second = finish(processes)
    assert "to train on them" in first and "image" not in second  # process 0 alone speaks
    assert contents(out) == contents(many_codes)


@pytest.mark.slow
def test_a_first_stage_and_its_codes_may_be_moved(vq_run, class_codes, tmp_path, capfd):
    shutil.copytree(vq_run, tmp_path / "moved")
    shutil.copytree(class_codes, tmp_path / "codes")
    config = changed(tiny_transformer(tmp_path / "moved"), codes=str(tmp_path / "codes"), steps=1, gpt__num_layers=1)
    assert train(config, tmp_path / "run")["nll"] > 0
    printed = capfd.readouterr().out
    assert "records of codes, 1 of each image, to train on" in printed
    before = contents(tmp_path / "codes")
    write(tiny_transformer(tmp_path / "moved"), tmp_path / "codes")
    assert "these codes are already written" in capfd.readouterr().out and contents(tmp_path / "codes") == before


def other_weights(folder: Path) -> None:
    stated = json.loads((folder / "codes.json").read_text())
    stated["made_of"]["first_stage"]["codebook"] = "0"
    (folder / "codes.json").write_text(json.dumps(stated))


DAMAGES = {
    "weights of another run": (other_weights, {}, "first_stage.codebook '0' -> "),
    "another step": (None, dict(first_stage__step=2), "first_stage.step 4 -> 2"),
    "another condition": (None, dict(cond__name="none"), "cond.name 'class' -> 'none'"),
    "another folder": (lambda folder: (folder / "codes.json").unlink(), {}, "there is no codes.json"),
    "no JSON": (lambda folder: (folder / "codes.json").write_text("{"), {}, "codes.json cannot be read"),
    "a lost file": (lambda folder: next(folder.glob("*record")).unlink(), {}, "1 files are missing"),
    "a damaged file": (lambda folder: os.truncate(next(folder.glob("*record")), 1000), {}, "cannot be read"),
}


ROW = [["codes", "|u1", [4, 16]], ["cond", "|u1", [1]]]  # of as many bytes
ODD = [  # field of `codes.json`, what it is, what is said
    ("", [], "made_of is no group"),
    ("", None, "made_of is no group"),
    ("row", ROW, "row .* -> "),
    ("row", ..., "row None -> "),
    ("records", "a", "records='a': it is a whole number"),
    ("records", 36, "records instead of 36"),
    ("records", 10**12, "records_per_file=1024: there would be more than 512 files"),
    ("records_per_file", 0, "records_per_file=0: it must be at least 1"),
    ("records_per_file", 1, "files are missing"),
    ("views", ..., "views=None: it is a whole number"),
    ("views", 2, "are not views=2 of each image"),
    ("seed", -1, "seed=-1: it must be at least 0"),
    ("made_of.cond", ..., "made_of.cond is no group"),
    ("made_of.cond", ["class"], "made_of.cond is no group"),
    ("made_of.cond.name", 5, "made_of.cond.name=5: it is a text"),
    ("made_of.cond.name", "caption", "made_of.cond.vocabulary=None: it is a list"),
    ("made_of.data", 5, "made_of.data is no group"),
    ("made_of.data", {}, "data.flip None -> False"),
]


def test_a_statement_that_is_none_gets_one_line(vq_run, class_codes, tmp_path):
    """When codes are read, and when they are written."""
    config = completion.complete(tiny_transformer(vq_run))
    source = data.open_source(config.data, "train")
    config.data.class_names, config.codes = tuple(source.class_names), str(tmp_path / "codes")
    shutil.copytree(class_codes, tmp_path / "codes")
    file = tmp_path / "codes" / "codes.json"
    whole = json.loads(file.read_text())
    odd = [(json.dumps(put(whole, field, value)), message) for field, value, message in ODD]
    odd += [("[" * 100_000, "cannot be read"), (json.dumps({**whole, "a.b": 1}), "cannot be read")]
    for text, message in odd:
        file.write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            open_codes(config)
        assert "\n" not in str(caught.value) and str(tmp_path / "codes") in str(caught.value), text[:200]
        with pytest.raises(UserError, match=r"cannot be read|were made otherwise"):
            prepare(tmp_path / "codes", whole)
    file.write_text(json.dumps(whole))
    assert len(open_codes(config)) == whole["records"]


def test_codes_know_the_weights_of_their_first_stage(vq_run, class_codes, tmp_path):
    """All of them; older codes know its codebook alone."""
    found, step, params = completion.load_run(vq_run)
    params["encoder"] = jax.tree.map(lambda x: x + 1, params["encoder"])
    with checkpoint.open_manager(tmp_path / "vq") as manager:
        checkpoint.save(manager, TrainState(np.int32(step), {"gen": params}, {}, {"gen": {}}, {}), step, found)
    config = completion.complete(tiny_transformer(tmp_path / "vq"))
    source = data.open_source(config.data, "train")
    shutil.copytree(class_codes, tmp_path / "codes")
    config.data.class_names, config.codes = tuple(source.class_names), str(tmp_path / "codes")
    with pytest.raises(UserError, match=r"first_stage.digest '.*' -> "):
        open_codes(config)
    file = tmp_path / "codes" / "codes.json"
    stated = json.loads(file.read_text())
    del stated["made_of"]["first_stage"]["digest"], stated["made_of"]["first_stage"]["codes"]
    file.write_text(json.dumps(stated))
    assert len(open_codes(config)) == stated["records"]
    prepare(tmp_path / "codes", json.loads((class_codes / "codes.json").read_text()))


@pytest.mark.parametrize("damage", DAMAGES)
def test_codes_that_do_not_belong_to_the_config_are_refused(damage, vq_run, class_codes, tmp_path):
    harm, fields, message = DAMAGES[damage]
    shutil.copytree(class_codes, tmp_path / "codes")
    if harm is not None:
        harm(tmp_path / "codes")
    with pytest.raises(UserError, match=message) as caught:
        train(changed(tiny_transformer(vq_run), codes=str(tmp_path / "codes"), **fields), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_codes_of_other_data_are_refused(vq_run, crops_run, class_codes, picture_folder, tmp_path):
    shutil.copytree(picture_folder, tmp_path / "pictures")
    (tmp_path / "pictures" / "circle").rename(tmp_path / "pictures" / "disc")
    for first_stage, fields, message in (
        (vq_run, dict(data__path=str(tmp_path / "pictures")), "data.class_names .*'circle'.* -> .*'disc'"),
        (crops_run, {}, "data.flip False -> True, data.random_crop False -> True"),
    ):
        with pytest.raises(UserError, match=message):
            train(changed(tiny_transformer(first_stage), codes=str(class_codes), **fields), tmp_path / "run")


def test_codes_are_not_written_over_anything_else(vq_run, crops_run, class_codes, tmp_path):
    before = contents(class_codes)
    for config, out, views, message in (
        (tiny_transformer(vq_run), class_codes, 2, "views=2: .* all are the same"),
        (
            tiny_transformer(crops_run),
            class_codes,
            2,
            "made otherwise: made_of.data.flip .* views 1 -> 2; name another folder",
        ),
        (changed(tiny_transformer(vq_run), seed=1), class_codes, 1, "made otherwise: seed 0 -> 1; name another folder"),
        (tiny_transformer(vq_run), vq_run, 1, "is there and holds no codes"),
    ):
        with pytest.raises(UserError, match=message):
            write(config, out, views)
    assert contents(class_codes) == before and not (vq_run / "codes.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/openmoji_vq.py"], "--config is for task 'vqgan'"),
        (["--config=configs/openmoji_transformer.py", "--workdir=/nowhere"], "run directory /nowhere does not exist"),
    ],
)
def test_a_mistake_gets_one_line(flags, message, type_here):
    done = type_here("encode", *flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert message in line
