"""Processes that read ahead: what becomes of them, and of the run, when one of them or the run is killed."""

import os
import select
import signal
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from taming_jax import data
from taming_jax.errors import UserError
from tests.tiny import ROOT, tiny_vq


class Deadly:
    """Twenty grey pictures; to read number 5 ends the process, as the kernel does where memory is short."""

    class_names = ()

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"image": np.full((16, 16, 3), index, np.uint8), "label": 0}

    def describe(self, index):
        return f"pictures/caf\udce9 {index}.png"


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_that_names_the_record():
    config = tiny_vq("nowhere")
    config.data.workers, config.batch_size = 2, 4
    source = data.Readable(Deadly(), 0.1)
    with closing(data.train_batches(source, config, 0, data.make_augment(config.data))) as batches:
        with pytest.raises(UserError) as caught:
            list(zip(batches, range(11), strict=False))
    message = str(caught.value)
    assert (
        message.startswith("pictures/caf? 5.png: the process that read it ended with code -9") and "\n" not in message
    )
    assert "for want of memory; lower data.workers=2, or take that file away" in message


SPOILT = """
import sys
from pathlib import Path
from taming_jax import data
from taming_jax.errors import UserError, fail
from tests.tiny import tiny_vq

if __name__ == "__main__":
    config = tiny_vq(Path(sys.argv[1]))
    config.data.workers, config.data.max_bad_share, config.data.validation_share = 2, 0.2, 0.01
    source = data.open_source(config.data, "train")
    try:
        for batch in data.train_batches(source, config, 0, data.make_augment(config.data)):
            pass
    except UserError as e:
        fail(str(e))
"""


@pytest.mark.slow
def test_workers_count_what_cannot_be_read_together(tmp_path):
    """The share is that of all records, each is told once, and nothing else is said at the end."""
    (tmp_path / "spoilt.py").write_text(SPOILT)
    (tmp_path / "pictures").mkdir()
    for i in range(31):
        Image.fromarray(np.full((24, 24, 3), i, np.uint8)).save(tmp_path / f"pictures/{i:02}.png")
    for i in range(0, 31, 4):
        (tmp_path / f"pictures/{i:02}.png").write_text("no picture")
    command = [sys.executable, tmp_path / "spoilt.py", tmp_path / "pictures"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    skipped = [line for line in done.stdout.splitlines() if "skipped" in line]
    assert done.returncode == 2 and "of 30 images, more than data.max_bad_share=0.2" in done.stderr
    assert sorted(line.split("skipped, ")[1] for line in skipped) == [f"{i} of 30 so far" for i in range(1, 7)]
    assert len({line.split()[0] for line in skipped}) == 6 and "leaked" not in done.stderr


TRAINER = """
import multiprocessing, signal, sys
from multiprocessing import resource_tracker
from pathlib import Path
from taming_jax import data
from tests.tiny import tiny_vq

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)
    config = tiny_vq(Path(sys.argv[1]))
    config.data.workers = 2
    batches = data.train_batches(data.open_source(config.data, "train"), config, 0, data.make_augment(config.data))
    next(batches)
    print(resource_tracker._resource_tracker._pid, *(p.pid for p in multiprocessing.active_children()), flush=True)
    sys.stdin.readline()
    for _ in range(50):  # more than was read ahead
        next(batches)
    print("goes on", flush=True)
    if sys.argv[2] == "killed":
        sys.stdin.readline()
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "without closing"])
def test_workers_outlive_a_signal_to_all_but_not_their_trainer(end, picture_folder, tmp_path):
    (tmp_path / "trainer.py").write_text(TRAINER)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "trainer.py", picture_folder, end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    with process:
        assert "48 images" in process.stdout.readline()
        helpers = [os.pidfd_open(int(pid)) for pid in process.stdout.readline().split()]
        assert len(helpers) == 3
        os.killpg(process.pid, signal.SIGTERM)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "goes on\n"
        if end == "killed":
            process.kill()
        for helper in helpers:
            assert select.select([helper], [], [], 20)[0], "it still runs"
            os.close(helper)
        assert process.wait(20) == (-signal.SIGKILL if end == "killed" else 0)
