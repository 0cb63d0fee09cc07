"""Convolutions of large maps on CPUs, whose time training is.

XLA on CPUs (jaxlib 0.10.2) makes a kernel's gradient one convolution with a window as large as the map, at less than
half the speed of other convolutions; here it is a product of matrices for each place of the kernel. Convolutions of 3x3
places take fewer products, in all three directions: F(2x2, 3x3) of Winograd (Lavin & Gray 2016, arXiv:1509.09308,
section 4.1). A tile of 2x2 places sees 4x4. Three small matrices turn what it sees into 16 numbers, the kernel into 16
others, and the 16 products of both into the tile: 16 products in place of 36.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from taming_jax.backend import platform

LARGE = 2**27  # multiplications from which on a kernel's gradient takes less time here
LARGE_3X3, WIDE = 2**30, 64  # multiplications and channels from which on Winograd's products do
SEEN = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B^T in the paper
KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G
TILE = ((1, 1, 1, 0), (0, 1, -1, -1))  # A^T
INDICES = [(i, j) for i in range(4) for j in range(4)]


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: Any, **others: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, on CPUs in another way where that is faster: NHWC, one group, undilated."""
    places = lhs.shape[0] * lhs.shape[1] * lhs.shape[2] // (window_strides[0] * window_strides[1])
    if platform() != "cpu" or lhs.dtype != jnp.float32 or places * rhs.size < LARGE:
        return jax.lax.conv_general_dilated(lhs, rhs, window_strides, padding, **others)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    return large_conv(jnp.pad(lhs, ((0, 0), *padding, (0, 0))), rhs, tuple(window_strides))


# flax's convolution, made by the function above.
Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def large_conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """x [B,H,W,C], kernel [k,l,C,D] -> [B,(H-k)/stride+1,(W-l)/stride+1,D], float32, without padding."""
    return conv3x3(x, kernel) if suits_winograd(x, kernel, strides) else xla_conv(x, kernel, strides)


def forward(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return large_conv(x, kernel, strides), (x, kernel)


def backward(strides: tuple[int, int], given: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = given
    if suits_winograd(x, kernel, strides):
        around = jnp.pad(g, ((0, 0), (2, 2), (2, 2), (0, 0)))
        return conv3x3(around, kernel[::-1, ::-1].swapaxes(2, 3)), kernel3x3_gradient(x, g)
    (dx,) = jax.linear_transpose(lambda x: xla_conv(x, kernel, strides), x)(g)
    return dx, kernel_gradient(x, g, kernel.shape, strides)


large_conv.defvjp(forward, backward)


def suits_winograd(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> bool:
    suits = kernel.shape[:2] == (3, 3) and strides == (1, 1) and min(kernel.shape[2:]) >= WIDE
    return suits and x[:, 2:, 2:, 0].size * kernel.size >= LARGE_3X3


def xla_conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def kernel_gradient(x: jax.Array, g: jax.Array, shape: tuple[int, ...], strides: tuple[int, int]) -> jax.Array:
    """What each of the kernel's places sees, times the gradient of what is made of it."""
    (kh, kw, c, d), (h, w) = shape, g.shape[1:3]
    if strides == (1, 1) and kh * kw * d <= c:  # few channels come out: all places in one product, on their side
        g = jnp.pad(g, ((0, 0), (kh - 1, kh - 1), (kw - 1, kw - 1), (0, 0)))
        shifted = [g[:, i : i + x.shape[1], j : j + x.shape[2]] for i in range(kh)[::-1] for j in range(kw)[::-1]]
        places = jnp.einsum("bhwc,bhwkd->kcd", x, jnp.stack(shifted, 3), precision="highest")
        return places.reshape(shape)

    def learn(i: int, j: int) -> jax.Array:
        seen = x[:, i : i + strides[0] * (h - 1) + 1 : strides[0], j : j + strides[1] * (w - 1) + 1 : strides[1]]
        return jnp.einsum("nc,nd->cd", seen.reshape(-1, c), g.reshape(-1, d), precision="highest")

    return jnp.stack([learn(i, j) for i in range(kh) for j in range(kw)]).reshape(shape)


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B,H+2,W+2,C], [3,3,C,D] -> [B,H,W,D]."""
    b, h, w = x.shape[0], x.shape[1] - 2, x.shape[2] - 2
    x = even(x)
    high, wide, d = x.shape[1] // 2 - 1, x.shape[2] // 2 - 1, kernel.shape[-1]
    weights = jnp.einsum("ip,jq,pqcd->ijcd", jnp.array(KERNEL), jnp.array(KERNEL), kernel, precision="highest")
    products = [jnp.dot(seen, weights[at], precision="highest") for seen, at in zip(see(x), INDICES, strict=True)]

    def tile(a: int, b: int) -> jax.Array:
        return combine(TILE[a], TILE[b], lambda i, j: products[4 * i + j]).reshape(-1, high, wide, d)

    rows = [jnp.stack([tile(a, 0), tile(a, 1)], 3) for a in range(2)]
    return jnp.stack(rows, 2).reshape(b, 2 * high, 2 * wide, d)[:, :h, :w]


def kernel3x3_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """[B,H+2,W+2,C], [B,H,W,D] -> [3,3,C,D]."""
    g = even(g)
    b, h, w, d = g.shape
    g = g.reshape(b, h // 2, 2, w // 2, 2, d)

    def learn(seen: jax.Array, i: int, j: int) -> jax.Array:
        rows, columns = ([row[at] for row in TILE] for at in (i, j))
        given = combine(rows, columns, lambda r, s: g[:, :, r, :, s]).reshape(-1, d)
        return jnp.einsum("nc,nd->cd", seen, given, precision="highest")

    weights = jnp.stack([learn(seen, *at) for seen, at in zip(see(even(x)), INDICES, strict=True)])
    weights = weights.reshape(4, 4, *weights.shape[1:])
    return jnp.einsum("ip,jq,ijcd->pqcd", jnp.array(KERNEL), jnp.array(KERNEL), weights, precision="highest")


def see(x: jax.Array) -> list[jax.Array]:
    """What tiles see, through the first matrix: [B,H+2,W+2,C] -> 16 times [B*H/2*W/2, C], of even sides."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)

    def at(r: int, s: int) -> jax.Array:
        return x[:, r // 2 : h // 2 - 1 + r // 2, r % 2, s // 2 : w // 2 - 1 + s // 2, s % 2]

    return [combine(SEEN[i], SEEN[j], at).reshape(-1, c) for i, j in INDICES]


def combine(rows: Sequence[float], columns: Sequence[float], part: Callable[[int, int], jax.Array]) -> jax.Array:
    """The sum of part(r, s) with the weights rows[r] * columns[s], those of 0 left out."""
    return sum(a * b * part(r, s) for r, a in enumerate(rows) for s, b in enumerate(columns) if a * b)


def even(x: jax.Array) -> jax.Array:
    """Zeros below and to the right, where a side is odd."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
