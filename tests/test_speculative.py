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
from taming_jax.sampling.draw import Sampling
from taming_jax.sampling.sequence import sample_full
from taming_jax.sampling.speculative import sample_speculative

V, N, PREFIX = 3, 4, (1, 2)
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
    """By chi-square over 200,000 draws with fixed seeds."""
    draw = functools.partial(
        sample_speculative, decode, CACHE, jnp.array(PREFIX), jnp.zeros(N, jnp.int32), jnp.zeros(N, bool),
        sampling=sampling, guesses=guesses, num_ids=V,
    )  # fmt: skip
    ids, passes = jax.jit(jax.vmap(lambda key: draw(key=key)))(jax.random.split(jax.random.key(1), 200_000))
    counts = np.bincount(np.asarray(ids) @ V ** np.arange(N)[::-1], minlength=V**N)
    expected = exact(sampling)
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    assert stats.chisquare(counts[possible], 200_000 * expected[possible]).pvalue > 0.001
    assert 1 < passes.mean() < N  # some guesses were right


@pytest.mark.parametrize("guesses", [2, 4])
def test_the_likeliest_codes_are_those_of_one_by_one(guesses):
    """With one code given."""
    codes, known = jnp.array([0, 2, 0, 0], jnp.int32), jnp.array([False, True, False, False])
    ids, _ = sample_speculative(
        decode, CACHE, jnp.array(PREFIX), codes, known, jax.random.key(0), Sampling(top_k=1), guesses, V
    )
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
    for given, message in (
        (dict(size="32x32"), "speculate=8: for images as large as in training, and size is 32x32"),
        (dict(stride=2), "speculate=8: it goes with neither method='cached' nor stride=2"),
    ):
        with pytest.raises(UserError, match=message):
            generator.sample(speculate=8, **asked, **given)
    with pytest.raises(UserError, match="speculate=0: it must be at least 1"):
        generator.sample(speculate=0, **asked)
