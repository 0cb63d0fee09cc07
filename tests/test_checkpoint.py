"""Checkpoints that are damaged, were moved, or go to another mesh."""

import shutil

import jax
import numpy as np
import pytest

from taming_jax import checkpoint, sharding
from taming_jax.completion import load_config
from taming_jax.loop import train
from taming_jax.tasks import vqgan
from tests.tiny import forget_copies, mesh_of, tiny_vq


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


def test_runs_of_before_they_had_copies_find_their_first_stage(vq_run, transformer_run, tmp_path, monkeypatch):
    """Around the run first, not in the shell's folder, where another run may have the same name."""
    for place in (tmp_path / "a" / "runs", tmp_path / "b" / "runs"):
        shutil.copytree(vq_run, place / "vq")
    old = tmp_path / "a" / "runs" / "old"
    shutil.copytree(transformer_run, old)
    for workdir in ("runs/vq", "/elsewhere/vq"):
        forget_copies(old, workdir)
        monkeypatch.chdir(tmp_path / "b")
        assert load_config(old)[0].first_stage.workdir == str(tmp_path / "a" / "runs" / "vq")
    shutil.rmtree(tmp_path / "a" / "runs" / "vq")
    assert load_config(old)[0].first_stage.workdir == "/elsewhere/vq"


def test_a_checkpoint_moves_to_another_mesh(picture_folder, tmp_path):
    config = tiny_vq(picture_folder)
    task = vqgan.make_task(config)
    stored = None
    for sizes, devices in ((mesh_of(data=2, fsdp=2), 4), (mesh_of(data=2), 2), (mesh_of(), 1)):
        mesh = sharding.make_mesh(sizes, jax.devices()[:devices])
        with jax.set_mesh(mesh), checkpoint.open_manager(tmp_path) as manager:
            state, next_batch = checkpoint.init_or_restore(manager, task, jax.random.key(0), mesh)
            if stored is None:
                checkpoint.save(manager, state.replace(step=state.step + 3), 3, config)
                stored = jax.device_get(state.params)
            else:
                assert int(state.step) == next_batch == 3
                jax.tree.map(np.testing.assert_array_equal, stored, jax.device_get(state.params))
                assert {len(x.devices()) for x in jax.tree.leaves(state.params)} == {devices}
