"""Masked decoding: the schedule and the choices of the original's own runs, and a transformer that fills in codes."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taming_jax import completion, losses
from taming_jax.errors import UserError
from taming_jax.generator import Generator
from taming_jax.loop import train
from taming_jax.sampling import masked
from taming_jax.sampling.draw import Sampling
from taming_jax.second_stage import make_second_stage
from taming_jax.tasks.transformer import load_first_stages
from tests.tiny import changed, records, run, tiny_transformer

GOLDEN = Path(__file__).parent / "golden" / "successors"


@pytest.mark.parametrize("name", ["dev_maskgit_bert_steps", "dev_maskgit_uvit_steps"])
def test_what_is_kept_and_hidden_again_is_the_originals(name):
    """1d-tokenizer's greedy runs: from its logits of the first steps, the ids that it fed to the next ones."""
    arrays = np.load(GOLDEN / f"{name}.npz")
    config = json.loads(str(arrays["config"]))
    greedy = [case for case in config["cases"] if case["temp"] == 0]
    for case in greedy:
        ids, logits = (arrays[f"out/gen/{case['name']}/{what}"] for what in ("ids", "logits"))
        mask_id, total = config["vocab"], ids.shape[-1]
        for step, now in enumerate(logits):
            hidden, codes = ids[step] == mask_id, np.where(ids[step] == mask_id, now.argmax(-1), ids[step])
            # The original is sure by logits, whatever they sum to.
            scores = np.where(hidden, np.take_along_axis(now, codes[..., None], -1)[..., 0], np.inf)
            left = np.minimum(masked.left_hidden(step, case["steps"], total), hidden.sum(-1)[0] - 1)
            again = masked.unsure(jnp.asarray(scores), jnp.full(len(codes), left))
            np.testing.assert_array_equal(np.where(again, mask_id, codes), ids[step + 1])
    assert greedy


def test_loss_is_the_originals():
    arrays = np.load(GOLDEN / "dev_tok1d_losses.npz")
    logits, labels, mask = (arrays[f"in/token_{name}"] for name in ("logits", "labels", "mask"))
    found = [key for key in arrays.files if key.startswith("out/mlm_loss/")]
    for key in found:
        smoothing, weight = map(float, key.rpartition("/")[2].removeprefix("s").split("_u"))
        ours = losses.masked_cross_entropy(logits, labels, mask > 0, smoothing, weight)
        np.testing.assert_allclose(ours, arrays[key], rtol=1e-5)
    assert len(found) == 3


def test_the_schedule_ends_and_hides_in_training_what_it_hides_in_sampling():
    left = [int(masked.left_hidden(step, 8, 64)) for step in range(8)]
    assert left == sorted(left, reverse=True) and left[-1] == 0 and 0 < left[0] < 64
    hidden = masked.draw_hidden(jax.random.key(0), (4000, 16))
    counts = np.bincount(hidden.sum(-1), minlength=17) / 4000
    assert counts[0] == 0
    # A share of arccos(u) is at most x with the probability 1 - cos(pi/2 x).
    at_most = 1 - np.cos(np.pi / 2 * (np.arange(1, 16) + 0.5) / 16)
    np.testing.assert_allclose(counts.cumsum()[1:16], at_most, atol=0.03)


def masked_config(vq_run, **fields):
    return changed(tiny_transformer(vq_run), gpt__context__kind="masked", cond__drop=0.1, **fields)


@pytest.fixture(scope="module")
def stage(vq_run):
    """A masked transformer with random weights, as in training and as sampling has them."""
    stage = make_second_stage(completion.complete(masked_config(vq_run)))
    params = jax.tree.map(lambda x: 5 * x, stage.init(jax.random.key(0)))
    return stage, params, stage.decode_params(params)


def test_codes_see_all_that_is_not_hidden(stage):
    stage, params, _ = stage
    ids = jax.random.randint(jax.random.key(1), (2, 64), 0, 32)
    c, hidden = jnp.zeros((2, 1), jnp.int32), jnp.arange(64)[None].repeat(2, 0) % 3 == 0
    logits = stage.logits(params, c, ids, hidden)
    assert logits.shape == (2, 64, 32)
    np.testing.assert_array_equal(stage.logits(params, c, jnp.where(hidden, 7, ids), hidden), logits)
    later = stage.logits(params, c, ids.at[:, 62].add(1), hidden)
    assert (later[:, 0] != logits[:, 0]).any(-1).all()


def test_a_painting_depends_on_nothing_around_it(stage):
    """Whatever the batch is; codes that stay do so, and one pass for each code is as many as there are."""
    stage, _, params = stage
    paint = stage.make_painter()
    keys, c = jax.random.split(jax.random.key(2), 3), jnp.zeros((3, 1), jnp.int32)
    codes = jax.random.randint(jax.random.key(3), (3, 8, 8), 0, 32)
    known = np.arange(64).reshape(8, 8) % 5 == 0

    def painted(rows: slice, known, passes: int) -> list:
        sampling = Sampling(passes=passes)
        parts = paint(params, c[rows], codes[rows], known, keys[rows], sampling)
        return [(np.asarray(codes), done) for codes, done in parts]

    whole = painted(slice(3), known, 5)
    assert [done for _, done in whole] == sorted(done for _, done in whole) and whole[-1][1] == 64 and len(whole) == 5
    np.testing.assert_array_equal(whole[-1][0][:, known], codes[:, known])
    np.testing.assert_array_equal(painted(slice(1, 2), known, 5)[-1][0], whole[-1][0][1:2])
    last_one = np.ones((8, 8), bool)
    last_one[3, 3] = False
    assert len(painted(slice(3), last_one, 5)) == 1
    assert painted(slice(3), np.ones((8, 8), bool), 5)[-1][1] == 64


def test_one_program_paints_what_the_painter_paints(stage, vq_run):
    stage, _, params = stage
    gen = load_first_stages(completion.complete(masked_config(vq_run)), stage)["gen"]
    keys, c, sampling = jax.random.split(jax.random.key(2), 2), jnp.zeros((2, 1), jnp.int32), Sampling(passes=3)
    empty, known = jnp.zeros((2, 8, 8), jnp.int32), np.zeros((8, 8), bool)
    codes = list(stage.make_painter()(params, c, empty, known, keys, sampling))[-1][0]
    images = jax.jit(lambda params, gen: stage.sample(params, gen, c, keys, sampling))(params, gen)
    np.testing.assert_allclose(images, stage.first.decode(gen, codes), atol=1e-4)


@pytest.mark.slow
def test_it_trains_and_paints(vq_run, tmp_path):
    workdir = tmp_path / "masked"
    train(masked_config(vq_run), workdir)
    assert records(workdir, "validation")[-1]["masked_nll"] < 4
    generator = Generator.load(workdir)
    one = generator.sample(classes=["cross"], passes=4, progress=False)
    kept = generator.sample(classes=["cross"], passes=4, image=one[0], keep="top", progress=False)
    np.testing.assert_array_equal(kept[0, :8], one[0, :8])
    assert (generator.sample(classes=["cross"], passes=4, guidance=50.0, progress=False) != one).any()
    for given, message in (
        (dict(stride=2), "stride=2, speculate=1: ways of a transformer that writes code by code"),
        (dict(size="16x32"), "size=16x32: a sliding window follows rows; a masked transformer has none"),
        (dict(passes=0), "passes=0: it must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            generator.sample(classes=["cross"], progress=False, **given)
    with pytest.raises(UserError, match="score: a masked transformer does not say how likely"):
        generator.score(one, classes=["cross"])
    done = run("sample", f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--animate=gif")
    assert done.returncode == 2
    assert done.stderr == "error: --animate: each pass of a masked transformer writes the whole image\n"


def test_what_does_not_fit_gets_one_line(vq_run, generator):
    for fields, message in (
        (dict(order="spiral_in"), "order=spiral_in: with gpt.context.kind='masked' it must be row_major"),
        (dict(noise_until=3), "noise_until=3: with gpt.context.kind='masked' it must be 0"),
        (dict(canvas=(32, 32)), "canvas: a masked transformer paints images as large as in training"),
        (dict(gpt__architecture="llamagen"), "gpt.context.kind=masked: with gpt.architecture='llamagen' it must be"),
    ):
        with pytest.raises(UserError, match=message):
            completion.complete(masked_config(vq_run, **fields))
    with pytest.raises(UserError, match="passes: it is for a masked transformer; this one writes code by code"):
        generator.sample(passes=8)
