"""The size of a cache: each code reads all of it, so it should hold little more than what is filled."""

from typing import Any

import jax
import jax.numpy as jnp


def resize(cache: Any, whole: Any, less: int) -> Any:
    """A cache with as many places as a whole one has, but for `less`: new ones are empty, those beyond are cut off.

    whole: a cache or its shapes, whose places lie along the last axis but one. The caches of a batch of windows have an
    axis in front.
    """

    def fit(x: jax.Array, like: jax.Array) -> jax.Array:
        if like.ndim < 2:  # no part of it is for places
            return x
        length = like.shape[-2] - less
        return jnp.pad(x[..., :length, :], [*[(0, 0)] * (x.ndim - 2), (0, max(0, length - x.shape[-2])), (0, 0)])

    return jax.tree.map(fit, cache, whole)
