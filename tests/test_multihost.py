"""Several operating-system processes as one program, as on several hosts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from taming_jax import checkpoint
from tests.tiny import ROOT, finish, free_port, run

NUMBERS = ("loss", "disc_loss", "nll", "psnr", "rfd_efficientnet", "fd_efficientnet")
STEPS = 8
LATE = ("--config.eval_every=100000", "--config.checkpoint_every=100000")


def start(count: int, workdir: Path, *flags: str, cluster: str = "flags") -> list[subprocess.Popen]:
    """`count` processes that share eight devices, as they are typed on as many hosts, or as SLURM starts them."""
    port, processes = free_port(), []
    for number in range(count):
        command = [sys.executable, "-m", "taming_jax.train", f"--workdir={workdir}", *flags]
        env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(8 // count)}
        if count > 1 and cluster == "flags":
            command += [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={count}", f"--process_id={number}"]
        elif count > 1:
            command += ["--distributed"]
            env |= dict(SLURM_JOB_ID=str(port), SLURM_STEP_NODELIST="localhost", SLURM_NTASKS=str(count))
            env |= dict(SLURM_PROCID=str(number), SLURM_LOCALID=str(number), SLURM_STEP_NUM_NODES="1")
        output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append(subprocess.Popen(command, cwd=ROOT, env=env, **output))
    return processes


def numbers(workdir: Path) -> dict[tuple, float]:
    """What was logged, the last of each step."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {(r["step"], r["split"], name): r[name] for r in lines for name in NUMBERS if name in r}


def vq_flags(folder: Path) -> list[str]:
    """A small first stage with all its losses from the first step.

    Its steps are small, and Adam's: Muon makes much of the last bits of weights, which then choose other codes, whether
    in two processes or on two meshes of one.
    """
    small = "data.name=folder data.size=16 model.ch_mult=(1,1) model.z_channels=32 batch_size=8 eval_every=8"
    losses = "loss.perceptual_start=0 disc.weight=0.8 disc.start=0 disc.gen_start=0 disc.ramp_steps=0"
    nets = "disc.ndf=8 disc.n_layers=1 optim.name=adam optim.learning_rate=4e-4"
    often = "checkpoint_every=2 log_every=1 data.flip=True data.random_crop=True data.resize_factor=1.25"
    settings = f"{small} {losses} {nets} {often} data.path={folder} steps={STEPS}".split()
    return ["--config=configs/openmoji_vq.py", *(f"--config.{s}" for s in settings)]


def transformer_flags(first_stage: Path) -> list[str]:
    settings = "gpt.num_layers=1 gpt.num_heads=2 gpt.embed_dim=32 batch_size=8 eval_every=8 log_every=1".split()
    settings += [f"first_stage.workdir={first_stage}", "checkpoint_every=2", f"steps={STEPS}"]
    return ["--config=configs/openmoji_transformer.py", *(f"--config.{s}" for s in settings)]


JUDGED = """
from configs import openmoji_{stage}


def get_config():
    c = openmoji_{stage}.get_config()
    with c.unlocked():
        c.evals.few = dict(kind="{kind}", features="efficientnet", num_samples=24)
    return c
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vq", "transformer"])
def test_two_processes_train_as_one(stage, picture_folder, vq_run, tmp_path):
    """The same losses and figures, judges' too, one log, and the same run after both were killed; sharded."""
    flags = vq_flags(picture_folder) if stage == "vq" else transformer_flags(vq_run)
    judged = tmp_path / "judged.py"
    judged.write_text(JUDGED.format(stage=stage, kind="reconstructions" if stage == "vq" else "samples"))
    flags = [f"--config={judged}", "--config.mesh.fsdp=2", *flags[1:]]
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start(1, one, *flags))
    killed = start(2, two, *flags)
    for _ in killed[0].stdout:
        if checkpoint.steps(two):
            break
    victim, other = killed if stage == "vq" else reversed(killed)  # process 0, where all others register; or another
    victim.kill()
    victim.communicate()
    printed = other.communicate(timeout=60)[0]
    assert printed.count("another process of the job has died") == 1, printed
    assert "Traceback" not in printed and "stack trace" not in printed and other.returncode != 0
    saved = checkpoint.steps(two)[-1]
    assert saved < STEPS
    first, second = finish(start(2, two, *flags, cluster="slurm"))
    assert f"starting at step {saved}" in first and "8 devices" in first
    assert f"step {STEPS}/{STEPS}" in first and "step" not in second  # process 0 alone speaks
    expected, found = numbers(one), numbers(two)
    assert set(expected) <= set(found) and len(expected) > STEPS
    for key, value in expected.items():
        # Weights that differ in their last bits decode to other pixels, and draw other codes.
        rtol = 0.1 if key[-1].endswith("fd_efficientnet") else 1e-3
        np.testing.assert_allclose(found[key], value, rtol=rtol, err_msg=str(key))
    assert any(split == "few" for _, split, _ in expected)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both(picture_folder, tmp_path):
    processes = start(2, tmp_path / "run", *vq_flags(picture_folder), "--config.steps=100000", *LATE)
    for line in processes[0].stdout:
        if line.startswith("step "):
            break
    processes[1].send_signal(signal.SIGTERM)
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], printed
    assert "checkpoint saved; the same command goes on" in printed[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes=2"], "--coordinator_address is missing"),
        pytest.param(["--distributed"], "the job's processes did not come together", marks=pytest.mark.slow),
        pytest.param(
            ["--coordinator_address=127.0.0.1:9", "--num_processes=2", "--process_id=1", "--join_timeout=1"],
            "did not come together at 127.0.0.1:9 in 1 s",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_job_that_is_none_gets_one_line(flags, message, tmp_path):
    done = run("train", "--config=configs/openmoji_vq.py", f"--workdir={tmp_path}", *flags)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_processes_with_different_configs_say_so(picture_folder, tmp_path):
    flags = vq_flags(picture_folder)
    port = free_port()
    processes = []
    for number in range(2):
        processes += start(
            1,
            tmp_path,
            *flags,
            f"--coordinator_address=127.0.0.1:{port}",
            "--num_processes=2",
            f"--process_id={number}",
            f"--config.seed={number}",
        )
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], printed
    assert "error: the processes 1 were started with another config than process 0" in printed[0]
    assert "error: process 1 differs from process 0: seed 0 -> 1" in printed[1]
    assert not checkpoint.steps(tmp_path)
