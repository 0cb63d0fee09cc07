"""The wavefront transformer: sampling does what training did, and costs no window."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import openmoji_coordinates_transformer
from taming_jax import completion, losses
from taming_jax.convert.transformer import transformer_to_torch
from taming_jax.errors import UserError
from taming_jax.fields import check_fields
from taming_jax.generator import Generator
from taming_jax.loop import train
from taming_jax.models.gpt import unstack
from taming_jax.models.wave import WaveGPT
from taming_jax.sampling import schedule as painters
from taming_jax.sampling.draw import Sampling
from taming_jax.schedule import Schedule
from tests.tiny import changed, mesh_of, run, tiny_transformer

CODES = 16


def make_net(
    lag: int, reach: tuple[int, int], prefix: int, cells: int = 1, mlp_dim: int | None = None, places: int = 0
) -> tuple[WaveGPT, dict]:
    net = WaveGPT(Schedule(lag, reach), CODES, 5, prefix, cells, 2, 2, 16, 0.0, 0.0, 0.0, mlp_dim, places)
    c = jnp.zeros((1, prefix) if prefix else (1, 2, 2), jnp.int32)
    params = net.init(jax.random.key(0), c, jnp.zeros((1, 2 * cells, 2 * cells), jnp.int32))["params"]
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return net, jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), params)


@pytest.mark.parametrize(
    ("lag", "reach", "size", "prefix", "cells", "mlp_dim"),
    [
        (3, (4, 4), (9, 13), 2, 1, 24),  # no chunk of 32 steps divides them
        (1, (2, 3), (8, 6), 0, 2, None),  # the condition on a coarser grid
        pytest.param(9, (3, 3), (7, 8), 1, 1, None, marks=pytest.mark.slow),  # raster
        pytest.param(2, (8, 8), (3, 5), 0, 1, 24, marks=pytest.mark.slow),  # all is near
        pytest.param(1, (1, 2), (40, 45), 1, 1, None, marks=pytest.mark.slow),  # several groups of rows
        pytest.param(4, (2, 2), (1, 1), 1, 1, None, marks=pytest.mark.slow),
    ],
)
def test_sampling_uses_the_logits_of_training(lag, reach, size, prefix, cells, mlp_dim):
    """Of every code, with some codes given, whatever the grid's size; with modern layers, slots know their places."""
    net, params = make_net(lag, reach, prefix, cells, mlp_dim, places=4 if mlp_dim else 0)
    rng, (h, w), seen = np.random.default_rng(0), size, {}
    c = jnp.asarray(rng.integers(0, 5, (2, prefix) if prefix else (2, h // cells, w // cells)))
    known = rng.random(size) < 0.2
    given = jnp.asarray(rng.integers(0, CODES, (2, h, w)))
    apply = functools.partial(net.clone(unrolled=True).apply, {"params": unstack(params)})

    def note(*slots) -> None:
        seen.update({int(i) * w + int(j): x for i, j, x in zip(*slots, strict=True) if 0 <= j < w and i < h})

    def step(_, codes, wave, front):
        logits, wave = apply(codes, wave, front, method="step")
        jax.debug.callback(note, front.i, front.j, jnp.swapaxes(logits, 0, 1), ordered=True)
        return logits, wave

    paint = painters.make_schedule_painter(net.schedule, lambda _, c, h, w: apply(c, h, w, method="begin"), step)
    keys = jax.random.split(jax.random.key(2), 2)
    *_, (codes, done) = paint({}, c, given, known, keys, Sampling(top_k=8))
    jax.effects_barrier()
    assert done == h * w and set(seen) == set(range(h * w))
    np.testing.assert_array_equal(np.asarray(codes)[:, known], np.asarray(given)[:, known])
    full = net.apply({"params": params}, c, codes)
    used = np.stack([seen[cell] for cell in range(h * w)], 1)
    np.testing.assert_allclose(used, full, atol=1e-5 * np.abs(full).max())


def test_a_code_sees_what_is_written_before_and_near():
    """By gradients through the embeddings: which codes a slot's logits follow from."""
    schedule, n = Schedule(2, (1, 2)), 7
    net, params = make_net(2, (1, 2), 1)
    net = net.clone(num_layers=1)
    params = jax.tree.map(lambda x: x, params) | {"blocks": jax.tree.map(lambda x: x[:1], params["blocks"])}
    codes = jnp.asarray(np.random.default_rng(0).integers(0, CODES, (1, n, n)))
    logits = jax.jit(lambda codes: net.apply({"params": params}, jnp.zeros((1, 1), jnp.int32), codes))
    before = np.asarray(logits(codes))
    for i, j in ((3, 3), (0, 0), (2, 6)):
        other = codes.at[0, i, j].set((codes[0, i, j] + 1) % CODES)
        moved = (np.abs(np.asarray(logits(other)) - before).max((0, 2)) > 1e-6).reshape(n, n)
        holders = [(a, b) for a, b in ((i, j + 1), (i + 1, j)) if a < n and b < n]  # the slots whose input it is
        sees = np.array(
            [[any(bool(schedule.sees(a - y, b - x)) for a, b in holders) for x in range(n)] for y in range(n)]
        )
        np.testing.assert_array_equal(moved, sees)
        assert not moved[schedule.times(n, n) <= schedule.times(n, n)[i, j]].any()


def test_chunks_and_batches_change_nothing(monkeypatch):
    net, params = make_net(3, (3, 3), 1)
    apply = functools.partial(net.clone(unrolled=True).apply, {"params": unstack(params)})
    begin = lambda _, c, h, w: apply(c, h, w, method="begin")  # noqa: E731
    step = lambda _, codes, wave, front: apply(codes, wave, front, method="step")  # noqa: E731
    c, keys = jnp.arange(3)[:, None], jax.random.split(jax.random.key(0), 3)

    def painted(rows: slice, chunk: int) -> np.ndarray:
        monkeypatch.setattr(painters, "CHUNK", chunk)
        empty, known = jnp.zeros((len(c[rows]), 6, 11), jnp.int32), np.zeros((6, 11), bool)
        paint = painters.make_schedule_painter(net.schedule, begin, step)
        return np.asarray(list(paint({}, c[rows], empty, known, keys[rows], Sampling()))[-1][0])

    whole = painted(slice(3), 32)
    np.testing.assert_array_equal(painted(slice(3), 5), whole)
    np.testing.assert_array_equal(painted(slice(1, 2), 7), whole[1:2])


def wavefront(config, **fields):
    return changed(config, gpt__context__kind="wavefront", gpt__context__reach=(3, 3), **fields)


@pytest.fixture(scope="module")
def wave_run(vq_run, tmp_path_factory):
    """A small wavefront transformer: in bfloat16, on larger crops than its first stage's, all that saves memory on."""
    workdir = tmp_path_factory.mktemp("wave") / "wave"
    config = wavefront(tiny_transformer(vq_run), cond__drop=0.2, gpt__remat="dots", accumulate=2, dtype="bfloat16")
    config.update(batch_size=16, mesh=mesh_of(data=-1, fsdp=2))
    config.data.size = 24
    train(config, workdir)
    return workdir


@pytest.mark.slow
def test_it_trains_resumes_and_paints_any_size(wave_run, tmp_path):
    config, step = completion.load_config(wave_run)
    assert step == 4 and config.gpt.context.kind == "wavefront"
    generator = Generator.load(wave_run)
    one = generator.sample(classes=["cross"], progress=False)
    assert one.shape == (1, 24, 24, 3)
    for size in ((2, 2), (6, 40)):
        assert generator.sample(classes=["cross"], size=size, progress=False).shape == (1, *size, 3)
    kept = generator.sample(classes=["cross"], image=one[0], keep="top", progress=False)
    np.testing.assert_array_equal(kept[0, :12], one[0, :12])
    guided = generator.sample(classes=["cross"], guidance=50.0, progress=False)
    assert (guided != one).any()
    for given, message in (
        (dict(stride=2), "method=cached, stride=2, speculate=1: ways of a window"),
        (dict(method="wavefront"), "method=wavefront, stride=1, speculate=1: ways of a window"),
        (dict(speculate=4), "speculate=4: ways of a window"),
        (dict(size="3x16"), "size=3x16: multiples of 2 from 2 on"),
    ):
        with pytest.raises(UserError, match=message):
            generator.sample(classes=["cross"], progress=False, **given)
    done = run("sample", f"--workdir={wave_run}", f"--out={tmp_path}", "--size=24x20", "--animate=gif", "--classes=0")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*.gif"))


@pytest.mark.slow
def test_likelihoods_are_those_of_training(wave_run):
    """Of parameters as they are stored, whose layers are scanned, and as sampling has them, layer by layer."""
    generator = Generator.load(wave_run)
    image = generator.sample(classes=["square"], progress=False)
    _, _, params = completion.load_run(wave_run)
    stage = generator.stage
    ids = stage.first.encode(jax.device_get(generator.nets["gen"]), {"image": image}).reshape(1, -1)
    logits = stage.logits(params, jnp.full((1, 1), 2), ids)
    nats = ids.shape[1] * losses.cross_entropy(logits, ids)
    np.testing.assert_allclose(generator.score(image, classes=["square"]), nats, rtol=2e-3)  # in bfloat16


@pytest.mark.slow
def test_conditions_on_a_grid_go_with_the_codes(vq_run, tmp_path):
    """Coordinates, coarser than the codes; sampled over a larger image."""
    config = tiny_transformer(vq_run)
    config.cond = openmoji_coordinates_transformer.get_config().cond
    config = wavefront(config, cond__aligned=False, cond__down=4)
    train(config, tmp_path / "coordinates")
    generator = Generator.load(tmp_path / "coordinates")
    assert generator.stage.gpt.cells == 2
    assert generator.sample(size=(24, 36), progress=False).shape == (1, 24, 36, 3)
    with pytest.raises(UserError, match="size=18x24: the condition has 4 ids where there are 8 codes"):
        generator.sample(size=(18, 24), progress=False)
    config.cond.down = 1
    with pytest.raises(UserError, match="the condition has 16 ids on a side where there are 8 codes"):
        train(config, tmp_path / "finer")


def test_what_does_not_fit_gets_one_line(vq_run):
    for fields, message in (
        (dict(gpt__context__lag=0), r"gpt\.context\.lag=0: it must be at least 1"),
        (dict(gpt__context__reach=(0, 3)), r"gpt\.context\.reach\[0\]=0: it must be at least 1"),
        (dict(gpt__context__kind="wave"), r"gpt\.context\.kind='wave': .*'wavefront'"),
    ):
        with pytest.raises(UserError, match=message):
            check_fields(
                wavefront(tiny_transformer(vq_run)) if not fields else changed(tiny_transformer(vq_run), **fields)
            )
    for fields, message in (
        (dict(order="spiral_in"), "order='spiral_in': a wavefront transformer has its own"),
        (dict(gpt__num_heads=16), r"gpt\.embed_dim=32: .*multiple of 4"),
        (dict(gpt__vocab_size=64), r"gpt\.vocab_size: a wavefront transformer has none"),
        (dict(gpt__mlp_dim=64), r"gpt\.mlp_dim=64: architecture 'gpt' does not have it"),
    ):
        with pytest.raises(UserError, match=message):
            config = completion.complete(wavefront(tiny_transformer(vq_run), **fields))
            completion.net_shapes(config)


def test_modern_layers_are_a_wavefronts(vq_run):
    with pytest.raises(UserError, match=r"gpt\.context\.kind='window': layers of gpt\.architecture='modern' are"):
        completion.complete(changed(tiny_transformer(vq_run), gpt__architecture="modern"))
    modern = wavefront(tiny_transformer(vq_run), gpt__architecture="modern")
    shapes = completion.net_shapes(completion.complete(modern))
    assert jax.tree.leaves(shapes["blocks"]["mlp_gate"])[0].shape == (2, 32, 128)  # 8/3 of 32, in steps of 64


@pytest.mark.slow
def test_a_wavefront_is_not_the_originals(wave_run):
    config, step = completion.load_config(wave_run)
    with pytest.raises(UserError, match="wavefront transformer, which the original does not know"):
        transformer_to_torch(wave_run, step, config)
