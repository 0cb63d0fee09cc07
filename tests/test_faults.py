"""Runs that are killed again and again end as undisturbed ones do. Minutes long: `make test-faults`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from taming_jax import checkpoint
from taming_jax.completion import complete
from taming_jax.encoded import encode
from tests.tiny import ROOT, finish, state_of, tiny_transformer

pytestmark = pytest.mark.slow

KILLS = 11  # of each kind of run
RATES = ("steps_per_second", "images_per_second", "seconds", "data_wait")
SCHEDULE = "batch_size=8 steps=12 log_every=1 eval_every=4 checkpoint_every=2"
SMALL_VQ = "data.name=folder data.size=16 model.ch_mult=(1,1) model.z_channels=32 model.num_res_blocks=1"
LOSSES = (
    "loss.perceptual_start=3 disc.ndf=8 disc.n_layers=1 disc.start=6 disc.gen_start=7 disc.ramp_steps=2 ema_decay=0.9"
)
SMALL_GPT = "gpt.num_layers=1 gpt.num_heads=2 gpt.embed_dim=32 gpt.resid_pdrop=0.1"


def command(config: str, settings: str, workdir: Path) -> list[str]:
    flags = [f"--config.{setting}" for setting in f"{settings} {SCHEDULE}".split()]
    return [sys.executable, "-m", "taming_jax.train", f"--config={config}", f"--workdir={workdir}", *flags]


def start(words: list[str], devices: int) -> subprocess.Popen:
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def logged(workdir: Path) -> dict[tuple, dict]:
    """The numbers of each step and split, of which there is one record."""
    found = {}
    for record in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        key = record["step"], record["split"]
        assert key not in found
        found[key] = {name: value for name, value in record.items() if name not in RATES}
    return found


@pytest.mark.parametrize("kind", ["vq", "vq of four devices", "transformer", "transformer on codes"])
def test_killed_at_any_moment(kind, picture_folder, vq_run, tmp_path):
    devices = 4 if "four" in kind else 1
    if kind.startswith("vq"):
        config, settings = "openmoji_vq", f"{SMALL_VQ} {LOSSES} data.path={picture_folder} mesh.fsdp={min(2, devices)}"
    else:
        config, settings = "openmoji_transformer", f"{SMALL_GPT} first_stage.workdir={vq_run}"
    if "codes" in kind:
        encode(complete(tiny_transformer(vq_run)), tmp_path / "codes", 1, 8)
        settings += f" codes={tmp_path / 'codes'}"
    whole = tmp_path / "whole"
    finish([start(command(config, settings, whole), devices)])
    expected_state, expected_log = state_of(whole), logged(whole)

    rng, kills, runs = np.random.default_rng(len(kind)), 0, 0
    while kills < KILLS:
        runs += 1
        workdir, ended = tmp_path / f"killed{runs}", False
        while not ended:
            process = start(command(config, settings, workdir), devices)
            moment = rng.uniform(0.1, 25) if kills < KILLS else None
            try:
                printed, _ = process.communicate(timeout=moment)
                assert process.returncode == 0, printed
                ended = True
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
        found = state_of(workdir)
        assert found.keys() == expected_state.keys()
        for name, leaf in expected_state.items():
            np.testing.assert_array_equal(found[name], leaf, err_msg=name)
        assert logged(workdir) == expected_log
        assert not list((workdir / "checkpoints").glob("*tmp*")) and not (workdir / "damaged").exists()
        assert checkpoint.read_json(workdir, 12, "data") == checkpoint.read_json(whole, 12, "data")
    assert checkpoint.steps(whole) == checkpoint.steps(workdir)
