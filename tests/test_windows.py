"""The sliding window: however it is computed, the codes are those of the plain loop."""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from taming_jax.models.gpt import GPT
from taming_jax.sampling import painter
from taming_jax.sampling.draw import Sampling, filter_logits, guide
from taming_jax.sampling.wavefront import paint_wavefront
from taming_jax.sampling.window import Grid, Sampler, column_groups, window_start

WINDOW, VOCAB = 4, 13


def make(prefix: int) -> tuple[GPT, dict]:
    drops = dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    sizes = dict(num_layers=2, num_heads=2, embed_dim=16, n_unmasked=0, unrolled=True)
    model = GPT(VOCAB, prefix + WINDOW**2 - 1, **sizes, **drops)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    shaken = lambda p: p + 0.3 * jax.random.normal(jax.random.key(p.size), p.shape)  # noqa: E731
    return model, jax.tree.map(shaken, params)


def make_decode(model: GPT) -> Callable:
    """`decode` as painters take it."""
    return lambda params, ids, position, cache, at: model.apply(
        {"params": params}, ids, position, cache, at=at, method="decode"
    )


def plain(model, params, cond, codes, known, keys, stride, temperature, top_k, top_p) -> np.ndarray:
    """The whole window through the whole transformer for each code, as the original does it."""
    codes, (b, h, w) = np.where(known, codes, 0), codes.shape
    forward = jax.jit(lambda ids: model.apply({"params": params}, ids))
    groups = column_groups(w, WINDOW, stride)
    lefts = {j: left for left, first, count in groups for j in range(first, first + count)}
    for i, j in np.ndindex(h, w):
        top, left = int(window_start(np.int64(i), WINDOW, h)), lefts[j]
        prefix = cond
        if cond.ndim == 3:
            finer = cond.shape[1] // h
            rows, columns = (slice(x * finer, (x + WINDOW) * finer) for x in (top, left))
            prefix = cond[:, rows, columns].reshape(b, -1)
        elif cond.ndim == 4:
            prefix = cond[:, top, left]
        ids = np.concatenate([prefix, codes[:, top : top + WINDOW, left : left + WINDOW].reshape(b, -1)], 1)[:, :-1]
        logits = forward(ids)[:, prefix.shape[1] - 1 + (i - top) * WINDOW + j - left]
        logits = filter_logits(logits / temperature, top_k, top_p)
        for n in range(b if not known[i, j] else 0):
            codes[n, i, j] = jax.random.categorical(jax.random.fold_in(keys[n], i * w + j), logits[n])
    return codes


# Grid, codes of the condition for each code of the grid's sides (0: one id for all, -1: two for each place of the
# window), stride, whether caches are kept.
CASES = {
    "wavefront": [(9, 4, 0, 1, True), (10, 11, 1, 1, True), (7, 6, -1, 1, True)],
    "cached": [(9, 4, 0, 1, True), (10, 11, 1, 1, True), (10, 7, 2, 2, False), (9, 7, -1, 2, True)],
}
QUICK = ((9, 4, 0, 1, True),)


@pytest.mark.parametrize(
    ("method", "case"),
    [
        pytest.param(m, case, marks=() if case in QUICK else pytest.mark.slow)
        for m, cases in CASES.items()
        for case in cases
    ],
)
def test_the_same_codes_as_the_plain_loop(method, case, monkeypatch):
    """With some codes given, by chance; for grids that rest, that move, and that do both, under any condition."""
    h, w, finer, stride, kept = case
    if not kept:
        monkeypatch.setattr(painter, "KEPT_BYTES", 0)
    rng = np.random.default_rng(h * w)
    shapes = {0: (2, 1), -1: (2, h - WINDOW + 1, w - WINDOW + 1, 2)}
    cond = rng.integers(0, VOCAB, shapes.get(finer, (2, h * finer, w * finer)))
    model, params = make({0: 1, -1: 2}.get(finer, WINDOW**2 * finer**2))
    codes, known = rng.integers(0, VOCAB, (2, h, w)), rng.random((h, w)) < 0.2
    keys, options = jax.random.split(jax.random.key(1), 2), (1.1, 9, 0.95)
    decode = make_decode(model)
    paint = painter.make_painter(decode, model.init_cache, WINDOW, method, stride)
    *_, (grid, done) = paint(
        params, jnp.asarray(cond), jnp.asarray(codes), jnp.asarray(known), keys, Sampling(*options)
    )
    np.testing.assert_array_equal(grid, plain(model, params, cond, codes, known, keys, stride, *options))
    assert done == h * w
    np.testing.assert_array_equal(np.asarray(grid)[:, known], codes[:, known])


@pytest.mark.slow
def test_guesses_where_the_window_rests():
    """Under guidance, with some codes given: the likeliest are those of one by one, and a batch changes nothing."""
    rng, (h, w), (model, params) = np.random.default_rng(0), (6, 7), make(1)
    cond, codes = jnp.asarray(rng.integers(0, VOCAB - 1, (2, 1))), jnp.asarray(rng.integers(0, VOCAB, (2, h, w)))
    known, keys = jnp.asarray(rng.random((h, w)) < 0.2), jax.random.split(jax.random.key(1), 2)
    decode, init_cache = guide(make_decode(model), model.init_cache, length=1, null=VOCAB - 1, total=WINDOW**2)
    painters = {k: painter.make_painter(decode, init_cache, WINDOW, guesses=k) for k in (1, 3)}

    def paint(guesses: int, sampling: Sampling, rows: slice = slice(None)) -> np.ndarray:
        given = cond[rows], codes[rows], known, keys[rows], sampling
        *_, (grid, _) = painters[guesses]((params, sampling), *given)
        return np.asarray(grid)

    likeliest, free = Sampling(top_k=1, guidance=3.0), Sampling(guidance=1.5)
    np.testing.assert_array_equal(paint(3, likeliest), paint(1, likeliest))
    both = paint(3, free)
    np.testing.assert_array_equal(both, np.concatenate([paint(3, free, slice(n, n + 1)) for n in (0, 1)]))
    assert (both[0] != both[1])[~np.asarray(known)].any()
    np.testing.assert_array_equal(both[:, known], codes[:, known])


def test_a_wavefront_of_a_batch_on_two_devices_moves_nothing_between_them():
    model, params = make(1)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    decode = make_decode(model)
    cond, keys = jnp.zeros((2, 1), jnp.int32), jax.random.split(jax.random.key(0), 2)
    codes, known = jnp.zeros((2, 6, 9), jnp.int32), jnp.zeros((6, 9), bool)

    def step(params, cond, codes, keys):
        sampler = Sampler(functools.partial(decode, params), model.init_cache, WINDOW, keys, Sampling(1.0, 9, 0.9))
        return paint_wavefront(sampler, cond, Grid(codes, known), 7).codes

    batch = [jax.device_put(x, split) for x in (cond, codes, keys)]
    compiled = jax.jit(step).lower(params, *batch).compile()
    assert not re.search(r"all-(gather|reduce|to-all)|collective-permute", compiled.as_text())
    np.testing.assert_array_equal(compiled(params, *batch), jax.jit(step)(params, cond, codes, keys))


def test_groups_of_columns():
    assert column_groups(7, 4, 1) == [(0, 0, 3), (1, 3, 1), (2, 4, 1), (3, 5, 2)]
    for size, window, stride in ((64, 16, 1), (64, 16, 8), (33, 16, 3), (16, 16, 4), (40, 16, 2)):
        groups = column_groups(size, window, stride)
        assert [j for _, start, count in groups for j in range(start, start + count)] == list(range(size))
        for left, start, count in groups:
            assert 0 <= left <= size - window and left <= start and start + count <= left + window


@pytest.mark.parametrize("method", [pytest.param("cached", marks=pytest.mark.slow), "wavefront"])
def test_another_seed_or_temperature_compiles_nothing(method):
    model, params = make(1)
    traces = []

    def decode(params, ids, position, cache, at):
        traces.append(1)
        return model.apply({"params": params}, ids, position, cache, at=at, method="decode")

    paint = painter.make_painter(decode, model.init_cache, WINDOW, method)
    for seed in range(2):
        keys = jax.random.split(jax.random.key(seed), 1)
        codes, known = jnp.zeros((1, 6, 6)), jnp.zeros((6, 6), bool)
        list(paint(params, jnp.full((1, 1), seed), codes, known, keys, Sampling(1.0 + seed, 9, 1.0)))
        if method == "wavefront":
            assert len(traces) == (1 if seed == 0 else 0)
        seen, traces = len(traces), []
    assert seen == 0


@pytest.mark.parametrize(
    ("cond", "codes", "known", "message"),
    [
        ((1, 1), (1, 3, 9), (3, 9), "3x9 codes is smaller than the window of 4x4"),
        ((1, 1), (1, 6, 6), (6, 5), r"mask of known codes is \(6, 5\)"),
        ((1, 5, 6), (1, 6, 6), (6, 6), r"condition is \(1, 5, 6\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(cond, codes, known, message):
    paint = painter.make_painter(None, None, WINDOW)
    with pytest.raises(ValueError, match=message):
        list(paint({}, jnp.zeros(cond), jnp.zeros(codes), jnp.zeros(known, bool), None, Sampling()))


@pytest.mark.parametrize(("method", "stride"), [("cached", 0), ("cached", 3), ("wavefront", 2), ("other", 1)])
def test_ways_that_do_not_exist_are_refused(method, stride):
    with pytest.raises(ValueError, match=r"stride=|method="):
        painter.make_painter(None, None, WINDOW, method, stride)
