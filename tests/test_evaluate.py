"""The command that evaluates a run again."""

import shutil

import numpy as np

from tests.tiny import records, run


def test_evaluate_repeats_the_numbers_of_training_in_their_place(vq_run, tmp_path):
    shutil.copytree(vq_run, tmp_path / "run")
    (first,), lines = records(vq_run, "validation"), len((vq_run / "metrics.jsonl").read_text().splitlines())
    done = run("evaluate", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    (second,) = records(tmp_path / "run", "validation")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == lines
    assert len(list((tmp_path / "run" / "events").iterdir())) == len(list((vq_run / "events").iterdir()))
    assert first.keys() == second.keys()
    for name in first:
        if name != "split":
            np.testing.assert_allclose(first[name], second[name], rtol=1e-4, err_msg=name)
