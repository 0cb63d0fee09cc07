"""The optimizer's numbers are those of its config."""

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
