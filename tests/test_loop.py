"""A run: what it leaves behind, and that it goes on after whatever stopped it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax.errors import JaxRuntimeError
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from taming_jax import backend, checkpoint, completion, data
from taming_jax.errors import UserError
from taming_jax.loop import train
from tests.tiny import ROOT, records, state_of, tiny_vq


def test_first_stage_leaves_a_directory_that_explains_itself(vq_run):
    config, step = completion.load_config(vq_run)
    assert step == 4 and config.data.class_names == ("circle", "cross", "square")
    assert config.model.ch_mult == (1, 1)
    (last,) = records(vq_run, "validation")
    assert {"psnr", "lpips", "code_use", "code_perplexity"} <= set(last)
    assert 0 < last["code_use"] <= 1 and 1 <= last["code_perplexity"] <= 32
    assert [r["step"] for r in records(vq_run, "train")] == [1, 2, 3, 4]
    with Image.open(vq_run / "reconstructions.png") as picture:
        cells = np.asarray(picture)[2:, 2:].reshape(-1, 130, picture.width // 130, 130, 3)[:, :128, :, :128]
    originals = {cell.tobytes() for row in cells[::2].swapaxes(1, 2) for cell in row if (cell < 255).any()}
    held_out = len(data.open_source(config.data, "validation"))
    assert cells.shape[::2] == (4, 8, 3) and len(originals) == held_out == 11, "each once, though a batch is filled up"
    assert (cells < 255).any((1, 3, 4)).sum() == 2 * held_out
    assert "conv_out" in (vq_run / "parameters.txt").read_text()


def test_events_hold_scalars_pictures_and_code_histograms(vq_run):
    events = EventAccumulator(str(vq_run / "events"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "validation/psnr"} <= set(tags["scalars"])
    assert tags["images"] == ["reconstructions"]
    (histogram,) = events.Histograms("codes")
    assert histogram.histogram_value.num == sum(histogram.histogram_value.bucket) > 0


def test_profile_is_written(transformer_run):
    assert list(transformer_run.rglob("*.xplane.pb"))


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


@pytest.mark.slow
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
    command = [sys.executable, "-m", "taming_jax.train", "--config=configs/openmoji_vq.py", f"--workdir={workdir}"]
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen([*command, *flags, *more], cwd=ROOT, start_new_session=True, **output)
    for line in process.stdout:
        if line.startswith("step "):
            return process, int(line.split()[1].split("/")[0])
    raise AssertionError(f"the run ended with {process.wait()} before its first step")


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_options_that_the_compiler_does_not_know_are_left_out():
    assert backend.compiler_options(True) == {"xla_cpu_experimental_ynn_fusion_type": ""}
    assert backend.known("xla_cpu_of_a_later_year", "") is None
    with pytest.raises(JaxRuntimeError):
        backend.known("xla_backend_optimization_level", "much")
