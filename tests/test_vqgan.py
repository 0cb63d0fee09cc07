"""The first stage's training step: its switches, and codes that die; its numbers are in tests/test_golden.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from taming_jax import losses, optim, sharding
from taming_jax.models.perceptual import load_weights
from taming_jax.models.quantize import Learned, make_quantizer
from taming_jax.tasks import vqgan
from tests.tiny import tiny_vq


@pytest.fixture(scope="module")
def vgg():
    return load_weights()


def make_step(config, vgg, monkeypatch):
    """step -> state before, the gradients that the optimizers were given, state after, metrics; on one device."""
    # An optimizer whose state is the gradient itself.
    monkeypatch.setattr(optim, "make_optimizer", lambda *_: optax.trace(decay=0.0))
    batch = {"image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8))}
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        task = vqgan.make_task(config)
        state = jax.jit(task.init)(jax.random.key(0)).replace(frozen={"lpips": vgg})
    train_step = jax.jit(task.train_step, static_argnums=3)  # one for all steps, so that each phase compiles once

    def one_step(step):
        before = state.replace(step=jnp.int32(step))
        with jax.set_mesh(mesh):
            after, logged = train_step(before, batch, jax.random.key(1), task.phase(step))
        return before, {k: after.opt[k].trace for k in after.opt}, after, jax.device_get(logged.compute())

    return one_step


@pytest.mark.slow
def test_switches_of_the_discriminator(picture_folder, vgg, monkeypatch):
    """Nothing before `start`; learning unseen until `gen_start`; then a ramp; the cap on lambda holds."""
    config = tiny_vq(picture_folder)
    config.loss.perceptual_weight = 0.0
    config.disc.update(start=1, gen_start=2, ramp_steps=2, max_weight=0.25, weight=0.8)
    one_step = make_step(config, vgg, monkeypatch)
    before, _, after, logged = one_step(0)
    assert "disc_loss" not in logged
    jax.tree.map(np.testing.assert_array_equal, before.opt["disc"], after.opt["disc"])
    jax.tree.map(np.testing.assert_array_equal, before.params["disc"], after.params["disc"])
    jax.tree.map(np.testing.assert_array_equal, before.extra["disc"], after.extra["disc"])

    factors = {}
    for step in (1, 2, 3, 4):
        before, grads, after, logged = one_step(step)
        assert optax.tree.norm(grads["disc"]) > 0
        factors[step] = (float(logged["disc_factor"]), float(logged["d_weight"]))
    assert {step: f for step, (f, _) in factors.items()} == {1: 0, 2: 0.5, 3: 1, 4: 1}
    np.testing.assert_allclose(factors[4][1], 0.8 * 0.25, rtol=1e-6)  # an untrained discriminator's lambda is larger
    jax.tree.map(lambda a, b: np.testing.assert_(not np.array_equal(a, b)), before.extra["disc"], after.extra["disc"])


def test_paper_setting_switches_in_one_step():
    assert [float(vqgan.ramp(step, 100, 0)) for step in (98, 99, 100, 101)] == [0, 0, 1, 1]


@pytest.mark.slow
def test_a_blurred_discriminator_at_a_fixed_weight(picture_folder, vgg, monkeypatch):
    """λ is out of the game; LeCAM's means follow the logits of a step, and then pull at the discriminator."""
    config = tiny_vq(picture_folder)
    config.disc.update(network="blurred", ndf=32, n_layers=1, adaptive=False, weight=0.1)
    config.disc.update(start=0, gen_start=0, ramp_steps=0, lecam_weight=0.5, lecam_decay=0.75)
    before, _, after, logged = make_step(config, vgg, monkeypatch)(0)
    assert (before.extra["disc"]["batch_stats"], after.extra["disc"]["batch_stats"]) == ({}, {})
    np.testing.assert_allclose(logged["d_weight"], 0.1)
    for kind in ("real", "fake"):
        np.testing.assert_allclose(after.extra["disc"]["logits"][kind], 0.25 * logged[f"logits_{kind}"], rtol=1e-5)
    real, fake = float(logged["logits_real"]), float(logged["logits_fake"])
    pull = max(real, 0) ** 2 + max(-fake, 0) ** 2  # from means of 0
    assert pull > 0
    config.disc.lecam_weight = 0.0
    _, _, after, alone = make_step(config, vgg, monkeypatch)(0)
    assert "logits" not in after.extra["disc"]
    np.testing.assert_allclose(logged["disc_loss"], alone["disc_loss"] + 0.5 * pull, rtol=1e-5)


@pytest.mark.slow
def test_perceptual_loss_starts_when_told(picture_folder, vgg, monkeypatch):
    config = tiny_vq(picture_folder)
    config.loss.update(perceptual_start=1, perceptual_weight=0.3)
    config.disc.update(start=9, gen_start=9)
    one_step = make_step(config, vgg, monkeypatch)
    assert "p_loss" not in one_step(0)[-1]
    assert one_step(1)[-1]["p_loss"] > 0


@pytest.mark.parametrize("name", ["vq", "ema"])
def test_dead_codes_restart_where_the_error_is(name, picture_folder):
    """In the codebook and in both of its averages; `accumulate` stacks the codes of a batch's parts."""
    config = tiny_vq(picture_folder)
    if name == "ema":
        with config.unlocked():
            sizes = dict(codebook_size=32, embed_dim=8)
            config.quantizer = dict(name="ema", commitment_weight=0.25, decay=0.99, eps=1e-5, **sizes)
    state, quantizer = jax.jit(vqgan.make_task(config).init)(jax.random.key(0)), make_quantizer(config.quantizer)
    gen, extra = state.params["gen"], dict(state.extra["gen"])
    embedding = gen["quantize"]["embedding"]
    ids = jnp.arange(12).reshape(2, 2, 3) % 4
    latents = embedding[ids].at[1, 0, 2].add(1.0)
    learned = Learned(gen["quantize"], extra.pop("ema")["quantize"], extra)
    new = quantizer.restart(learned, {"latents": latents, "ids": ids}, 1, jax.random.key(1), lambda x: x)
    moved = [new.params["embedding"], new.average["embedding"]]
    if name == "ema":
        moved.append(new.stats["codebook"]["embed_avg"])
        np.testing.assert_array_equal(new.stats["codebook"]["cluster_size"], 1)
    for codebook in moved:
        np.testing.assert_array_equal(codebook[:4], embedding[:4])
        np.testing.assert_array_equal(codebook[4:], np.repeat(latents[1, 0, 2][None], 28, 0))


@pytest.mark.slow
def test_weight_of_the_pixels_and_delta(picture_folder, vgg, monkeypatch):
    """The one scales the pixels' loss and its gradients; the other is added to the divisor of lambda."""
    config = tiny_vq(picture_folder)
    config.loss.update(perceptual_weight=0.0, codebook_weight=0.0)
    config.disc.update(start=9, gen_start=9)
    logged, grads = {}, {}
    for weight in (1.0, 3.0):
        config.loss.pixel_weight = weight
        _, grads[weight], _, logged[weight] = make_step(config, vgg, monkeypatch)(0)
        np.testing.assert_allclose(logged[weight]["loss"], weight * logged[weight]["l2_loss"], rtol=1e-6)
    assert logged[1.0]["l2_loss"] == logged[3.0]["l2_loss"]
    near = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6)
    jax.tree.map(lambda a, b: near(3 * a, b), grads[1.0]["gen"], grads[3.0]["gen"])
    np.testing.assert_allclose(losses.adaptive_weight(3 * np.ones(1), np.ones(1), 0.5, 9.0), 2)
