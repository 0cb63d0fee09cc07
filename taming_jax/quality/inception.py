"""The Inception-v3 of FID, IS and sFID: TensorFlow's of December 2015, in Flax.

It is not torchvision's: 1008 classes, averages that leave out the padding, and a maximum in the last block's pool. The
weights have the names of the twin in PyTorch (pytorch-fid, torch-fidelity), from whose file they are read.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

SIZE = 299
SPATIAL = 7  # channels of sFID's features, as ADM's evaluator has them
EPS = 1e-3  # of BatchNorm
AROUND = ((1, 1), (1, 1))


class Seen(NamedTuple):
    """What the net sees in images; float32.

    pool: of FID, [B,2048]. spatial: of sFID, [B,17*17*7]. logits: of the Inception Score, without bias, [B,1008].
    """

    pool: jax.Array
    spatial: jax.Array
    logits: jax.Array


class Convolution(nn.Module):
    """A convolution without bias, BatchNorm with its averages, ReLU. [B,H,W,C] -> [B,H',W',features]."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = "SAME" if self.padded and self.stride == 1 else "VALID"
        conv = nn.Conv(
            self.features,
            self.kernel,
            self.stride,
            padding,
            use_bias=False,
            dtype=self.dtype,
            precision=jax.lax.Precision.HIGHEST,
            name="conv",
        )
        norm = nn.BatchNorm(use_running_average=True, epsilon=EPS, dtype=self.dtype, name="bn")
        return nn.relu(norm(conv(x)))


def average(x: jax.Array) -> jax.Array:
    """The mean over 3x3 pixels, of those that are in the picture."""
    return nn.avg_pool(x, (3, 3), padding=AROUND, count_include_pad=False)


def largest(x: jax.Array) -> jax.Array:
    """The maximum over 3x3 pixels."""
    return nn.max_pool(x, (3, 3), padding=AROUND)


def reduced(x: jax.Array) -> jax.Array:
    """The maximum over 3x3 pixels, at every second one."""
    return nn.max_pool(x, (3, 3), (2, 2))


class Block(nn.Module):
    """Chains of convolutions side by side, their ends next to one another.

    chains: of (name, channels, (height, width) of the kernel, stride); strided ones have no padding. A chain's last
    element may be a tuple of convolutions that all take what comes before. pool: what comes last, with the channels of
    the convolution behind it, 0 for none.
    """

    chains: tuple
    pool: str
    pooled: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """-> the block's output, and that of its first chain."""
        unit = lambda u: Convolution(*u[1:], name=u[0], dtype=self.dtype)  # noqa: E731
        ends = []
        for chain in self.chains:
            h = x
            for link in chain:
                h = [unit(u)(h) for u in link] if isinstance(link[0], tuple) else unit(link)(h)
            ends += h if isinstance(h, list) else [h]
        h = {"average": average, "largest": largest, "reduced": reduced}[self.pool](x)
        ends.append(unit(("branch_pool", self.pooled))(h) if self.pooled else h)
        return jnp.concatenate(ends, -1), ends[0]


def block_a(pooled: int, dtype: jnp.dtype, name: str) -> Block:
    chains = (
        (("branch1x1", 64),),
        (("branch5x5_1", 48), ("branch5x5_2", 64, (5, 5))),
        (("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))),
    )
    return Block(chains, "average", pooled, dtype, name=name)


def block_b(dtype: jnp.dtype, name: str) -> Block:
    chains = (
        (("branch3x3", 384, (3, 3), 2),),
        (("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3), 2)),
    )
    return Block(chains, "reduced", 0, dtype, name=name)


def block_c(c: int, dtype: jnp.dtype, name: str) -> Block:
    wide, tall = (1, 7), (7, 1)
    chains = (
        (("branch1x1", 192),),
        (("branch7x7_1", c), ("branch7x7_2", c, wide), ("branch7x7_3", 192, tall)),
        (
            ("branch7x7dbl_1", c),
            ("branch7x7dbl_2", c, tall),
            ("branch7x7dbl_3", c, wide),
            ("branch7x7dbl_4", c, tall),
            ("branch7x7dbl_5", 192, wide),
        ),
    )
    return Block(chains, "average", 192, dtype, name=name)


def block_d(dtype: jnp.dtype, name: str) -> Block:
    chains = (
        (("branch3x3_1", 192), ("branch3x3_2", 320, (3, 3), 2)),
        (
            ("branch7x7x3_1", 192),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, (3, 3), 2),
        ),
    )
    return Block(chains, "reduced", 0, dtype, name=name)


def block_e(pool: str, dtype: jnp.dtype, name: str) -> Block:
    def split(name: str) -> tuple:
        return (f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))

    chains = (
        (("branch1x1", 320),),
        (("branch3x3_1", 384), split("branch3x3_2")),
        (("branch3x3dbl_1", 448), ("branch3x3dbl_2", 384, (3, 3)), split("branch3x3dbl_3")),
    )
    return Block(chains, pool, 192, dtype, name=name)


class Inception(nn.Module):
    """Images float [B,H,W,3] in [0, 255] -> what the net sees in them. dtype: of the convolutions."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> Seen:
        d = self.dtype
        x = ((resize(images.astype(jnp.float32)) - 128) / 128).astype(d)
        x = Convolution(32, (3, 3), 2, dtype=d, name="Conv2d_1a_3x3")(x)
        x = Convolution(32, (3, 3), 1, False, dtype=d, name="Conv2d_2a_3x3")(x)
        x = reduced(Convolution(64, (3, 3), dtype=d, name="Conv2d_2b_3x3")(x))
        x = Convolution(80, dtype=d, name="Conv2d_3b_1x1")(x)
        x = reduced(Convolution(192, (3, 3), 1, False, dtype=d, name="Conv2d_4a_3x3")(x))
        for name, pooled in (("5b", 32), ("5c", 64), ("5d", 64)):
            x, _ = block_a(pooled, d, f"Mixed_{name}")(x)
        x, _ = block_b(d, "Mixed_6a")(x)
        spatial = None
        for name, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x, first = block_c(c, d, f"Mixed_{name}")(x)
            spatial = first if name == "6d" else spatial  # 'mixed_6/conv' of TensorFlow's graph
        x, _ = block_d(d, "Mixed_7a")(x)
        x, _ = block_e("average", d, "Mixed_7b")(x)
        x, _ = block_e("largest", d, "Mixed_7c")(x)
        pool = x.astype(jnp.float32).mean((1, 2))
        logits = nn.Dense(1008, use_bias=False, precision=jax.lax.Precision.HIGHEST, name="fc")(pool)
        spatial = spatial[..., :SPATIAL].astype(jnp.float32)
        return Seen(pool, spatial.reshape(len(images), -1), logits)


def resize(images: jax.Array) -> jax.Array:
    """To 299x299 as TensorFlow 1 does: bilinear, no antialiasing, the corners at the corners of the upper left pixel.

    [B,H,W,C] -> [B,299,299,C]. jax.image.resize and PIL put pixels' centres elsewhere, which moves FID by points.
    """

    def along(x: jax.Array, axis: int) -> jax.Array:
        side = x.shape[axis]
        place = np.arange(SIZE, dtype=np.float32) * np.float32(side / SIZE)
        low = np.floor(place).astype(int)
        high, part = np.minimum(low + 1, side - 1), place - low
        part = part.reshape(-1, *[1] * (x.ndim - axis - 1))
        a, b = jnp.take(x, low, axis), jnp.take(x, high, axis)
        return a + (b - a) * part

    return along(along(images, 2), 1)
