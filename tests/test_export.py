"""Programs as StableHLO, run by a process that knows jax and safetensors alone."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taming_jax import checkpoint, completion
from taming_jax.convert.stablehlo import PLATFORMS, to_stablehlo
from taming_jax.errors import ArgumentError, UserError
from taming_jax.generator import Generator
from tests.tiny import changed, run

BATCH, DRAWN = 3, 5
USED = tuple(range(31, 0, -1))  # of the first stage's 32 codes; the other is one more id
# What follows the README's own lines, of several pictures at once.
DEPLOY = f"""
import sys

given = np.load(sys.argv[1])
out = dict(drawn=np.stack(drawn, 1), painted=pictures)
out["ids"] = load("encode")(weights, given["seen"])
out["pictures"] = load("decode")(weights, out["ids"])
logits, cache = begin(transformer, given["condition"])
found = [logits]
for number in range(1, {DRAWN}):
    logits, cache = step(transformer, given["codes"][:, number - 1], np.int32(number), cache)
    found.append(logits)
out["logits"] = np.stack(found, 1)
assert not [name for name in sys.modules if name.startswith(("taming_jax", "flax"))]
np.savez(sys.argv[2], **out)
"""


@pytest.fixture(scope="module")
def used_run(transformer_run, make_once):
    """That second stage, as if it knew some codes of the first alone."""

    def make(workdir):
        config, step = completion.load_config(transformer_run)
        config.first_stage.update(used=USED, unknown="extra")
        with checkpoint.open_manager(workdir) as manager:
            checkpoint.save(manager, checkpoint.load_nets(transformer_run, step), step, config)

    return make_once("used", make)


@pytest.fixture(scope="module")
def exported(used_run, make_once):
    """Those programs in a folder."""
    return make_once("exported", lambda folder: to_stablehlo(used_run, folder))


def test_a_process_without_this_package_gets_the_same_codes_pixels_and_logits(exported, used_run, tmp_path):
    rng = np.random.default_rng(0)
    seen = rng.uniform(-1, 1, (BATCH, 16, 16, 3)).astype(np.float32)
    condition, codes = rng.integers(0, 3, (BATCH, 1), np.int32), rng.integers(0, 32, (BATCH, 64), np.int32)
    np.savez(tmp_path / "given.npz", seen=seen, condition=condition, codes=codes)
    readme = "".join(re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL))
    command = [sys.executable, "-c", readme + DEPLOY, tmp_path / "given.npz", tmp_path / "found.npz"]
    done = subprocess.run(command, cwd=exported, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, generator = np.load(tmp_path / "found.npz"), Generator.load(used_run)
    first, stage = generator.stage.first, generator.stage
    gen, gpt = (jax.device_get(x) for x in (generator.nets["gen"], completion.load_run(used_run)[2]))
    ids = jax.jit(lambda p, x: first.encode(p, {first.input: x}))(gen, seen)
    np.testing.assert_array_equal(found["ids"], ids)
    whole = dataclasses.replace(first, used=())
    np.testing.assert_allclose(found["pictures"], jax.jit(whole.decode)(gen, ids), atol=1e-5)
    logits = jax.jit(stage.logits)(gpt, jnp.asarray(condition), jnp.asarray(codes))
    np.testing.assert_allclose(found["logits"], logits[:, :DRAWN], atol=1e-5)
    drawn = found["drawn"]  # as the README's loop draws, the likeliest
    logits = np.asarray(jax.jit(stage.logits)(gpt, jnp.zeros((1, 1), jnp.int32), drawn))
    np.testing.assert_allclose(np.take_along_axis(logits, drawn[..., None], -1)[..., 0], logits.max(-1), atol=1e-5)
    painted = jax.jit(first.decode)(gen, drawn.reshape(1, 8, 8))
    np.testing.assert_allclose(found["painted"], painted, atol=1e-5)


def test_what_lies_beside_the_programs(exported):
    for name in ("encode", "decode", "begin", "step"):
        program = jax.export.deserialize((exported / f"{name}.stablehlo").read_bytes())
        assert program.platforms == PLATFORMS and "b" in str(program.in_avals[-1].shape)
        assert (exported / f"{name}.stablehlo").stat().st_size < 200_000  # weights are not inside
    told = json.loads((exported / "model.json").read_text())
    assert told["order"] == list(range(64)) and told["class_names"] == ["circle", "cross", "square"]
    assert (told["condition"], told["codes"], told["no_condition"]) == ("class", [8, 8], None)
    readme = (exported / "README.md").read_text()
    assert told["used"] == list(USED) and not re.search(r"SIZE|CHANNELS|LENGTH|SIDE", readme)


def test_what_is_not_exported(exported, transformer_run, tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match=r"to-stablehlo=.* is not empty"):
        to_stablehlo(transformer_run, exported)
    config, step, params = completion.load_run(transformer_run)
    changed(config, gpt__context__kind="wavefront", gpt__vocab_size=None, gpt__block_size=None)
    monkeypatch.setattr(completion, "load_run", lambda workdir: (config, step, params))
    with pytest.raises(UserError, match=r"wavefront transformer.*tokenizer can be exported, --workdir=.*first_stage"):
        to_stablehlo(transformer_run, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_asks_for_one_thing(tmp_path):
    done = run("convert", f"--workdir={tmp_path}", f"--to-stablehlo={tmp_path}", f"--to-torch={tmp_path / 'x'}")
    assert done.returncode == 2 and "give one of --ckpt, --to-torch, --to-diffusers and --to-stablehlo" in done.stderr
