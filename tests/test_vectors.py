"""What a transformer's training makes of the codebook's vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taming_jax import checkpoint, completion, losses
from taming_jax.errors import UserError
from taming_jax.loop import train
from taming_jax.models.vectors import VectorGuesses, spread
from taming_jax.second_stage import make_second_stage
from taming_jax.tasks import transformer
from taming_jax.writer import LOG, read_records
from tests.test_sharding import losses_on
from tests.tiny import changed, mesh_of, tiny_transformer

WAVEFRONT = dict(gpt__context__kind="wavefront", gpt__context__reach=(3, 3))


def cosines(rows: jax.Array) -> jax.Array:
    unit = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return unit @ unit.T


def test_the_distance_of_vectors():
    """From 0, of one direction, to 2; of what there is alone, and of short ones, too."""
    vectors = jnp.asarray([[1e-4, 0.0], [0.0, 2.0], [3.0, 4.0]])
    guessed = jnp.asarray([[7.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    np.testing.assert_allclose(losses.cosine_distance(guessed, vectors), (0 + 2 + 0.4) / 3, rtol=1e-5)
    known = jnp.asarray([True, False, True])
    np.testing.assert_allclose(losses.cosine_distance(guessed, vectors, known), 0.2, rtol=1e-5)
    assert losses.cosine_distance(guessed, vectors, jnp.zeros(3, bool)) == 0


@pytest.mark.parametrize(("num_layers", "deep"), [(1, 0), (4, 2), (24, 17)])
def test_guesses_follow_from_the_first_layer_and_from_three_quarters(num_layers, deep):
    guesses, layers = VectorGuesses(5, 2), jax.random.normal(jax.random.key(0), (num_layers, 1, 3, 8))
    params = guesses.init(jax.random.key(1), layers)["params"]
    before = guesses.apply({"params": params}, layers)
    for n in range(num_layers):
        moved = [
            (a != b).any() for a, b in zip(guesses.apply({"params": params}, layers.at[n].add(1)), before, strict=True)
        ]
        assert moved == [n == 0, n == deep]


@pytest.mark.parametrize("fields", [{}, WAVEFRONT])
def test_positions_read_what_their_logits_follow_from(fields, vq_run):
    """In one layer whose attention adds nothing, what comes out of a position changes with the codes it reads alone."""
    stage = make_second_stage(completion.complete(changed(tiny_transformer(vq_run), gpt__num_layers=1, **fields)))
    params = stage.init(jax.random.key(0))
    params["blocks"] = {**params["blocks"]}
    for name in ("attn", "proj"):
        if name in params["blocks"]:
            params["blocks"][name] = jax.tree.map(jnp.zeros_like, params["blocks"][name])
    n = stage.first.side**2
    ids, c = jax.random.randint(jax.random.key(1), (1, n), 0, 32), jnp.zeros((1, 1), jnp.int32)
    run = jax.jit(lambda ids: stage.logits_and_outputs(params, c, ids))
    logits, outputs = run(ids)
    assert outputs.shape == (1, 1, n, 32)
    np.testing.assert_allclose(logits, stage.logits(params, c, ids), rtol=1e-5, atol=1e-6)
    numbers, known = stage.codes_read(jnp.arange(n)[None])  # of each code, its number
    for code in (0, 9, n - 1):
        moved = (run(ids.at[0, code].add(1))[1] != outputs).any(-1)[0, 0]
        np.testing.assert_array_equal(moved, ((numbers[0] == code) & known).any(-1))


def test_vectors_spread_keep_their_likeness():
    """Cosines of directions from the mean, whatever their lengths; of a code in the middle, nothing."""
    vectors = jnp.concatenate([3 * jax.random.normal(jax.random.key(0), (6, 4)) + 1, jnp.ones((1, 4))])
    vectors = vectors.at[6].set(vectors[:6].mean(0))
    rows = spread(vectors, 4096, jax.random.key(1))
    np.testing.assert_allclose(cosines(rows[:6]), cosines(vectors[:6] - vectors.mean(0)), atol=0.07)
    np.testing.assert_allclose(rows[:6].std(), 1, atol=0.05)
    assert jnp.abs(rows[6]).max() < 2


@pytest.mark.parametrize(("cond", "tables"), [("class", 2), ("image", 3)])
def test_tables_begin_with_the_codebook(cond, tables, vq_run):
    """Rows of codes alone, by as much as asked, like each other as codes are; without the first stage at hand, none."""
    config = changed(tiny_transformer(vq_run), vector_init=0.5, gpt__embed_dim=256, **WAVEFRONT)
    config = completion.complete(changed(config, cond__name=cond, cond__workdir=str(vq_run)))
    task, frozen, key = transformer.make_task(config), transformer.make_task(config).load_frozen(), jax.random.key(0)
    plain, begun = (jax.jit(task.init)(key, None, known).params["gpt"] for known in (None, frozen))
    stage = make_second_stage(config)
    book = stage.first.codebook(frozen["gen"])
    assert len(stage.tables) == tables and set(stage.tables) <= set(plain)
    for name in plain:
        if name not in stage.tables:
            jax.tree.map(np.testing.assert_array_equal, begun[name], plain[name])
            continue
        added = begun[name] - plain[name]
        assert 0.3 < added[:32].std() < 0.7 and not added[32:].any(), name
        np.testing.assert_allclose(cosines(added[:32]), cosines(book - book.mean(0)), atol=0.4)
    assert (begun["left_embedding"] != begun["above_embedding"]).any()


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, WAVEFRONT | dict(gpt__architecture="modern", vector_init=0.1)])
def test_a_transformer_learns_vectors_beside_ids(fields, picture_folder, vq_run, tmp_path):
    """With all that saves memory on; the guesses are of the training alone."""
    config = changed(tiny_transformer(vq_run), vector_weight=1.0, gpt__remat="dots", accumulate=2, **fields)
    config.update(batch_size=16, mesh=mesh_of(data=-1, fsdp=2), steps=12, eval_every=12, checkpoint_every=12)
    train(config, tmp_path / "run")
    far = [line["vector_loss"] for line in read_records(tmp_path / "run" / LOG) if "vector_loss" in line]
    assert len(far) == 12 and 0 < far[-1] < far[0] - 0.05
    assert "guesses" in checkpoint.read_metadata(tmp_path / "run", 12)["params"]
    stored, _, params = completion.load_run(tmp_path / "run")
    assert set(params) == set(completion.net_shapes(stored))
    again = changed(config, init_from=str(tmp_path / "run"), steps=1, eval_every=1)
    assert np.isfinite(train(again, tmp_path / "again")["nll"])  # whose guesses begin anew


@pytest.mark.slow
def test_without_weight_they_change_nothing(picture_folder, vq_run):
    """Neither the loss of ids nor what is learned from it."""
    config = completion.complete(changed(tiny_transformer(vq_run), **WAVEFRONT))
    config.data.class_names = ("circle", "cross", "square")

    def run(**fields) -> list[dict]:
        task = transformer.make_task(changed(config, **fields))
        return losses_on(task, config, mesh_of(), jax.devices()[:1])

    for a, b in zip(run(), run(vector_weight=1e-20), strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        assert 0 < b["vector_loss"] < 4


def test_who_has_none(vq_run):
    for name, value in (("architecture", "rar"), ("architecture", "llamagen"), ("context__kind", "masked")):
        with pytest.raises(UserError, match=r"vector_weight=1\.0: with gpt\..* it must be 0"):
            completion.complete(changed(tiny_transformer(vq_run), vector_weight=1.0, **{f"gpt__{name}": value}))
    for kind in ("window", "masked"):
        with pytest.raises(UserError, match=rf"vector_init=0\.1: with gpt\.context\.kind='{kind}' it must be 0"):
            completion.complete(changed(tiny_transformer(vq_run), vector_init=0.1, gpt__context__kind=kind))
