"""Speculative decoding draws from the transformer's own distribution."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import taming_jax
from taming_jax.errors import UserError
from taming_jax.sampling.cache import resize
from taming_jax.sampling.draw import Sampling
from taming_jax.sampling.sequence import sample_full
from taming_jax.sampling.speculative import sample_speculative
from taming_jax.sampling.window import Grid, Sampler, paint_row

V, N, PREFIX, DRAWS = 3, 4, (1, 2), 200_000
RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.normal(size=(N + 2, V, V)) * 1.5, jnp.float32)


def decode(ids: jax.Array, position: jax.Array, cache: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A transformer whose logits are sums over what came before, by distance and id. cache: the ids [1,T,1]."""
    cache = jax.lax.dynamic_update_slice_in_dim(cache, ids[..., None], position, 1)
    at, length = position + jnp.arange(ids.shape[1]), cache.shape[1]
    distance = at[:, None] - jnp.arange(length)
    seen = jnp.where((distance >= 0)[..., None], TABLE[distance.clip(0), cache[0, :, 0]], 0)
    return seen.sum(1)[None], cache


CACHE = jnp.zeros((1, N + len(PREFIX) - 1, 1), jnp.int32)


def exact(sampling: Sampling) -> np.ndarray:
    """The probability of each of V**N outcomes."""
    found = []
    for outcome in itertools.product(range(V), repeat=N):
        ids = jnp.asarray([[*PREFIX, *outcome[:-1]]])
        logits = np.float64(decode(ids, 0, CACHE)[0][0, len(PREFIX) - 1 :]) / sampling.temperature
        if sampling.top_k < V:
            logits[logits < np.sort(logits)[:, [-sampling.top_k]]] = -np.inf
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        found.append(np.prod(p[np.arange(N), outcome]))
    return np.array(found)


@pytest.mark.parametrize(
    ("guesses", "sampling"),
    [
        (3, Sampling(0.7, 2)),
        *(pytest.param(k, s, marks=pytest.mark.slow) for k in (2, 4) for s in (Sampling(), Sampling(0.7, 2))),
    ],
)
def test_the_distribution_is_the_transformers(guesses, sampling):
    """By chi-square, with a fixed seed."""
    draw = functools.partial(
        sample_speculative, decode, CACHE.at[0, 0].set(PREFIX[0]), jnp.array(PREFIX[1]), 1, jnp.zeros(N, jnp.int32),
        jnp.zeros(N, bool), sampling=sampling, guesses=guesses, num_ids=V,
    )  # fmt: skip
    ids, _, passes = jax.jit(jax.vmap(lambda key: draw(key=key)))(jax.random.split(jax.random.key(1), DRAWS))
    check_counts(ids, exact(sampling))
    assert 1 < passes.mean() < N  # some guesses were right


def check_counts(ids: jax.Array, expected: np.ndarray) -> None:
    """Whether draws [DRAWS,N] come from a distribution over all outcomes [V**N]."""
    counts = np.bincount(np.asarray(ids) @ V ** np.arange(ids.shape[1])[::-1], minlength=len(expected))
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], len(ids) * expected[possible]).pvalue > 0.001


def decode_rows(ids: jax.Array, position: jax.Array, cache: jax.Array, at: jax.Array | None = None) -> tuple:
    """`decode` for a batch, and with `at`, as the sliding window calls it."""
    logits, cache = jax.vmap(lambda ids, cache: decode(ids[None], position, cache[None]))(ids, cache)
    logits = logits[:, 0]
    return (logits if at is None else jnp.take_along_axis(logits, at[:, None, None], 1)), cache[:, 0]


@pytest.mark.parametrize("guesses", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_sliding_window_draws_the_same_where_it_rests(guesses):
    """A window of 2x2 over 2x3 codes, of which one is given: two of a row in a pass, then the third."""
    h, w, n, given = 2, 3, 2, 1
    codes = jnp.zeros((1, h, w), jnp.int32).at[0, 0, 1].set(given)
    known = jnp.zeros((h, w), bool).at[0, 1].set(True)
    sampling = Sampling(0.8)

    def paint(key: jax.Array) -> jax.Array:
        sampler = Sampler(
            decode_rows, lambda b: jnp.zeros((b, *CACHE.shape[1:]), jnp.int32), n, key[None], sampling, guesses
        )
        grid, caches = Grid(codes, known), None
        for i, seen in enumerate((2, 3)):
            caches = caches and [resize(cache, CACHE, n * n - 1 - seen) for cache in caches]
            grid, caches = paint_row(sampler, jnp.array([PREFIX]), grid, jnp.int32(i), caches, 1, seen, keep=i + 1 < h)
        return grid.codes.ravel()

    expected = np.zeros(V ** (h * w))
    for number, outcome in enumerate(itertools.product(range(V), repeat=h * w)):
        cells, p = np.reshape(outcome, (h, w)), 1.0
        if cells[0, 1] != given:
            continue
        for i, j in itertools.product(range(h), range(w)):
            left = 0 if j < 2 else 1
            before = cells[:, left : left + n].ravel()[: i * n + j - left]
            logits = np.float64(
                sum(TABLE[len(PREFIX) + len(before) - 1 - k, v] for k, v in enumerate([*PREFIX, *before]))
            )
            share = np.exp(logits / sampling.temperature)
            p *= 1.0 if (i, j) == (0, 1) else share[cells[i, j]] / share.sum()
        expected[number] = p
    check_counts(jax.jit(jax.vmap(paint))(jax.random.split(jax.random.key(2), DRAWS)), expected)


@pytest.mark.parametrize("guesses", [2, 4])
def test_the_likeliest_codes_are_those_of_one_by_one(guesses):
    """With one code given."""
    codes, known = jnp.array([0, 2, 0, 0], jnp.int32), jnp.array([False, True, False, False])
    ids, _, _ = sample_speculative(
        decode, CACHE.at[0, 0].set(PREFIX[0]), jnp.array(PREFIX[1]), 1, codes, known, jax.random.key(0),
        Sampling(top_k=1), guesses, V,
    )  # fmt: skip
    expected = sample_full(
        decode, CACHE, jnp.array([PREFIX]), codes[None], known, jnp.arange(N), jax.random.split(jax.random.key(0), 1),
        Sampling(top_k=1),
    )  # fmt: skip
    np.testing.assert_array_equal(ids, expected[0])
    assert ids[1] == 2


@pytest.mark.slow
def test_a_run_paints_by_guesses(transformer_run):
    """The likeliest codes are those that it paints one by one, also with a part that stays."""
    generator = taming_jax.Generator.load(transformer_run)
    asked = dict(classes=["cross", "circle"], top_k=1, progress=False)
    plain = generator.sample(**asked)
    np.testing.assert_array_equal(generator.sample(speculate=8, **asked), plain)
    kept = dict(asked, image=plain[0], keep="top")
    np.testing.assert_array_equal(generator.sample(speculate=5, **kept), generator.sample(**kept))
    larger = dict(asked, size="24x20")  # where it rests, with caches from row to row, or none
    np.testing.assert_array_equal(generator.sample(speculate=8, **larger), generator.sample(**larger))
    with pytest.raises(UserError, match="speculate=8: it goes with neither method='cached' nor stride=2"):
        generator.sample(speculate=8, stride=2, **asked)
    with pytest.raises(UserError, match="speculate=0: it must be at least 1"):
        generator.sample(speculate=0, **asked)
