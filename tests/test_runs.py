"""Run directories: whole, known by what they hold, claimed by one command, and read as they were written."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from taming_jax import check, checkpoint, completion, evaluate, memory, places, sharding
from taming_jax import state as states
from taming_jax.errors import UserError
from taming_jax.generator import Generator
from taming_jax.loop import is_finished, train
from taming_jax.tasks import vqgan
from taming_jax.writer import Writer, read_records
from tests.tiny import ROOT, changed, records, tiny_transformer, tiny_vq


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file's size and time."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def other_weights(vq_run, tmp_path_factory) -> Path:
    """A first stage with as many steps as `vq_run` and other weights."""
    out = tmp_path_factory.mktemp("other") / "vq"
    config, step, params = completion.load_run(vq_run)
    with checkpoint.open_manager(out) as manager:
        state = states.TrainState(np.int32(step), {"gen": jax.tree.map(lambda x: x + 1, params)}, {}, {"gen": {}}, {})
        checkpoint.save(manager, state, step, config)
    return out


def test_a_transformers_run_is_whole_wherever_it_is(transformer_run, generator, tmp_path, monkeypatch):
    """It has its own copy of its tokenizer, named relative to itself; other runs of that name do not matter."""
    shutil.copytree(transformer_run, tmp_path / "a" / "moved")
    shutil.copytree(transformer_run / "first_stage", tmp_path / "b" / "first_stage")
    stored = json.loads((tmp_path / "a" / "moved" / "checkpoints" / "4" / "config" / "metadata").read_text())
    assert stored["first_stage"]["workdir"] == "./first_stage" and len(stored["first_stage"]["digest"]) == 16
    monkeypatch.chdir(tmp_path / "b")
    moved = Generator.load("../a/moved")
    assert Path(moved.config.first_stage.workdir) == tmp_path / "a" / "moved" / "first_stage"
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(moved.nets), jax.device_get(generator.nets))


def test_copies_hold_the_averages_that_are_used(vq_run, tmp_path):
    config, _ = completion.load_config(vq_run)
    _, step, params = completion.load_run(vq_run)
    config.ema_decay = 0.9
    state = states.TrainState(
        np.int32(step), {"gen": params}, {}, {"gen": {"ema": jax.tree.map(lambda x: 2 * x, params)}}, {}
    )
    with checkpoint.open_manager(tmp_path / "run") as manager:
        checkpoint.save(manager, state, step, config)
    checkpoint.copy_nets(tmp_path / "run", step, tmp_path / "copy")
    copied, _, used = completion.load_run(tmp_path / "copy")
    assert copied.ema_decay == 0
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), used, params)


def test_other_weights_than_those_of_training_are_refused_or_told(
    transformer_run, vq_run, other_weights, tmp_path, capfd
):
    with pytest.raises(UserError, match="has other weights than the first stage that the transformer was trained on"):
        Generator.load(transformer_run, first_stage=other_weights)
    assert Generator.load(transformer_run, first_stage=vq_run).step == 4
    stored, _ = completion.load_config(transformer_run)
    assert stored.first_stage.origin == str(vq_run)
    with pytest.raises(UserError, match="has other weights than the first stage that this run was trained on"):
        completion.complete(tiny_transformer(other_weights), stored)
    stored.first_stage.origin = str(other_weights)  # as if it had been trained anew, with as many steps
    again = completion.complete(tiny_transformer(other_weights), stored)
    assert again.first_stage.workdir == stored.first_stage.workdir == str(transformer_run / "first_stage")
    assert "has other weights by now; the run goes on with its own copy" in capfd.readouterr().out
    gone = completion.complete(tiny_transformer(Path("/nowhere/vq")), stored)
    assert gone.first_stage.digest == stored.first_stage.digest
    stored.first_stage.origin = "/elsewhere"  # the run was moved, and its first stage trained further
    shutil.copytree(other_weights, tmp_path / "vq")
    (tmp_path / "vq" / "checkpoints" / "4").rename(tmp_path / "vq" / "checkpoints" / "9")
    moved = completion.complete(tiny_transformer(tmp_path / "vq"), stored)
    assert moved.first_stage.workdir == stored.first_stage.workdir
    assert "has other weights by now; the run goes on with its own copy" in capfd.readouterr().out


def damages(folder: Path) -> list[tuple[str, Path, bytes | None]]:
    """Ways in which a checkpoint's files are damaged: (name, file, what it holds then, None if it is gone)."""
    rng, found = np.random.default_rng(0), []
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size)
    for file in files[0], folder / "config" / "metadata", folder / "sums" / "metadata":
        flipped = bytearray(file.read_bytes())
        flipped[rng.integers(len(flipped))] ^= 1 << rng.integers(8)
        found.append((f"{file} flipped", file, bytes(flipped)))
    for file in files[1], folder / "data" / "metadata":
        found.append((f"{file} cut", file, file.read_bytes()[: file.stat().st_size // 2]))
    return [*found, ("empty", files[0], b""), ("gone", folder / "state" / "_METADATA", None)]


def restore_as_training(workdir: Path, set_aside: bool) -> int:
    """Restores a run as `train` and `evaluate` do, -> its step."""
    config, _ = completion.load_config(workdir)
    mesh = sharding.make_mesh(config.mesh)
    like = sharding.with_shardings(jax.eval_shape(vqgan.make_task(config).init, jax.random.key(0)), mesh)
    with checkpoint.open_manager(workdir, read_only=not set_aside) as manager:
        return int(checkpoint.restore(manager, like, set_aside)[0].step)


@pytest.mark.slow
def test_damage_is_named_and_the_checkpoint_before_is_used(vq_run, tmp_path, capfd, monkeypatch):
    """Whatever is damaged, what is read is as it was written; a command that reads moves nothing."""
    monkeypatch.setattr(checkpoint, "PAUSES", (0, 0))
    shutil.copytree(vq_run, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "4"
    _, _, whole = completion.load_run(tmp_path / "run")
    assert check.check_run(tmp_path / "run") == []
    for number, (name, file, content) in enumerate(damages(folder)):
        before = file.read_bytes()
        file.unlink() if content is None else file.write_bytes(content)
        left = files_of(tmp_path / "run")
        _, step, params = completion.load_run(tmp_path / "run")
        printed = capfd.readouterr().out
        if step == 4:  # what was hit is not part of the net
            jax.tree.map(np.testing.assert_array_equal, params, whole)
        else:
            assert step == 2 and "checkpoint 4 cannot be read and is passed over" in printed, name
        if number > 3:  # as slow as sure
            restored = restore_as_training(tmp_path / "run", set_aside=False)
            assert restored == 2 or (restored, step) == (4, 4), name  # nothing may read what was hit
        assert files_of(tmp_path / "run") == left, name
        file.write_bytes(before)
    stored = folder / "config" / "metadata"
    stored.write_text(stored.read_text().replace('"batch_size": 8', '"batch_size": 9'))
    assert check.check_run(tmp_path / "run") == [4]
    (tmp_path / "run" / "checkpoints" / "9").mkdir()  # what a full disk may leave
    assert restore_as_training(tmp_path / "run", set_aside=True) == 2
    assert checkpoint.steps(tmp_path / "run") == [2] and len(list((tmp_path / "run" / "damaged").iterdir())) == 2


def test_sums_that_are_lost_are_damage(vq_run, tmp_path):
    shutil.copytree(vq_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4" / "sums")
    assert check.check_run(tmp_path / "run") == [4] and completion.load_run(tmp_path / "run")[1] == 2


def test_check_looks_at_the_copies(transformer_run, other_weights, tmp_path, capfd):
    shutil.copytree(transformer_run, tmp_path / "run")
    assert check.check_copies(tmp_path / "run") == []
    shutil.rmtree(tmp_path / "run" / "first_stage")
    assert check.check_copies(tmp_path / "run") == ["first_stage"]
    assert "has lost its copy of the first stage" in capfd.readouterr().out
    shutil.copytree(other_weights, tmp_path / "run" / "first_stage")
    assert check.check_copies(tmp_path / "run") == ["first_stage"]
    assert "is not the first stage that" in capfd.readouterr().out


def test_a_finished_run_that_is_damaged_is_not_finished(vq_run, picture_folder, tmp_path, capfd):
    shutil.copytree(vq_run, tmp_path / "run")
    assert is_finished(tiny_vq(picture_folder), tmp_path / "run")
    largest = max((tmp_path / "run" / "checkpoints" / "4" / "state" / "d").iterdir(), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-9])
    assert not is_finished(tiny_vq(picture_folder), tmp_path / "run")


def test_every_flip_in_the_arrays_shows(vq_run, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PAUSES", (0, 0))
    shutil.copytree(vq_run, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "4" / "state"
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size)[:2]
    rng, seen = np.random.default_rng(1), 0
    expected = checkpoint.read_sums(vq_run, 4)["state"]
    for file in files:
        whole = file.read_bytes()
        for place in rng.integers(len(whole), size=3):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << rng.integers(8)
            file.write_bytes(bytes(flipped))
            try:
                checkpoint.verify(tmp_path / "run", 4)
            except checkpoint.Damaged:
                seen += 1
            else:  # nothing reads that byte
                assert checkpoint.read_sums(tmp_path / "run", 4)["state"] == expected
        file.write_bytes(whole)
    assert seen


def test_checksums_do_not_depend_on_the_mesh():
    x = np.random.default_rng(0).normal(size=(8, 6, 4)).astype(np.float32)
    mesh = sharding.make_mesh(completion.ConfigDict(dict(data=-1, fsdp=2, tensor=2)))
    specs = [("data",), (None, "fsdp"), ("tensor", None, "data"), ()]
    placed = [jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec))) for spec in specs]
    sums = {checkpoint.sum_array(each)[0].item() for each in (x, *placed)}
    sums |= {checkpoint.sum_array(x, part=5)[0].item()}
    assert len(sums) == 1
    for place in np.ndindex(x.shape):
        other = x.copy()
        other.view(np.uint32)[place] ^= 1 << (sum(place) % 32)
        assert checkpoint.sum_array(other)[0].item() not in sums


def test_an_error_of_the_disk_is_no_damage(vq_run, tmp_path, monkeypatch):
    """Read again if it was for a moment; else the command ends, and nothing is moved."""
    monkeypatch.setattr(checkpoint, "PAUSES", (0, 0))
    # Storage tells an error by any exception.
    failures = [OSError(errno.EIO, os.strerror(errno.EIO)), AttributeError("'NoneType' has no attribute 'tree'")]
    real = checkpoint.ocp.PyTreeCheckpointer.restore

    def restore(self, *args, **kwargs):
        if failures:
            raise failures.pop()
        return real(self, *args, **kwargs)

    monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointer, "restore", restore)
    assert completion.load_run(vq_run)[1] == 4 and not failures
    failures += [OSError(errno.EIO, os.strerror(errno.EIO))] * 9
    before = files_of(vq_run)
    with pytest.raises(UserError, match=r"cannot be read now \(Input/output error") as raised:
        completion.load_run(vq_run)
    assert not isinstance(raised.value, checkpoint.Damaged) and files_of(vq_run) == before


def test_a_config_that_does_not_fit_says_which_field(vq_run, picture_folder, tmp_path):
    shutil.copytree(vq_run, tmp_path / "run")
    for fields, word in (
        (dict(quantizer__codebook_size=64), "codebook_size 32 -> 64"),
        (dict(ema_decay=0.0), "ema_decay 0.99 -> 0.0"),
    ):
        with pytest.raises(UserError, match="does not fit this config") as raised:
            train(changed(tiny_vq(picture_folder), steps=5, **fields), tmp_path / "run")
        assert word in str(raised.value) and "\n" not in str(raised.value)
    assert checkpoint.steps(tmp_path / "run") == [2, 4] and not (tmp_path / "run" / "damaged").exists()


def test_a_run_without_its_last_evaluation_is_not_finished(vq_run, picture_folder, tmp_path):
    shutil.copytree(vq_run, tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    lines = log.read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["split"] == "train"]
    log.write_text("\n".join([*kept, kept[1], '{"step": 4, "spl']))  # repeated, and cut off by a kill
    result = train(tiny_vq(picture_folder), tmp_path / "run")
    (expected,), (found,) = records(vq_run, "validation"), records(tmp_path / "run", "validation")
    assert found == expected and result["psnr"] == found["psnr"]
    assert [r["step"] for r in records(tmp_path / "run", "train")] == [1, 2, 3, 4]


def test_what_is_logged_again_is_logged_once(tmp_path):
    with Writer(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.scalars(step, "train", {"loss": float(step)})
    with Writer(tmp_path, step=2) as writer:
        writer.scalars(3, "train", {"loss": 30.0, "other": float("nan")})
    assert [(r["step"], r["loss"]) for r in read_records(tmp_path / "metrics.jsonl")] == [(1, 1), (2, 2), (3, 30)]
    assert "other" not in (tmp_path / "metrics.jsonl").read_text()


def test_what_is_evaluated_again_is_logged_once(tmp_path):
    """Without events: TensorBoard would show them beside those that are there."""
    with Writer(tmp_path) as writer:
        for split in ("train", "validation"):
            writer.scalars(1, split, {"loss": 1.0})
    with Writer(tmp_path, events=False) as writer:
        writer.scalars(1, "validation", {"loss": 2.0})
        writer.scalars(2, "validation", {"loss": 3.0})
    found = [(r["step"], r["split"], r["loss"]) for r in read_records(tmp_path / "metrics.jsonl")]
    assert found == [(1, "train", 1), (1, "validation", 2), (2, "validation", 3)]
    assert len(list((tmp_path / "events").iterdir())) == 1


ODD = [b"\xff{}", b'{"step": "a"}', b'{"step": NaN}', b"NaN", b'{"step": true}', b'{"step": 1, "split": [1]}', b"3"]
ODD += [b"[" * 100_000, b'{"step": 1.5, "split": "train"}', b'{"step": ' + b"9" * 5000 + b"}", b'{"split": "train"}']


def test_lines_that_are_no_records_are_set_aside_and_told(tmp_path, capfd):
    log = tmp_path / "metrics.jsonl"
    lines = [b'{"step": 1, "split": "train", "loss": NaN}', *ODD, b'{"step": 9}', b'{"step": 2}']
    log.write_bytes(b"\n".join(lines) + b'\n\n{"step": 2, "spl')
    assert [record["step"] for record in read_records(log)] == [1, 9, 2]
    with Writer(tmp_path, step=2) as writer:
        writer.scalars(3, "train", {"loss": 1.0})
    assert [record["step"] for record in read_records(log)] == [1, 2, 3]
    assert f"no records, {len(ODD)}, are in {log}.damaged now" in capfd.readouterr().out
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == b"\n".join(ODD) + b"\n"
    before = log.read_bytes()
    with Writer(tmp_path):
        pass
    assert log.read_bytes() == before and capfd.readouterr().out == ""


def test_figures_of_other_data_never_share_a_place(tmp_path):
    (tmp_path / "a" / "x").mkdir(parents=True)
    (tmp_path / "b" / "x").mkdir(parents=True)
    found = {evaluate.place_of(tmp_path, p) for p in (tmp_path / "a/x", tmp_path / "b/x", tmp_path / "a" / "..")}
    assert len(found) == 3 and {p.parent for p in found} == {tmp_path / "evaluated"}
    assert evaluate.place_of(tmp_path, tmp_path / "b/../a/x") in found


CLAIM = """
import sys, time; from pathlib import Path
from taming_jax import places
with places.claimed(Path(sys.argv[1])):
    print("claimed", flush=True); sys.stdin.read()
"""


def test_a_run_directory_is_claimed_by_one_command(picture_folder, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "claimed\n"
    with pytest.raises(UserError, match=f"is in use by process {holder.pid} on"):
        train(tiny_vq(picture_folder), tmp_path)
    lost = f"from pathlib import Path; from taming_jax import places; places.lose(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", lost], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and f"is in use by process {holder.pid} on" in done.stderr  # it was suspended
    holder.kill()
    holder.communicate()
    assert (tmp_path / places.CLAIM).exists()
    with places.claimed(tmp_path):  # a claim of the dead is none
        assert str(os.getpid()) in (tmp_path / places.CLAIM).read_text()
        places.lose(tmp_path)  # it is not lost
    assert not (tmp_path / places.CLAIM).exists()


def test_places_that_cannot_be_written_are_told_first(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"file is a file; name a folder"), places.claimed(place):
            pass
    with pytest.raises(UserError, match="cannot be written"), places.claimed(Path("/proc/run")):
        pass


def limit_files() -> None:
    """Files may hold 200 kB, so that a write fails for real, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


@pytest.mark.slow
def test_a_save_that_fails_ends_the_run_at_once(picture_folder, tmp_path):
    small = (
        "data.name=folder data.size=16 model.ch_mult=(1,1) model.z_channels=32 batch_size=8 log_every=1 disc.start=900"
    )
    often = f"loss.perceptual_start=900 disc.gen_start=900 checkpoint_every=2 steps=900 data.path={picture_folder}"
    command = [sys.executable, "-m", "taming_jax.train", "--config=openmoji_vq", f"--workdir={tmp_path}"]
    command += [f"--config.{setting}" for setting in f"{small} {often}".split()]
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, preexec_fn=limit_files)
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr, done.stderr
    assert f"cannot be written to {tmp_path}: File too large; there is no checkpoint yet" in done.stderr
    assert len(done.stderr.splitlines()) < 5 and "step 9/900" not in done.stdout


def test_steps_that_are_not_finite_change_nothing():
    params, optimizers = {"gen": {"w": jnp.ones(3)}}, {"gen": optax.adam(0.1)}
    state = states.create(optimizers, params, {"gen": {"stats": jnp.ones(2)}}, {"gen": 0.9})

    @jax.jit
    def step(state, loss, grads, stats):
        finite = states.is_finite(loss, grads, stats)
        return states.apply_updates(state, optimizers, grads, {"gen": {"stats": stats}}, {"gen": 0.9}, finite)

    fine = dict(loss=jnp.ones(()), grads={"gen": {"w": jnp.ones(3)}}, stats=jnp.zeros(2))
    assert step(state, **fine).params["gen"]["w"].tolist() != [1, 1, 1]
    bad = [
        dict(loss=jnp.array(jnp.nan)),
        dict(grads={"gen": {"w": jnp.array([1, jnp.inf, 1])}}),
        dict(grads={"gen": {"w": jnp.array([1, 1e25, 1])}}),  # finite, but Adam keeps its square
        dict(stats=jnp.array([0, jnp.nan])),
    ]
    for fields in bad:
        skipped = step(state, **(fine | fields))
        assert skipped.step == 1
        jax.tree.map(np.testing.assert_array_equal, skipped.replace(step=state.step), state)


def test_nothing_that_is_not_finite_is_saved(vq_run, tmp_path):
    config, step, params = completion.load_run(vq_run)
    for place in ("opt", "extra"):
        whole = states.TrainState(np.int32(step), {"gen": params}, {}, {"gen": {}}, {})
        state = whole.replace(**{place: {"gen": {"nu": np.float32([1, np.inf])}}})
        with pytest.raises(UserError, match=f"step 4 is not saved: {place}/gen/nu holds numbers that are not finite"):
            with checkpoint.open_manager(tmp_path) as manager:
                checkpoint.save(manager, state, step, config)
    assert checkpoint.steps(tmp_path) == []


def test_infinities_that_earlier_versions_saved_start_the_optimizer_afresh(picture_folder, tmp_path, monkeypatch):
    config = tiny_vq(picture_folder)
    task, mesh = vqgan.make_task(config), sharding.make_mesh(config.mesh, jax.devices()[:1])
    config.mesh.data = 1
    with jax.set_mesh(mesh), checkpoint.open_manager(tmp_path) as manager:
        state, _ = checkpoint.init_or_restore(manager, task, jax.random.key(0), mesh)
        broken = jax.tree.map(lambda x: x + jnp.inf if x.dtype == jnp.float32 else x, state.opt)
        monkeypatch.setattr(checkpoint, "sum_arrays", lambda tree, real=checkpoint.sum_arrays: (real(tree)[0], {}))
        checkpoint.save(manager, state.replace(opt=broken, step=state.step + 1), 1, config)
        monkeypatch.undo()
        manager.wait_until_finished()
        again, _ = checkpoint.init_or_restore(manager, task, jax.random.key(0), mesh)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again.opt), jax.device_get(state.opt))


def test_memory_is_told_before_it_is_taken(monkeypatch):
    compiled = jax.jit(lambda x: (x @ x).sum()).lower(jnp.ones((512, 512))).compile()
    assert "GiB that the machine has" in memory.describe(compiled)
    monkeypatch.setattr(memory, "host_memory", lambda: 1 << 20)
    with pytest.raises(UserError, match="lower batch_size"):
        memory.describe(compiled)


def catches(pid: int, number: int) -> bool:
    """Whether a process handles a signal by now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return True
    (mask,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_are_heard_while_a_command_is_imported(number, code, tmp_path):
    command = [sys.executable, "-m", "taming_jax.train", "--config=openmoji_vq", f"--workdir={tmp_path / 'run'}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not catches(process.pid, signal.SIGTERM):
        assert process.poll() is None
    process.send_signal(number)
    printed, _ = process.communicate()
    assert process.returncode == code and "Traceback" not in printed


def test_ctrl_c_at_a_prompt_leaves_the_session_alive():
    """Also where a command would end at once, since it has nothing to lose."""
    program = """
import signal, sys
sys.ps1 = "In : "
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let their background jobs ignore it
from taming_jax.stopping import listen
try:
    with listen() as stop, stop.nothing_to_lose():
        signal.raise_signal(signal.SIGINT)  # in this thread; sent to the process, another one may take it
except KeyboardInterrupt:
    print("the session goes on")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "the session goes on\n"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 1])
def test_sigterm_is_heard_while_a_step_is_compiled(start, picture_folder, tmp_path):
    """The first step, when nothing is lost; or one of a later phase, when there is a checkpoint to save."""
    small = f"data.name=folder data.size=64 batch_size=8 data.path={picture_folder} log_every=1"
    small += f" disc.start={start} loss.perceptual_start={start}"
    command = [sys.executable, "-m", "taming_jax.train", "--config=openmoji_vq", f"--workdir={tmp_path}"]
    command += [f"--config.{setting}" for setting in small.split()]
    env = {name: value for name, value in os.environ.items() if name not in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if line.startswith("compiling the training step for Phase(perceptual=True"):
            break
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate()
    assert process.returncode == 75, printed
    assert "compiled in" not in printed
    if start == 0:
        assert "stopped at once, nothing is lost" in printed and checkpoint.steps(tmp_path) == []
    else:
        assert "stopped at step 1, checkpoint saved" in printed and checkpoint.steps(tmp_path) == [1]
