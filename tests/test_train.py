"""The command lines, end to end: both stages, resuming, being killed, sampling, and every user's mistake."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from taming_jax import checkpoint, conditions, data, permute, sharding
from taming_jax import sample as sample_module
from taming_jax.conditions import fit, parse_classes, parse_size, read_given
from taming_jax.data import layouts
from taming_jax.data.transforms import decode
from taming_jax.errors import UserError
from taming_jax.sample import load_config, sample
from taming_jax.tasks import prior, vqgan
from taming_jax.train import train
from tests.conftest import changed, tiny_prior, tiny_vq

ROOT = Path(__file__).parents[1]


def run(module: str, *args: str) -> subprocess.CompletedProcess:
    """A command as a user types it."""
    command = [sys.executable, "-m", f"taming_jax.{module}", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def state_of(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint by its path."""
    step = checkpoint.steps(workdir)[-1]
    with checkpoint.ocp.PyTreeCheckpointer() as reader:
        path = workdir.absolute() / "checkpoints" / str(step) / "state"
        shapes = reader.metadata(path).item_metadata.tree
        numpy = jax.tree.map(lambda _: checkpoint.ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        tree = reader.restore(path, restore_args=numpy)
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def records(workdir: Path, split: str) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["split"] == split]


def test_first_stage_leaves_a_directory_that_explains_itself(vq_run):
    config, step = checkpoint.load_config(vq_run)
    assert step == 4 and config.data.class_names == ("circle", "cross", "square")
    assert config.model.ch_mult == (1, 1)
    (last,) = records(vq_run, "validation")
    assert {"psnr", "lpips", "code_use", "code_perplexity"} <= set(last)
    assert 0 < last["code_use"] <= 1 and 1 <= last["code_perplexity"] <= 32
    assert [r["step"] for r in records(vq_run, "train")] == [1, 2, 3, 4]
    with Image.open(vq_run / "reconstructions.png") as picture:
        assert picture.width > picture.height > 96
    assert "conv_out" in (vq_run / "parameters.txt").read_text()


def test_events_hold_scalars_pictures_and_code_histograms(vq_run):
    events = EventAccumulator(str(vq_run / "events"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "validation/psnr"} <= set(tags["scalars"])
    assert tags["images"] == ["reconstructions"]
    (histogram,) = events.Histograms("codes")
    assert histogram.histogram_value.num == sum(histogram.histogram_value.bucket) > 0


def test_second_stage_takes_data_and_codes_from_the_first(vq_run, prior_run):
    config, _ = checkpoint.load_config(prior_run)
    first, step = checkpoint.load_config(vq_run)
    assert config.first_stage.step == step and config.first_stage.config.quantizer == first.quantizer
    assert config.data.path == first.data.path and config.data.size == 16
    (last,) = records(prior_run, "validation")
    assert 0 < last["code_entropy"] < np.log(32) and 0 < last["nll"] < 2 * np.log(32)
    assert (prior_run / "samples.png").exists()


def test_resumed_equals_undisturbed(picture_folder, vq_run, tmp_path):
    """Stopped after two steps and begun again by the same config: bit for bit the state of four in one go."""
    config = tiny_vq(picture_folder)
    config.steps = 2
    train(config, tmp_path)
    config.steps = 4
    train(config, tmp_path)
    resumed, whole = state_of(tmp_path), state_of(vq_run)
    assert set(resumed) == set(whole) and len(whole) > 100
    for name, leaf in whole.items():
        np.testing.assert_array_equal(resumed[name], leaf, err_msg=name)


def test_a_finished_run_is_left_alone(vq_run, picture_folder, capfd):
    before = {p: p.stat().st_mtime_ns for p in vq_run.rglob("*")}
    train(tiny_vq(picture_folder), vq_run)
    assert "is finished at step 4" in capfd.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in vq_run.rglob("*")} == before


@pytest.mark.parametrize("lost", ["state", pytest.param(".", marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_passed_over(lost, picture_folder, vq_run, tmp_path, capfd):
    shutil.copytree(vq_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4" / lost)
    (tmp_path / "run" / "checkpoints" / "4").mkdir(exist_ok=True)
    config = tiny_vq(picture_folder)
    config.steps = 5
    train(config, tmp_path / "run")
    printed = capfd.readouterr().out
    assert "checkpoint 4 cannot be read and is passed over" in printed and "starting at step 2" in printed
    assert checkpoint.steps(tmp_path / "run")[-1] == 5
    assert list((tmp_path / "run" / "damaged").glob("4-*"))  # moved, not lost


def test_a_changed_config_is_said(picture_folder, vq_run, tmp_path, capfd):
    shutil.copytree(vq_run, tmp_path / "run")
    config = tiny_vq(picture_folder)
    config.steps = 5
    config.optim.learning_rate = 5e-4
    train(config, tmp_path / "run")
    printed = capfd.readouterr().out
    assert "optim.learning_rate 0.001 -> 0.0005" in printed and "steps 4 -> 5" in printed


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(picture_folder, tmp_path):
    config = tiny_vq(picture_folder)
    config.optim.update(learning_rate=1e30, clip_norm=0.0)
    with pytest.raises(UserError, match=r"the loss is .* and the norm of the weights (nan|inf) at step \d+"):
        train(config, tmp_path)
    assert checkpoint.steps(tmp_path) == []


def start_training(workdir: Path, folder: Path, *more: str) -> tuple[subprocess.Popen, int]:
    """A long run of a tiny first stage in a process of its own, and the first step that it has printed."""
    small = "data.name=folder data.size=16 model.ch_mult=(1,1) model.z_channels=32 batch_size=8"
    late = "steps=100000 eval_every=100000 loss.perceptual_start=100000 disc.start=100000 disc.gen_start=100000"
    flags = [f"--config.{setting}" for setting in f"{small} {late} log_every=1 data.path={folder}".split()]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "taming_jax.train",
            "--config=configs/openmoji_vq.py",
            f"--workdir={workdir}",
            *flags,
            *more,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith("step "):
            return process, int(line.split()[1].split("/")[0])
    raise AssertionError(f"the run ended with {process.wait()} before its first step")


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 2), (signal.SIGTERM, 0)])
def test_ctrl_c_saves_and_says_how_to_go_on(number, workers, picture_folder, tmp_path):
    process, _ = start_training(tmp_path, picture_folder, f"--config.data.workers={workers}")
    os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches the workers too
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else 75)
    assert "Traceback" not in printed
    (step,) = re.findall(r"stopped at step (\d+), checkpoint saved; the same command goes on from there", printed)
    assert checkpoint.steps(tmp_path) == [int(step)]
    if number == signal.SIGINT:
        again, first = start_training(tmp_path, picture_folder)
        again.kill()
        assert first == int(step) + 1


def test_a_killed_run_goes_on_from_its_last_checkpoint(picture_folder, tmp_path):
    process, _ = start_training(tmp_path, picture_folder, "--config.checkpoint_every=3")
    for line in process.stdout:
        if len(checkpoint.steps(tmp_path)) > 1 and line.startswith("step "):
            break
    process.kill()
    process.wait()
    saved = checkpoint.steps(tmp_path)
    again, first = start_training(tmp_path, picture_folder)
    again.kill()
    assert first == saved[-1] + 1 and len(saved) > 1


def test_profile_is_written(vq_run):
    assert list(vq_run.rglob("*.xplane.pb"))


def test_evaluate_repeats_the_numbers_of_training(vq_run, tmp_path):
    shutil.copytree(vq_run, tmp_path / "run")
    done = run("evaluate", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    first, second = records(tmp_path / "run", "validation")
    assert first.keys() == second.keys()
    for name in first:
        if name != "split":
            np.testing.assert_allclose(first[name], second[name], rtol=1e-4, err_msg=name)


VARIANTS = {
    "unconditional, spiral, corrupted, remapped": dict(
        cond__name="none", order="spiral_out", pkeep=0.9, first_stage__used=tuple(range(4, 30)), cond__sos=3
    ),
    "on another picture's codes": dict(cond__name="image", gpt__n_unmasked=64),
    "on objects": dict(
        cond__name="objects", cond__layout__min_objects=1, cond__layout__max_objects=2, cond__layout__num_tokens=64
    ),
    "on coordinates, with a canvas": dict(
        cond__name="coordinates", cond__down=2, cond__levels=16, cond__drop=0.2, sample__guidance=2.0, canvas=(16, 20)
    ),
}


def wandb_records(workdir: Path) -> list:
    """What an offline run of Weights & Biases has written: records of its protocol in a LevelDB log."""
    (file,) = (workdir / "wandb").glob("offline-run-*/*.wandb")
    content, place, parts, records = file.read_bytes(), 7, b"", []  # after the file's own header
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])  # after a checksum
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(parts))
            parts = b""
    return records


def check_followed(workdir: Path) -> None:
    """Scalars, grids, animation and config of a run are with Weights & Biases, and the animation in the events."""
    written = wandb_records(workdir)
    config = {update.key: json.loads(update.value_json) for r in written for update in r.run.config.update}
    assert config["task"] == "prior" and config["gpt"]["num_layers"] == 2
    logged = {}
    for record in written:
        for item in record.history.item:
            logged["/".join(item.nested_key)] = json.loads(item.value_json)
    assert logged["validation/nll"] == pytest.approx(records(workdir, "validation")[-1]["nll"], rel=1e-6)
    assert logged["samples/_type"] == "image-file" and logged["painting/_type"] == "video-file"
    (media,) = (workdir / "wandb").glob(f"offline-run-*/files/{logged['painting/path']}")
    assert media.read_bytes() == (workdir / "painting.gif").read_bytes()
    events = EventAccumulator(str(workdir / "events"))
    events.Reload()
    assert events.Images("painting")[-1].encoded_image_string == media.read_bytes()


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=pytest.mark.slow) if "canvas" in name or "objects" in name else name
        for name in VARIANTS
    ],
)
def test_every_condition_trains_and_samples(variant, vq_run, picture_folder, annotated_folder, tmp_path, monkeypatch):
    config = changed(tiny_prior(vq_run), **VARIANTS[variant])
    if config.cond.name == "objects":
        config.data.path = str(annotated_folder)
    if config.cond.name == "image":
        config.cond.workdir = str(vq_run)
    config.update(steps=2, eval_every=2)
    if any(config.canvas):
        monkeypatch.setenv("WANDB_MODE", "offline")
        config.wandb_project = "tests"
    result = train(config, tmp_path / "run")
    assert 0 < result["nll"] < 2 * np.log(32)
    if any(config.canvas):
        check_followed(tmp_path / "run")
    args = f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--num_samples=2", "--batch_size=8"
    done = run("sample", *args)
    assert done.returncode == 0, done.stderr
    rows = 8 if config.cond.name in ("image", "objects") else 1
    pictures = sorted((tmp_path / "out").glob("condition_*/0*.png"))
    assert len(pictures) == 2 * rows
    with Image.open(pictures[-1]) as picture:  # coordinates are those of a whole picture
        assert picture.size == ((18, 18) if config.cond.name == "coordinates" else (16, 16))
    if config.cond.name == "image":
        files = sorted((picture_folder / "cross").glob("*.png"))[:2]
        asked = f"--condition={files[0]},{files[1]}", "--size=16x24", f"--out={tmp_path / 'asked'}"
        done = run("sample", *args[:1], *args[2:], *asked)
        assert done.returncode == 0, done.stderr
        with Image.open(tmp_path / "asked/condition_001/condition.png") as seen, Image.open(files[1]) as file:
            file = Image.fromarray(fit({"image": decode(file), "label": 0}, (16, 24))["image"])
            assert seen.size == (24, 16) and seen.tobytes() == file.tobytes()
        assert len(list((tmp_path / "asked").glob("condition_*/0*.png"))) == 4
    if config.cond.name == "objects":
        scene = [{"category": "circle", "box": [0, 0.2, 0.5, 1]}, {"category": 1, "box": [0.5, 0, 1, 1]}]
        (tmp_path / "scene.json").write_text(json.dumps(scene))
        done = run("sample", args[0], *args[2:], f"--out={tmp_path / 'asked'}", f"--layout={tmp_path / 'scene.json'}")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "asked/condition_000/condition.png").exists()
        for name, of in (("wide", [f"--layout={tmp_path / 'scene.json'}"]), ("held", ["--num_conditions=2"])):
            done = run("sample", args[0], *args[2:], *of, f"--out={tmp_path / name}", "--size=16x24")
            assert done.returncode == 0, done.stderr
            for file in ("00001", "condition"):
                with Image.open(tmp_path / name / f"condition_000/{file}.png") as picture:
                    assert picture.size == (24, 16)
        done = run("evaluate", args[0], f"--data_path={annotated_folder}")
        assert done.returncode == 0, done.stderr


def test_codes_come_back_in_their_places(vq_run, tmp_path):
    """Order and remapping are undone before decoding: of a transformer that says t at step t."""
    config = changed(tiny_prior(vq_run), order="spiral_in", first_stage__used=tuple(range(31, -1, -1)))
    config = prior.complete(config, None)
    order = permute.ORDERS["spiral_in"](8, 8)
    said = np.arange(64) % 32
    seen = {}

    def sample_full(decode, cache, prefix, *options):
        return jnp.asarray(said[None].repeat(len(prefix), 0))

    class Decoder:
        def apply(self, variables, ids, method):
            seen["grid"] = np.asarray(ids)
            return jnp.zeros((len(ids), 16, 16, 3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior.sampling, "sample_full", sample_full)
        patch.setattr(prior.vqgan, "make_model", lambda first: Decoder())
        with jax.set_mesh(sharding.make_mesh(config.mesh)):
            prior.sample(config, {}, {}, jnp.zeros((2, 1), jnp.int32), None)
    np.testing.assert_array_equal(seen["grid"][0].ravel()[order], 31 - said)


def test_sample_command_writes_what_made_it_and_overwrites_nothing(prior_run, tmp_path):
    args = (f"--workdir={prior_run}", f"--out={tmp_path}", "--num_samples=3", "--batch_size=8", "--seed=3")
    done = run("sample", *args)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.glob("class_*")) == ["class_000", "class_001", "class_002"]
    with Image.open(tmp_path / "class_001" / "00002.png") as picture:
        assert picture.size == (16, 16) and picture.text["seed"] == "3" and picture.text["class"] == "cross"
    before = (tmp_path / "samples.png").read_bytes()
    assert "already painted" in run("sample", *args).stdout
    refused = run("sample", *args, "--temperature=0.5")
    assert refused.returncode == 2 and "samples made with other options" in refused.stderr
    assert (tmp_path / "samples.png").read_bytes() == before


def test_a_large_image_around_a_given_part(prior_run, picture_folder, tmp_path):
    """The command as it is typed; how it is computed is in tests/test_windows.py."""
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    with Image.open(picture_folder / "square" / "3.png") as picture:
        picture.resize((32, 20)).save(photo)
    keep = np.zeros((20, 32), np.uint8)
    keep[4:12, 6:21] = 255
    Image.fromarray(keep).save(mask)
    out = tmp_path / "out"
    args = (f"--workdir={prior_run}", f"--out={out}", "--num_samples=2", "--batch_size=8", "--classes=1,2", "--npz")
    done = run("sample", *args, "--size=20x32", "--stride=2", f"--image={photo}", f"--keep={mask}", "--animate=gif")
    assert done.returncode == 0, done.stderr
    pictures = sorted(out.glob("class_*/0*.png"))
    with Image.open(pictures[2]) as picture:
        assert len(pictures) == 4 and picture.size == (32, 20) and picture.text["keep"] == str(mask)
        assert (picture.text["label"], picture.text["index"], picture.text["tile"]) == ("2", "0", "64")
    with Image.open(out / "class_002/condition.png") as shown, Image.open(photo) as whole:
        keep[:, 20] = 0  # half a code does not stay
        stays = np.where((keep > 0)[..., None], np.asarray(whole), 160)
        np.testing.assert_array_equal(np.asarray(shown), stays)
    with np.load(out / "samples.npz") as stored:
        painted, labels = stored["arr_0"].astype(int), stored["arr_1"]
    assert painted.shape == (4, 20, 32, 3) and labels.tolist() == [1, 1, 2, 2]
    with Image.open(out / "class_001" / "00000.gif") as painting:
        painting.seek(painting.n_frames - 1)
        last = np.asarray(painting.convert("RGB").resize((32, 20), Image.Resampling.BOX)).astype(int)
    assert np.abs(last - painted[0]).mean() < 8  # in 256 colours
    # What is stopped goes on with what is missing.
    pictures[2].unlink()
    before = [p.stat().st_mtime_ns for p in pictures if p.exists()]
    done = run("sample", *args, "--size=20x32", "--stride=2", f"--image={photo}", f"--keep={mask}")
    assert done.returncode == 0, done.stderr
    assert [p.stat().st_mtime_ns for p in (*pictures[:2], pictures[3])] == before
    with Image.open(pictures[2]) as picture:
        np.testing.assert_allclose(np.asarray(picture).astype(int), painted[2], atol=1)


def test_given_codes_stay(prior_run, picture_folder, tmp_path):
    """What is given is read as asked, and is in the samples; the rest is not the picture's."""
    config, step = load_config(prior_run)
    photo, mask = picture_folder / "square" / "3.png", tmp_path / "mask.png"
    for keep, rows, columns in (("top", np.s_[:4], np.s_[:]), ("right", np.s_[:], np.s_[4:])):
        given = read_given(config, str(photo), keep, (16, 16))
        expected = np.zeros((8, 8), bool)
        expected[rows, columns] = True
        np.testing.assert_array_equal(given.keep, expected)
    with Image.open(photo) as picture:
        white = np.full(picture.size[::-1], 255, np.uint8)
    white[: len(white) // 2] = 0
    Image.fromarray(white).save(mask)
    given = read_given(config, str(photo), str(mask), (16, 16))
    assert given.keep[5:].all() and not given.keep[:4].any()
    with pytest.raises(UserError, match=r"--image=top cannot be read"):
        read_given(config, "top", str(photo), (16, 16))
    for keep, message in (("topp", "did you mean 'top'"), (str(picture_folder / "cross" / "0.png"), "as large")):
        with pytest.raises(UserError, match=message):
            read_given(config, str(photo), keep, (16, 16))

    seen = {}
    whole = conditions.Given(given.image, np.ones((8, 8), bool))
    half = conditions.Given(given.image, np.arange(8)[:, None] < np.full(8, 4))
    for name, part in (("whole", whole), ("half", half), ("none", None)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sample_module, "decode_tiled", lambda decode, grid, tile: np.asarray(grid, np.uint8))
            seen[name] = paint_codes(config, prior_run, step, part)
    assert (seen["whole"] == seen["whole"][0]).all()
    np.testing.assert_array_equal(seen["half"][:, :4], seen["whole"][:, :4])
    assert (seen["half"][:, 4:] != seen["whole"][:, 4:]).any() and (seen["none"][:, :4] != seen["half"][:, :4]).any()


def paint_codes(config, workdir: Path, step: int, given) -> np.ndarray:
    rows = {"label": np.zeros(8, np.int32), "index": np.arange(8, dtype=np.int32)}
    return np.concatenate(list(sample(config, workdir, step, rows, (16, 16), 0, 8, given=given)))


def test_what_was_refused_leaves_no_trace(prior_run, tmp_path):
    args = (f"--workdir={prior_run}", f"--out={tmp_path / 'out'}", "--size=18x18", "--num_samples=1", "--classes=0")
    refused = run("sample", *args, "--stride=9")
    assert refused.returncode == 2 and "stride=9: it must be 1 to 4" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_scenes_of_a_larger_picture_are_read_at_each_place_of_the_window(vq_run, annotated_folder, tmp_path):
    """From a file and from held-out pictures: of 8x12 codes, the first of five windows of 8x8 sees the left."""
    config = changed(tiny_prior(vq_run), cond__name="objects", data__path=str(annotated_folder))
    config.cond.layout.update(min_objects=1, max_objects=2, num_tokens=64, encode_crop=False)
    config = prior.complete(config, None)
    config.data.class_names = ("circle", "cross", "square")
    (tmp_path / "scene.json").write_text('[{"category": "cross", "box": [0.7, 0.1, 0.9, 0.5]}]')
    asked = conditions.read_layouts(config, [str(tmp_path / "scene.json")], (16, 24))
    scene = layouts.read_scene(tmp_path / "scene.json", config.cond.layout, config.data.class_names)
    last = layouts.to_ids(scene, config.cond.layout, 3, crop=(1 / 3, 0, 2 / 3, 1))
    assert asked["windows"].shape == (1, 1, 5, 6) and (asked["windows"][0, 0, 0] == 63).all()
    np.testing.assert_array_equal(asked["windows"][0, 0, 4], last)
    held_out = conditions.held_out(config, 2, (16, 24))
    assert held_out["windows"].shape == (2, 1, 5, 6) and held_out["image"].shape == (2, 16, 24, 3)
    assert "windows" not in conditions.held_out(config, 2, (16, 16))


def test_a_scene_s_transformer_begins_at_the_corners_of_boxes(vq_run, annotated_folder):
    """Of 8x8 places, a code's position is most like the id of the one that it asks for."""
    config = changed(tiny_prior(vq_run), cond__name="objects", cond__aligned=True, data__path=str(annotated_folder))
    config.cond.layout.update(min_objects=1, max_objects=2, num_tokens=65, encode_crop=False)
    config.gpt.embed_dim = 128
    params = prior.make(prior.complete(config, None)).init(jax.random.key(0)).params["gpt"]
    ids, codes = params["token_embedding"][:65], params["position_embedding"][6:]
    assert codes.shape == (63, 128)
    assert (np.argmax(codes @ ids.T, 1) == np.arange(1, 64)).mean() > 0.8  # ids have chance in them, too


@pytest.mark.parametrize("name", ["vq", "ema"])
def test_dead_codes_restart_where_the_error_is(name, picture_folder):
    """In the codebook and in both of its averages; `accumulate` stacks the codes of a batch's parts."""
    config = tiny_vq(picture_folder)
    if name == "ema":
        with config.unlocked():
            sizes = dict(codebook_size=32, embed_dim=8)
            config.quantizer = dict(name="ema", commitment_weight=0.25, decay=0.99, eps=1e-5, **sizes)
    state = vqgan.make(config).init(jax.random.key(0))
    embedding = state.params["gen"]["quantize"]["embedding"]
    ids = jnp.arange(12).reshape(2, 2, 3) % 4
    latents = embedding[ids].at[1, 0, 2].add(1.0)
    counts = jnp.zeros(32).at[:4].set(3.0)
    new = vqgan.restart_codes(state, counts, {"latents": latents, "ids": ids}, 1, jax.random.key(1))
    extra = new.extra["gen"]
    moved = [new.params["gen"]["quantize"]["embedding"], extra["ema"]["quantize"]["embedding"]]
    if name == "ema":
        moved.append(extra["codebook"]["embed_avg"])
        np.testing.assert_array_equal(extra["codebook"]["cluster_size"], 1)
    for codebook in moved:
        np.testing.assert_array_equal(codebook[:4], embedding[:4])
        np.testing.assert_array_equal(codebook[4:], np.repeat(latents[1, 0, 2][None], 28, 0))


def test_another_picture_is_a_condition(vq_run, annotated_folder, tmp_path):
    """The codes before an image's are those of the picture in others/."""
    (tmp_path / "of_others").symlink_to(vq_run)

    def load_as_of_others(workdir: Path, step: int | None):
        found, step = checkpoint.load_config(workdir, step)
        return (changed(found, input="other") if workdir.name == "of_others" else found), step

    config = changed(tiny_prior(vq_run), cond__name="image", cond__workdir=str(tmp_path / "of_others"))
    config.data.update(path=str(annotated_folder), flip=False)
    config = prior.complete(config, None, load_as_of_others)
    assert set(config.data.features) == {"image", "other"}
    source = data.open_source(config.data, "train")
    batch = conditions.stack([data.augment(config.data).centered(source[i]) for i in range(4)])
    frozen = prior.make(config).load_frozen()
    c, codes = prior.read(config, frozen, batch)
    stage, net = config.first_stage.config, frozen["gen"]
    np.testing.assert_array_equal(codes, vqgan.encode(stage, net, vqgan.to_input(stage, batch)))
    negative = vqgan.encode(stage, net, -vqgan.to_input(stage, batch))
    assert (c.reshape(codes.shape) == negative).mean() > 0.9 > (c.reshape(codes.shape) == codes).mean()
    shown = conditions.pictures_of(config, batch, (16, 16))
    np.testing.assert_allclose(shown, batch["other"] / 127.5 - 1, atol=1e-6)


def test_sizes(prior_run):
    config, _ = load_config(prior_run)
    assert parse_size(None, config) == (16, 16) and parse_size("16x18", config) == (16, 18)
    for size, message in (("8x32", "from 16 on"), ("17x32", "multiples of 2"), ("big", "height x width")):
        with pytest.raises(UserError, match=message):
            parse_size(size, config)
    for fields, message in (
        (dict(order="z_curve"), "this transformer's order is 'z_curve'"),
        (dict(cond__name="coordinates", cond__down=16), "has 1 ids where there are 8 codes"),
    ):
        with pytest.raises(UserError, match=message):
            parse_size("18x18", changed(load_config(prior_run)[0], **fields))
    with pytest.raises(
        UserError, match="stride=2: ways of a window that follows rows; this transformer's order is 'z_c"
    ):
        prior.make_painter(changed(config, order="z_curve"), "cached", 2)


def paint(config, workdir: Path, step: int, labels: list[int], columns: int, seed=0, batch_size=8, **options):
    """Images [labels,columns,H,W,3] of classes."""
    rows = {
        "label": np.repeat(np.int32(labels), columns),
        "index": np.tile(np.arange(columns, dtype=np.int32), len(labels)),
    }
    batches = list(sample(config, workdir, step, rows, (16, 16), seed, batch_size, **options))
    return np.concatenate(batches).reshape(len(labels), columns, 16, 16, 3)


def test_a_sample_depends_on_seed_class_and_number_alone(prior_run):
    config, step = load_config(prior_run)
    many = paint(config, prior_run, step, [0, 2], 4)
    one = paint(config, prior_run, step, [2], 3, batch_size=16)
    other = paint(config, prior_run, step, [2], 3, seed=1)
    # The codes are the same; their decoding may round otherwise in a batch of another size.
    np.testing.assert_allclose(many[1, :3].astype(int), one[0], atol=1)
    assert (one != other).any()


def test_classes_by_name_and_number():
    names = ("Cats", "Dogs", "Food & Drink")
    assert parse_classes(None, names) == [0, 1, 2]
    assert parse_classes("dogs, 2", names) == [1, 2]
    assert parse_classes(None, ()) == [0]
    assert len(parse_classes(None, tuple(map(str, range(1000))))) == 16
    for text, message in (("3", "no class '3'"), ("-1", "no class '-1'"), ("Catz", "did you mean 'cats'")):
        with pytest.raises(UserError, match=message):
            parse_classes(text, names)


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(task="vqgam"), "did you mean 'vqgan'"),
        (dict(data__size=17), r"data.size=17: the encoder halves .* multiple of 2"),
        (dict(model__ch=48), "model.ch=48: .* multiple of 32"),
        (dict(data__size=8), "data.size=8: .* at least 16"),
        (dict(disc__n_layers=3), "disc.n_layers=3 .* at most 2"),
        (dict(disc__loss="hingy"), "did you mean 'hinge'"),
        (dict(optim__schedule="cosin"), "did you mean 'cosine'"),
        (dict(batch_size=12), "batch_size=12 .* 8 parts"),
        (dict(mesh__data=3), "does not match 8 devices"),
        (dict(quantizer__name="vqq"), "did you mean 'vq'"),
        (dict(quantizer__name="gumbel", restart_codes_after=0), "has the fields .*temperature"),
        (dict(input="line"), r"out_ch=3: input='line' has 1 channels"),
        (dict(input="segmentation"), "'bce' is for segmentation maps"),
        (dict(dtype="bfloat"), "did you mean 'bfloat16'"),
        (dict(log_every=0), "log_every=0: it must be at least 1"),
        (dict(batch_size=0), "batch_size=0: it must be at least 1"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_anything_is_written(fields, message, picture_folder, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        train(changed(tiny_vq(picture_folder), **fields), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_first_stage_that_is_not_there_is_refused(prior_run, tmp_path):
    (tmp_path / "empty").mkdir()
    for workdir, message in (
        (tmp_path / "nothing", "nothing does not exist"),
        (tmp_path / "empty", "holds no checkpoint"),
        (prior_run, "holds a 'prior' run; a first stage is a 'vqgan' run"),
    ):
        with pytest.raises(UserError, match=message):
            train(tiny_prior(workdir), tmp_path / "run")


def test_a_run_of_the_other_task_is_left_alone(vq_run, prior_run):
    with pytest.raises(UserError, match="holds a 'vqgan' run, the config is for 'prior'"):
        train(tiny_prior(vq_run), vq_run)


def test_sampling_names_a_first_stage_that_was_moved(prior_run, tmp_path):
    done = run("sample", f"--workdir={prior_run}", f"--out={tmp_path / 'out'}", f"--first_stage={tmp_path}")
    assert done.returncode == 2 and "holds no readable checkpoint of step 4" in done.stderr
    refused = run("sample", f"--workdir={prior_run}", f"--out={prior_run}")
    assert refused.returncode == 2 and "is a run directory" in refused.stderr


def test_runs_that_were_moved_together_find_each_other(vq_run, prior_run, tmp_path):
    for run_directory in (vq_run, prior_run):
        shutil.copytree(run_directory, tmp_path / run_directory.name)
    for stored in (tmp_path / "prior" / "checkpoints").glob("*/config/metadata"):
        stored.write_text(stored.read_text().replace(str(vq_run), "/elsewhere/vq"))
    config, _ = load_config(tmp_path / "prior")
    assert config.first_stage.workdir == str(tmp_path / "vq")
    shutil.rmtree(tmp_path / "vq")
    config, _ = load_config(tmp_path / "prior")
    assert config.first_stage.workdir == "/elsewhere/vq"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(gpt__num_heads=3), "gpt.embed_dim=32 is not divided by gpt.num_heads=3"),
        (dict(cond__name="image"), "cond.name='image' needs cond.workdir"),
        (dict(cond__name="clas"), "did you mean 'class'"),
        (dict(order="spiral"), "did you mean 'spiral_"),
        (dict(gpt__n_unmasked=2), "the condition has 1 ids"),
        (dict(gpt__block_size=9), "condition and codes need at least 64"),
        (dict(first_stage__used=(1, 2), first_stage__unknown="2"), "a position among the 2 used codes"),
        (dict(sample__top_p=0.0), r"top_p=0: it must be in \(0, 1\]"),
        (dict(sample__temperature=0.0), "temperature=0: it must be above 0"),
        (dict(sample__guidance=2.0), "guidance=2: it needs a transformer trained with dropped conditions"),
        (dict(cond__drop=1.0), r"cond.drop=1: it must be in \[0, 1\)"),
        (dict(canvas=(16, 15)), "canvas=16x15: multiples of 2 from 16 on"),
        (dict(cond__aligned=True), "cond.aligned: a condition on 'class' has no place"),
        (dict(cond__name="objects", cond__aligned=True), "cond.aligned: with cond.layout.encode_crop"),
    ],
)
def test_a_transformer_that_does_not_fit_is_refused(fields, message, vq_run, tmp_path):
    with pytest.raises(UserError, match=message):
        train(changed(tiny_prior(vq_run), **fields), tmp_path / "run")


def test_another_image_size_than_the_first_stage_is_refused(vq_run, tmp_path):
    with pytest.raises(UserError, match=r"data.size=32: the first stage was trained at 16"):
        train(changed(tiny_prior(vq_run), data__size=32), tmp_path / "run")
