"""Checkpoints that are damaged, were moved, or go to another mesh."""

import shutil

import jax
import numpy as np
import pytest

from taming_jax import checkpoint, sharding
from taming_jax.completion import load_config
from taming_jax.loop import train
from taming_jax.tasks import vqgan
from tests.tiny import mesh_of, tiny_vq


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


def test_runs_that_were_moved_together_find_each_other(vq_run, transformer_run, tmp_path):
    for run_directory in (vq_run, transformer_run):
        shutil.copytree(run_directory, tmp_path / run_directory.name)
    for stored in (tmp_path / "transformer" / "checkpoints").glob("*/config/metadata"):
        stored.write_text(stored.read_text().replace(str(vq_run), "/elsewhere/vq"))
    config, _ = load_config(tmp_path / "transformer")
    assert config.first_stage.workdir == str(tmp_path / "vq")
    shutil.rmtree(tmp_path / "vq")
    config, _ = load_config(tmp_path / "transformer")
    assert config.first_stage.workdir == "/elsewhere/vq"


def test_a_checkpoint_moves_to_another_mesh(picture_folder, tmp_path):
    config = tiny_vq(picture_folder)
    task = vqgan.make_task(config)
    stored = None
    for sizes, devices in ((mesh_of(data=2, fsdp=4), 8), (mesh_of(data=2, fsdp=2), 4), (mesh_of(), 1)):
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
