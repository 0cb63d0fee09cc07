"""The sampler: its filters, and that a row depends on its own key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taming_jax.sampling import draw, sequence
from taming_jax.sampling.draw import Sampling
from taming_jax.sampling.sequence import sample_full
from tests.tiny import sample_plainly

LOGITS = jnp.log(jnp.array([0.4, 0.1, 0.3, 0.15, 0.05]))


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (5, 1.0, [0, 1, 2, 3, 4]),
        (1, 1.0, [0]),
        (3, 1.0, [0, 2, 3]),
        (5, 0.65, [0, 2]),  # 0.4 + 0.3 passes 0.65
        (5, 0.75, [0, 2, 3]),  # the first that passes stays
        (5, 0.01, [0]),
        (3, 0.8, [0, 2]),  # of what top-k left, renormalised: 0.47 + 0.35 passes 0.8
    ],
)
def test_filters_keep_exactly(top_k, top_p, kept):
    filtered = jax.jit(draw.filter_logits)(LOGITS[None], top_k, top_p)[0]
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(filtered)), kept)
    np.testing.assert_array_equal(filtered[np.array(kept)], LOGITS[np.array(kept)])


def test_ties_at_the_kth_value_all_stay():
    filtered = draw.filter_logits(jnp.array([1.0, 2.0, 2.0, 0.0]), 1, 1.0)
    np.testing.assert_array_equal(np.isfinite(filtered), [False, True, True, False])


def test_top_p_of_one_keeps_all_of_a_peaked_distribution():
    logits = jnp.array([30.0] + [0.0] * 1000)
    assert np.isfinite(draw.filter_logits(logits, 1001, 1.0)).all()


def counting_decode(ids, position, cache):
    """A model whose next id follows from all ids so far: logits favour (sum of ids so far + 1) mod 7.

    cache: the ids so far, [B,T,1].
    """
    cache = jax.lax.dynamic_update_slice_in_dim(cache, ids[..., None], position, 1)
    total = jax.lax.dynamic_slice_in_dim(jnp.cumsum(cache[..., 0], 1), position, ids.shape[1], 1)
    return 20.0 * jax.nn.one_hot((total + 1) % 7, 7), cache


@pytest.mark.parametrize("length", [5, 1, 2 * sequence.LEAST + 1, sequence.LENGTHS * sequence.LEAST + 11])
def test_every_id_follows_from_all_before_it(length: int):
    """Also where the cache grows on the way, whole steps or not."""
    prefix = jnp.array([[2, 3], [1, 1]])
    keys = jax.random.split(jax.random.key(0), 2)
    ids = sample_plainly(counting_decode, jnp.zeros((2, 2 + length, 1), jnp.int32), prefix, length, keys, 7)
    assert ids.shape == (2, length)
    for row, start in zip(np.asarray(ids), np.asarray(prefix), strict=True):
        total = int(start.sum())
        for value in row:
            assert value == (total + 1) % 7
            total += int(value)


def uniform_decode(ids, position, cache):
    return jnp.zeros((*ids.shape, 50)), cache


def test_a_row_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(0), 4)
    drawn = lambda keys: sample_plainly(uniform_decode, (), np.zeros((len(keys), 1), int), 16, keys, 50)  # noqa: E731
    together = drawn(keys)
    np.testing.assert_array_equal(drawn(keys[2:3])[0], together[2])
    assert len({tuple(row) for row in np.asarray(together).tolist()}) == 4
    assert len(np.unique(together[0])) > 5  # positions differ too


def test_temperature_and_filters_compile_nothing_new():
    traces = []

    def decode(ids, position, cache):
        traces.append(1)
        return uniform_decode(ids, position, cache)

    for i, (temperature, top_k, top_p) in enumerate([(1.0, 50, 1.0), (0.5, 3, 0.9), (2.0, 1, 0.1)]):
        keys = jax.random.split(jax.random.key(i), 2)
        sample_plainly(decode, (), np.zeros((2, 1), int), 4, keys, top_k, temperature, top_p)
    assert len(traces) == 2  # the prefix, and one more id


def test_codes_that_are_known_stay_and_are_seen():
    """Given 5 at places 0 and 2: what follows counts on from there."""
    codes, known = jnp.full((1, 5), 5), jnp.array([True, False, True, False, False])
    keys, places = jax.random.split(jax.random.key(0), 1), jnp.arange(5)
    run = lambda: sample_full(  # noqa: E731
        counting_decode,
        jnp.zeros((1, 6, 1), jnp.int32),
        jnp.array([[2]]),
        codes,
        known,
        places,
        keys,
        Sampling(1.0, 7, 1.0),
    )
    np.testing.assert_array_equal(
        run(), [[5, (2 + 5 + 1) % 7, 5, (2 + 5 + 1 + 5 + 1) % 7, (2 + 5 + 1 + 5 + 0 + 1) % 7]]
    )


def test_guidance_weighs_the_condition():
    """Against the formula, with logits that tell which ids the model saw; a scale of 1 is the model itself."""

    def decode(params, ids, position, cache, at):
        seen = cache[:, None] + jnp.cumsum(ids, 1)
        logits = params * jax.nn.one_hot(seen % 5, 5)
        return (logits if at is None else jnp.take_along_axis(logits, at[:, None, None], 1)), seen[:, -1]

    guided, init_cache = draw.guide(decode, lambda b: jnp.zeros(b, jnp.int32), length=2, null=9, total=3)
    ids, dropped = jnp.array([[1, 2, 3], [4, 0, 2]]), jnp.array([[9, 9, 3], [9, 9, 2]])
    at = jnp.array([2, 2])
    plain, without = (decode(2.0, x, 0, jnp.zeros(2, jnp.int32), at)[0] for x in (ids, dropped))
    for scale in (1.0, 3.0):
        logits, cache = guided((2.0, Sampling(guidance=scale)), ids, 0, init_cache(2), at)
        np.testing.assert_allclose(logits, without + scale * (plain - without), atol=1e-6)
    following, _ = guided(
        (2.0, Sampling()), jnp.array([[1], [1]]), 3, cache
    )  # ids behind the condition are the same for both
    np.testing.assert_allclose(following[:, 0], 2 * jax.nn.one_hot((ids.sum(1) + 1) % 5, 5))
