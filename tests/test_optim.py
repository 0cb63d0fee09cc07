"""The optimizer's numbers are those of its config."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import custom_transformer
from taming_jax import optim


def test_a_cosine_ends_at_its_share():
    config = custom_transformer.get_config().optim
    config.update(learning_rate=2.0, warmup_steps=10, final_share=0.3)
    rates = [float(optim.learning_rate(config, 50)(step)) for step in (0, 10, 30, 50, 99)]
    np.testing.assert_allclose(rates, [0, 2, 2 * (1 + 0.3) / 2, 0.6, 0.6], rtol=1e-6)


def test_eps_is_adams():
    """Adam's first step on g is g / (|g| + eps), times the learning rate."""
    config = custom_transformer.get_config().optim
    config.update(learning_rate=1.0, schedule="constant", warmup_steps=0, weight_decay=0.0, clip_norm=0.0, eps=0.5)
    optimizer, params = optim.make_optimizer(config, 1), {"kernel": jnp.ones(2)}
    updates, _ = optimizer.update({"kernel": jnp.array([1.5, -0.5])}, optimizer.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(params, updates)["kernel"], [1 - 0.75, 1 + 0.5], rtol=1e-6)


def test_muon_makes_updates_of_matrices_orthogonal_and_of_adams_size():
    """A convolution is one matrix, layers of a stack are several; what is no matrix, and the last layer, is Adam's."""
    config = custom_transformer.get_config().optim
    config.update(name="muon", learning_rate=1.0, schedule="constant", warmup_steps=0, weight_decay=0.0, clip_norm=0.0)
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 8, 16), "dense": (72, 16), "stack": (2, 72, 16), "head": (72, 16)}
    grads = {name: {"kernel": jnp.array(rng.normal(size=shape), jnp.float32)} for name, shape in shapes.items()}
    grads["conv"]["kernel"] = grads["dense"]["kernel"].reshape(shapes["conv"])
    grads["stack"]["kernel"] = jnp.stack([grads["dense"]["kernel"], 5 * grads["head"]["kernel"]])
    grads["dense"]["bias"] = jnp.ones(16)
    params = jax.tree.map(jnp.zeros_like, grads)
    optimizer = optim.make_optimizer(config, 1)
    found, _ = optimizer.update(grads, optimizer.init(params), params)
    matrix = found["dense"]["kernel"]
    stretched = np.linalg.svd(matrix, compute_uv=False) / (0.2 * 72**0.5)
    assert 0.6 < stretched.min() <= stretched.max() < 1.3  # as far as Newton-Schulz goes, arXiv 2502.16982
    assert 0.15 < np.sqrt(np.mean(np.square(matrix))) < 0.25
    np.testing.assert_allclose(found["conv"]["kernel"].reshape(72, 16), matrix, atol=1e-6)
    np.testing.assert_allclose(found["stack"]["kernel"][0], matrix, atol=1e-5)
    assert 0.15 < np.sqrt(np.mean(np.square(found["stack"]["kernel"][1]))) < 0.25
    adam = optax.nadam(1.0, b1=config.b1, b2=config.b2)
    expected, _ = adam.update(grads, adam.init(params))
    np.testing.assert_allclose(found["head"]["kernel"], expected["head"]["kernel"], rtol=1e-5)
    np.testing.assert_allclose(found["dense"]["bias"], expected["dense"]["bias"], rtol=1e-5)
