"""Convolutions of large maps on CPUs, which learn in less time there.

XLA on CPUs (jaxlib 0.10.2) makes a kernel's gradient one convolution with a window as large as the map, at less than
half the speed of other convolutions; here it is a product of matrices for each place of the kernel. Where 3x3 places
learn, there are fewer products in all three directions: F(2x2, 3x3) of Winograd (Lavin & Gray 2016, arXiv:1509.09308,
section 4.1). An output tile of 2x2 places sees 4x4. Three small matrices transform what it sees to 16 numbers, the
kernel to 16 others, and the 16 products of both to the tile: 16 products in place of 36. Errors stay those of float32:
1e-6 of the largest result. It needs four times the map's memory while it runs.

What does not learn is convolved by XLA: compiling would take longer than what is gained.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from taming_jax.backend import platform

# Multiplications for each image. The batch does not count: an image has the same codes alone and among others.
LARGE = 2**27  # above, kernels' gradients are faster as products of matrices
LARGE_3X3, WIDE = 2**30, 64  # above, and with so many channels on both sides, Winograd's products are faster
INPUT_T = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B^T in the paper
KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G
OUTPUT_T = ((1, 1, 1, 0), (0, 1, -1, -1))  # A^T
INDICES = [(i, j) for i in range(4) for j in range(4)]
Padding = tuple[tuple[int, int], tuple[int, int]]


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: str | Sequence[Sequence[int]], **others: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated` for NHWC and HWIO; on CPUs, gradients of large maps are made in another way."""
    h, w = lhs.shape[1:3]
    large = h * w * rhs.size // (window_strides[0] * window_strides[1]) >= LARGE
    dilated = any(step != 1 for name in ("lhs_dilation", "rhs_dilation") for step in others.get(name) or ())
    usual = lhs.dtype == jnp.float32 and not dilated and others.get("feature_group_count", 1) == 1
    if not (large and usual and platform() == "cpu"):
        return jax.lax.conv_general_dilated(lhs, rhs, window_strides, padding, **others)
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads((h, w), rhs.shape[:2], window_strides, padding)
    return large_conv(lhs, rhs, tuple(window_strides), tuple(map(tuple, padding)))


# flax's convolution, by the function above.
Conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)


def xla_conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding) -> jax.Array:
    """x [B,H,W,C], kernel [k,l,C,D] -> [B,h,w,D], float32."""
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


large_conv = jax.custom_vjp(xla_conv, nondiff_argnums=(2, 3))


def large_conv_forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The convolution where it learns, and what its gradients need."""
    if suits_winograd(x, kernel, strides):
        return conv3x3(jnp.pad(x, ((0, 0), *padding, (0, 0))), kernel), (x, kernel)
    return xla_conv(x, kernel, strides, padding), (x, kernel)


def large_conv_backward(
    strides: tuple[int, int], padding: Padding, given: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of x and kernel, from that of the result."""
    x, kernel = given
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    if suits_winograd(x, kernel, strides):
        around = [(2 - low, 2 - high) for low, high in padding]
        flipped = kernel[::-1, ::-1].swapaxes(2, 3)
        return conv3x3(jnp.pad(g, ((0, 0), *around, (0, 0))), flipped), kernel3x3_gradient(padded, g)
    (dx,) = jax.linear_transpose(lambda x: xla_conv(x, kernel, strides, padding), x)(g)
    return dx, kernel_gradient(padded, g, kernel.shape, strides)


large_conv.defvjp(large_conv_forward, large_conv_backward)


def suits_winograd(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> bool:
    """Whether `conv3x3` can take a convolution's place, and is faster."""
    can = kernel.shape[:2] == (3, 3) and strides == (1, 1) and min(kernel.shape[2:]) >= WIDE
    return can and x.shape[1] * x.shape[2] * kernel.size >= LARGE_3X3


def kernel_gradient(x: jax.Array, g: jax.Array, shape: tuple[int, ...], strides: tuple[int, int]) -> jax.Array:
    """Padded [B,H,W,C], [B,h,w,D] -> [k,l,C,D]: what each place of the kernel sees, times the result's gradient."""
    (kh, kw, c, d), (h, w) = shape, g.shape[1:3]
    if strides == (1, 1) and kh * kw * d <= c:  # few channels come out: all places in one product, on their side
        g = jnp.pad(g, ((0, 0), (kh - 1, kh - 1), (kw - 1, kw - 1), (0, 0)))
        shifted = [g[:, i : i + x.shape[1], j : j + x.shape[2]] for i in range(kh)[::-1] for j in range(kw)[::-1]]
        places = jnp.einsum("bhwc,bhwkd->kcd", x, jnp.stack(shifted, 3), precision="highest")
        return places.reshape(shape)

    def gradient_at(i: int, j: int) -> jax.Array:
        seen = x[:, i : i + strides[0] * (h - 1) + 1 : strides[0], j : j + strides[1] * (w - 1) + 1 : strides[1]]
        return jnp.einsum("nc,nd->cd", seen.reshape(-1, c), g.reshape(-1, d), precision="highest")

    return jnp.stack([gradient_at(i, j) for i in range(kh) for j in range(kw)]).reshape(shape)


def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Padded [B,H+2,W+2,C], [3,3,C,D] -> [B,H,W,D]."""
    h, w = x.shape[1] - 2, x.shape[2] - 2
    inputs, weights = transform_input(pad_to_even(x)), transform_kernel(kernel)
    products = [jnp.dot(seen, weights[at], precision="highest") for seen, at in zip(inputs, INDICES, strict=True)]
    tiles = (len(x), -(-h // 2), -(-w // 2), kernel.shape[-1])

    def place(row: int, column: int) -> jax.Array:
        part = weighted_sum(OUTPUT_T[row], OUTPUT_T[column], lambda i, j: products[4 * i + j])
        return part.reshape(tiles)

    rows = [jnp.stack([place(row, 0), place(row, 1)], 3) for row in range(2)]
    b, high, wide, d = tiles
    return jnp.stack(rows, 2).reshape(b, 2 * high, 2 * wide, d)[:, :h, :w]


def kernel3x3_gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    """Padded [B,H+2,W+2,C], [B,H,W,D] -> [3,3,C,D]."""
    g = pad_to_even(g)
    b, h, w, d = g.shape
    g = g.reshape(b, h // 2, 2, w // 2, 2, d)

    def gradient_at(seen: jax.Array, i: int, j: int) -> jax.Array:
        rows, columns = ([row[at] for row in OUTPUT_T] for at in (i, j))
        given = weighted_sum(rows, columns, lambda r, s: g[:, :, r, :, s]).reshape(-1, d)
        return jnp.einsum("nc,nd->cd", seen, given, precision="highest")

    inputs = transform_input(pad_to_even(x))
    weights = jnp.stack([gradient_at(seen, *at) for seen, at in zip(inputs, INDICES, strict=True)])
    transposed = jax.linear_transpose(transform_kernel, jax.ShapeDtypeStruct((3, 3, *weights.shape[1:]), g.dtype))
    return transposed(weights.reshape(4, 4, *weights.shape[1:]))[0]


def transform_kernel(kernel: jax.Array) -> jax.Array:
    """[3,3,C,D] -> [4,4,C,D]."""
    return jnp.einsum("ip,jq,pqcd->ijcd", jnp.array(KERNEL), jnp.array(KERNEL), kernel, precision="highest")


def transform_input(x: jax.Array) -> list[jax.Array]:
    """What output tiles see: [B,H+2,W+2,C] -> 16 times [B*H/2*W/2, C], of even sides."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c)

    def place(r: int, s: int) -> jax.Array:
        return x[:, r // 2 : h // 2 - 1 + r // 2, r % 2, s // 2 : w // 2 - 1 + s // 2, s % 2]

    return [weighted_sum(INPUT_T[i], INPUT_T[j], place).reshape(-1, c) for i, j in INDICES]


def weighted_sum(rows: Sequence[float], columns: Sequence[float], part: Callable[[int, int], jax.Array]) -> jax.Array:
    """The sum of part(r, s) with the weights rows[r] * columns[s], those of 0 left out."""
    return sum(a * b * part(r, s) for r, a in enumerate(rows) for s, b in enumerate(columns) if a * b)


def pad_to_even(x: jax.Array) -> jax.Array:
    """Zeros below and to the right, where a side is odd."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
