"""Numbers on their way from the step to the files."""

import jax.numpy as jnp

from taming_jax import metrics


def test_collections_are_never_taken_for_one_another():
    """Training and evaluation may have as many fields; with a class for each trace, merging mixed them up."""
    for i in range(200):
        names = {"loss", "l1_loss"} if i % 2 else {"psnr", "lpips"}
        collected = metrics.collection({name: jnp.ones(()) for name in names})
        assert set(metrics.summarize(metrics.merge(collected, collected))) == names
