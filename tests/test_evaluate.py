"""The command that evaluates a run again."""

import shutil

import numpy as np

from tests.tiny import records, run


def test_evaluate_repeats_the_numbers_of_training(vq_run, tmp_path):
    shutil.copytree(vq_run, tmp_path / "run")
    done = run("evaluate", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    first, second = records(tmp_path / "run", "validation")
    assert first.keys() == second.keys()
    for name in first:
        if name != "split":
            np.testing.assert_allclose(first[name], second[name], rtol=1e-4, err_msg=name)
