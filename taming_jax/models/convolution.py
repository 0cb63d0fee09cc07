"""The convolution of wide maps: its kernel's gradient as products of matrices, where XLA's own is slow."""

from typing import Any

import jax
import jax.numpy as jnp

from taming_jax.backend import platform

WIDE = 128  # channels from which on products are faster
LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)


@jax.custom_vjp
def wide_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [B,H,W,C], kernel [3,3,C,D] -> [B,H,W,D], stride 1, padded by one.

    The kernel's gradient is a product of matrices for each of its nine places: two thirds of the time that XLA takes on
    CPUs (jaxlib 0.10.2), which turns it into one convolution with a window as large as the map.
    """
    return conv(x, kernel)


def backward(given: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = given
    (dx,) = jax.linear_transpose(lambda x: conv(x, kernel), x)(g)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def learn(place: jax.Array) -> jax.Array:
        seen = jax.lax.dynamic_slice(padded, (0, *place, 0), x.shape)
        return jnp.einsum("bhwc,bhwd->cd", seen, g)

    places = jnp.indices((3, 3)).reshape(2, 9).T
    return dx, jax.lax.map(learn, places).reshape(kernel.shape)  # one by one: all at once would take the memory of nine


wide_conv.defvjp(lambda x, kernel: (conv(x, kernel), (x, kernel)), backward)


def conv_general_dilated(lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, **others: Any) -> jax.Array:
    """`jax.lax.conv_general_dilated`, or `wide_conv` where that is faster; of one group and undilated."""
    wide = rhs.shape[:2] == (3, 3) and min(rhs.shape[2:]) >= WIDE and lhs.dtype == jnp.float32
    if wide and platform() == "cpu" and tuple(window_strides) == (1, 1) and padding == "SAME":
        return wide_conv(lhs, rhs)
    return jax.lax.conv_general_dilated(lhs, rhs, window_strides, padding, **others)
