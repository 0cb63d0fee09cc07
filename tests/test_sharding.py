"""Layout: the mesh, the table, and that many devices compute what one does."""

import importlib
import itertools
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from taming_jax import completion, data, sharding
from taming_jax.errors import UserError
from taming_jax.tasks import transformer, vqgan
from tests.tiny import changed, mesh_of, tiny_transformer, tiny_vq


def test_rest_axis_takes_what_is_left():
    half = jax.device_count() // 2
    assert dict(sharding.make_mesh(mesh_of(data=-1, fsdp=2)).shape) == {"data": half, "fsdp": 2, "tensor": 1}


@pytest.mark.parametrize("sizes", [dict(data=3), dict(data=-1, fsdp=3), dict(data=-1, fsdp=-1), dict(data=0), dict()])
def test_a_mesh_that_does_not_match_is_refused_with_both_numbers(sizes):
    with pytest.raises(UserError, match=r"mesh \(data=.*\) does not match \d devices"):
        sharding.make_mesh(mesh_of(**sizes))


def test_a_batch_that_the_mesh_does_not_divide_is_refused_with_both_numbers():
    mesh = sharding.make_mesh(mesh_of(data=2, fsdp=2), jax.devices()[:4])
    with pytest.raises(UserError, match=r"batch_size=6 .* 4 parts; take a multiple of 4"):
        sharding.check_batch(6, mesh)
    with pytest.raises(UserError, match=r"batch_size=12 .* 4 parts x accumulate=2; take a multiple of 8"):
        sharding.check_batch(12, mesh, 2)


def states(task, mesh):
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    return shapes, sharding.infer_shardings(shapes, mesh)


def test_every_rule_is_used_and_every_large_leaf_is_sharded(picture_folder, vq_run):
    """A renamed layer would otherwise be replicated in silence. Moments and averages follow their parameter."""
    mesh = sharding.make_mesh(mesh_of(data=-1, fsdp=2, tensor=2))
    vq_config = tiny_vq(picture_folder)
    vq_config.data.class_names = ()
    config = completion.complete(tiny_transformer(vq_run))
    rar = completion.complete(changed(tiny_transformer(vq_run), gpt__architecture="rar"))
    used = set()
    tasks = [vqgan.make_task(vq_config), transformer.make_task(config), transformer.make_task(rar)]
    tasks += [transformer.make_task(changed(completion.complete(tiny_transformer(vq_run)), vector_weight=1.0))]
    tasks += [vqgan.make_task(changed(vq_config, optim__name="muon"))]
    tasks += [transformer.make_task(changed(config, optim__name="muon"))]
    for task in tasks:
        shapes, shardings = states(task, mesh)
        leaves = jax.tree_util.tree_leaves_with_path(shapes)
        for (path, leaf), where in zip(leaves, jax.tree.leaves(shardings), strict=True):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            used |= {pattern for pattern, _ in sharding.RULES if re.search(pattern, name)}
            assert where.spec != P() or leaf.size < 2048, f"{name} {leaf.shape} is on every device"
    assert used == {pattern for pattern, _ in sharding.RULES}


def losses_on(task, config, mesh_sizes, devices, steps=3):
    """The loss of each step on a mesh, from the same start and batches."""
    mesh = sharding.make_mesh(mesh_sizes, devices)
    source = data.open_source(config.data, "train")
    batches = itertools.islice(data.train_batches(source, config, 0, data.make_augment(config.data)), steps)
    with jax.set_mesh(mesh):
        _, shardings = states(task, mesh)
        state = jax.jit(task.init, out_shardings=shardings)(jax.random.key(0))
        frozen = task.load_frozen()
        state = state.replace(frozen=jax.device_put(frozen, sharding.infer_shardings(frozen, mesh)))
        step = jax.jit(task.train_step, static_argnums=3)
        losses = []
        for i, batch in enumerate(batches):
            state, logged = step(state, sharding.shard_batch(batch, mesh), jax.random.key(i), task.phase(i))
            losses.append({k: v for k, v in jax.device_get(logged.compute()).items() if k.endswith("loss")})
    return losses


@pytest.mark.slow
def test_noise_is_in_the_steps_until_its_end_alone(picture_folder, vq_run):
    """From step 2 on, what is learned from equal weights is equal."""
    config = completion.complete(tiny_transformer(vq_run))
    config.data.class_names = ("circle", "cross", "square")
    config.optim.learning_rate = 1e-20
    clean, noisy = (
        losses_on(transformer.make_task(changed(config, noise_until=until)), config, mesh_of(), jax.devices()[:1], 4)
        for until in (0, 2)
    )
    assert [a["loss"] == b["loss"] for a, b in zip(clean, noisy, strict=True)] == [False, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["transformer", "guesses", "vqgan", "ema", "gumbel"])
def test_many_devices_train_like_one(stage, picture_folder, vq_run):
    if stage == "vqgan":
        config = tiny_vq(picture_folder)
        task = vqgan.make_task(config)
    elif stage in ("ema", "gumbel"):
        config = tiny_vq(picture_folder)
        config.quantizer = importlib.import_module(f"configs.openmoji_{stage}_vq").get_config().quantizer
        config.quantizer.update(codebook_size=32, embed_dim=8)
        config.restart_codes_after = 1 if stage == "ema" else 0
        config.loss.perceptual_weight = config.disc.weight = 0.0
        task = vqgan.make_task(config)
    else:
        config = completion.complete(tiny_transformer(vq_run))
        config.data.class_names = ("circle", "cross", "square")
        config.vector_weight = float(stage == "guesses")
        task = transformer.make_task(config)
    alone = losses_on(task, config, mesh_of(), jax.devices()[:1])
    many = losses_on(task, config, mesh_of(data=-1, fsdp=2, tensor=2), jax.devices())
    for a, b in zip(alone, many, strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-2, atol=2e-3, err_msg=name)
    for name in alone[0]:  # before Adam, which divides tiny gradients by themselves, has turned rounding into steps
        np.testing.assert_allclose(alone[0][name], many[0][name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("stage", "saver"),
    [
        pytest.param("vqgan", dict(accumulate=2), marks=pytest.mark.slow),
        pytest.param("vqgan", dict(model__remat=True), marks=pytest.mark.slow),
        pytest.param("transformer", dict(accumulate=2), marks=pytest.mark.slow),
        pytest.param("transformer", dict(gpt__remat="full"), marks=pytest.mark.slow),
    ],
)
def test_saving_memory_changes_nothing(stage, saver, picture_folder, vq_run):
    """Parts of a batch one after another, or activations computed twice: the same weights after three steps."""
    if stage == "vqgan":  # BatchNorm and the adaptive weight are those of each part
        plain = changed(tiny_vq(picture_folder), loss__perceptual_weight=0.0, disc__weight=0.0)
        tasks_of = [
            vqgan.make_task(config) for config in (plain, changed(plain.copy_and_resolve_references(), **saver))
        ]
    else:
        plain = changed(completion.complete(tiny_transformer(vq_run)), gpt__embd_pdrop=0.0, gpt__attn_pdrop=0.0)
        plain = changed(plain, gpt__resid_pdrop=0.0, data__class_names=("circle", "cross", "square"))
        tasks_of = [
            transformer.make_task(config) for config in (plain, changed(plain.copy_and_resolve_references(), **saver))
        ]
    a, b = (losses_on(task, plain, mesh_of(data=2, fsdp=2), jax.devices()[:4]) for task in tasks_of)
    for x, y in zip(a, b, strict=True):
        for name in x:
            np.testing.assert_allclose(x[name], y[name], rtol=1e-4, err_msg=name)


@pytest.mark.slow
def test_gathered_parameters_leave_no_gathered_activations(picture_folder):
    """With sharded kernels and nothing said, the partitioner moves activations instead."""
    config = tiny_vq(picture_folder)
    task, mesh = vqgan.make_task(config), sharding.make_mesh(mesh_of(data=-1, fsdp=2))
    with jax.set_mesh(mesh):
        shapes, shardings = states(task, mesh)
        as_arrays = lambda tree, where: jax.tree.map(  # noqa: E731
            lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), tree, where
        )
        frozen = jax.eval_shape(task.load_frozen)
        state = as_arrays(
            shapes.replace(frozen=frozen), shardings.replace(frozen=sharding.infer_shardings(frozen, mesh))
        )
        where = jax.sharding.NamedSharding(mesh, sharding.BATCH)
        batch = {"image": jax.ShapeDtypeStruct((8, 16, 16, 3), np.uint8, sharding=where)}
        step = jax.jit(task.train_step, static_argnums=3)
        text = step.lower(state, batch, jax.random.key(0), task.phase(0)).compile().as_text()
    kernels = {tuple(leaf.shape) for leaf in jax.tree.leaves(state.params) + jax.tree.leaves(state.frozen)}
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)
    assert gathered
    for shape in gathered:
        dims = tuple(map(int, shape.split(",")))
        assert len(dims) < 4 or dims in kernels, f"an activation of {dims} is gathered"
    assert "all-to-all" not in text and "collective-permute" not in text
