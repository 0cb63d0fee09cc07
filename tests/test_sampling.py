"""The sampler: its filters, and that a row depends on its own key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taming_jax import sampling

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
    filtered = jax.jit(sampling.filter_logits)(LOGITS[None], top_k, top_p)[0]
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(filtered)), kept)
    np.testing.assert_array_equal(filtered[np.array(kept)], LOGITS[np.array(kept)])


def test_ties_at_the_kth_value_all_stay():
    filtered = sampling.filter_logits(jnp.array([1.0, 2.0, 2.0, 0.0]), 1, 1.0)
    np.testing.assert_array_equal(np.isfinite(filtered), [False, True, True, False])


def test_top_p_of_one_keeps_all_of_a_peaked_distribution():
    logits = jnp.array([30.0] + [0.0] * 1000)
    assert np.isfinite(sampling.filter_logits(logits, 1001, 1.0)).all()


def counting_decode(ids, position, cache):
    """A model whose next id follows from all ids so far: logits favour (sum of ids so far + 1) mod 7."""
    total = cache[:, None] + jnp.cumsum(ids, 1)
    return 20.0 * jax.nn.one_hot((total + 1) % 7, 7), total[:, -1]


def test_every_id_follows_from_all_before_it():
    prefix = jnp.array([[2, 3], [1, 1]])
    keys = jax.random.split(jax.random.key(0), 2)
    ids = sampling.sample_full(counting_decode, jnp.zeros(2, jnp.int32), prefix, 5, keys, 1.0, 7, 1.0)
    for row, start in zip(np.asarray(ids), np.asarray(prefix), strict=True):
        total = int(start.sum())
        for value in row:
            assert value == (total + 1) % 7
            total += int(value)


def uniform_decode(ids, position, cache):
    return jnp.zeros((*ids.shape, 50)), cache


def test_a_row_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(0), 4)
    draw = lambda keys: sampling.sample_full(  # noqa: E731
        uniform_decode, (), jnp.zeros((len(keys), 1), jnp.int32), 16, keys, 1.0, 50, 1.0
    )
    together = draw(keys)
    np.testing.assert_array_equal(draw(keys[2:3])[0], together[2])
    assert len({tuple(row) for row in np.asarray(together).tolist()}) == 4
    assert len(np.unique(together[0])) > 5  # positions differ too


def test_temperature_and_filters_compile_nothing_new():
    traces = []

    @jax.jit
    def draw(keys, temperature, top_k, top_p):
        traces.append(1)
        prefix = jnp.zeros((2, 1), jnp.int32)
        return sampling.sample_full(uniform_decode, (), prefix, 4, keys, temperature, top_k, top_p)

    for i, options in enumerate([(1.0, 50, 1.0), (0.5, 3, 0.9), (2.0, 1, 0.1)]):
        draw(jax.random.split(jax.random.key(i), 2), *options)
    assert len(traces) == 1
