"""Discriminators: PatchGAN (Isola et al. 2017), as in the original; and the blurred one of VQGAN+."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from taming_jax.models.autoencoder import torch_init
from taming_jax.models.convolution import Conv

# Hard-wired in the original, or PyTorch's own where it names none.
LEAKY_SLOPE = 0.2
BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1  # of the new batch, as PyTorch counts it; flax counts the old ones
ACT_NORM_EPS = 1e-6
# Of the blurred one, in 1d-tokenizer.
FLAT_SLOPE, GROUPS, GROUP_NORM_EPS, POOLED = 0.1, 32, 1e-5, 16
normal_init = nn.initializers.normal(0.02)


def leaky_relu(x: jax.Array, slope: float = LEAKY_SLOPE) -> jax.Array:
    """`slope` below 0 and, unlike in `jax.nn`, at 0 itself: gradients are PyTorch's there too."""
    return jnp.where(x > 0, x, slope * x)


class BatchNorm(nn.Module):
    """Batch normalisation as in PyTorch: the running variance is the unbiased one (flax keeps the biased).

    In training the statistics cover the global batch (under `jit`, whatever the mesh); the original's cover one GPU.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = x.shape[-1]
        scale = self.param("scale", lambda key, shape: 1 + normal_init(key, shape), (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        x = x.astype(jnp.float32)
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            n = x.size // c
            if not self.is_initializing():
                new = BATCH_NORM_MOMENTUM
                running_mean.value = (1 - new) * running_mean.value + new * mean
                running_var.value = (1 - new) * running_var.value + new * var * n / (n - 1)
        else:
            mean, var = running_mean.value, running_var.value
        return ((x - mean) * (jax.lax.rsqrt(var + BATCH_NORM_EPS) * scale) + bias).astype(self.dtype)


class ActNorm(nn.Module):
    """Scale and offset per channel that start so that the first training batch leaves with mean 0 and deviation 1.

    (Kingma & Dhariwal 2018.) What the first batch gives is kept in 'batch_stats', the parameters are added to it and
    start at 0: the same steps of Adam as in the original, whose first forward writes over its parameters.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = x.shape[-1]
        loc, scale = self.param("loc", nn.initializers.zeros, (c,)), self.param("scale", nn.initializers.zeros, (c,))
        first_loc = self.variable("batch_stats", "loc", jnp.zeros, (c,))
        first_scale = self.variable("batch_stats", "scale", jnp.ones, (c,))
        initialized = self.variable("batch_stats", "initialized", jnp.zeros, (), jnp.bool)
        x = x.astype(jnp.float32)
        if train and not self.is_initializing():
            batch = jax.lax.stop_gradient(x)
            first_loc.value = jnp.where(initialized.value, first_loc.value, -batch.mean((0, 1, 2)))
            deviation = batch.std((0, 1, 2), ddof=1)
            first_scale.value = jnp.where(initialized.value, first_scale.value, 1 / (deviation + ACT_NORM_EPS))
            initialized.value = jnp.ones((), jnp.bool)
        return ((x + first_loc.value + loc) * (first_scale.value + scale)).astype(self.dtype)


class NLayerDiscriminator(nn.Module):
    """Judges overlapping patches. [B,H,W,C] in [-1, 1] -> logits [B,h,w,1] float32, higher is more real.

    use_actnorm: ActNorm in place of BatchNorm.
    """

    ndf: int
    n_layers: int
    use_actnorm: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def conv(features, strides, name, use_bias):
            pad = ((1, 1), (1, 1))
            return Conv(
                features, (4, 4), strides, pad, use_bias=use_bias, kernel_init=normal_init, dtype=self.dtype, name=name
            )

        x = leaky_relu(conv(self.ndf, 2, "conv_0", True)(x.astype(self.dtype)))
        for n in range(1, self.n_layers + 1):
            features = self.ndf * min(2**n, 8)
            x = conv(features, 2 if n < self.n_layers else 1, f"conv_{n}", self.use_actnorm)(x)
            norm = ActNorm if self.use_actnorm else BatchNorm
            x = leaky_relu(norm(self.dtype, name=f"norm_{n}")(x, train))
        return conv(1, 1, "conv_out", True)(x).astype(jnp.float32)


class BlurredDiscriminator(nn.Module):
    """VQGAN+'s (Weber et al. 2024, MaskBit, section 3.1): few layers, all wide, each halved after a blur.

    [B,H,W,C] in [-1, 1] -> logits [B,16,16,1] float32, each the strongest of its part of the image. As in
    1d-tokenizer's code, but for the range of the images, which is [0, 1] there. It keeps no statistics.
    """

    ndf: int
    n_layers: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def conv(features, side, name):
            return Conv(features, (side, side), kernel_init=torch_init, dtype=self.dtype, name=name)

        def norm(name):
            # The fast variance E[x^2] - E[x]^2 cancels at large means.
            return nn.GroupNorm(GROUPS, epsilon=GROUP_NORM_EPS, use_fast_variance=False, dtype=self.dtype, name=name)

        x = leaky_relu(conv(self.ndf, 5, "conv_in")(x.astype(self.dtype)), FLAT_SLOPE)
        for n in range(self.n_layers):
            x = blur(conv(self.ndf * 2**n, 3, f"conv_{n}")(x))
            x = leaky_relu(norm(f"norm_{n}")(x), FLAT_SLOPE)
        x = pool(pool(x, 1), 2)
        x = leaky_relu(conv(x.shape[-1], 1, "conv_mid")(x), FLAT_SLOPE)
        return conv(1, 5, "conv_out")(x).astype(jnp.float32)


def blur(x: jax.Array) -> jax.Array:
    """Half as large, by the binomial filter (1, 3, 3, 1) (Zhang 2019). [B,H,W,C] -> [B,H/2,W/2,C], rounded up."""
    taps = jnp.asarray([1, 3, 3, 1], x.dtype) / 8
    kernel = jnp.broadcast_to(jnp.outer(taps, taps)[..., None, None], (4, 4, 1, x.shape[-1]))
    numbers = jax.lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=x.shape[-1]
    )


def pool(x: jax.Array, axis: int, size: int = POOLED) -> jax.Array:
    """The largest values of `size` parts of an axis, which overlap or repeat where it is no multiple of that."""
    n = x.shape[axis]
    parts = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
    return jnp.stack([jax.lax.slice_in_dim(x, *part, axis=axis).max(axis) for part in parts], axis)


def make_discriminator(disc: ConfigDict, dtype: jnp.dtype = jnp.float32) -> nn.Module:
    """The one of `config.disc`. Called with (images, train), it may keep 'batch_stats'."""
    if disc.network == "blurred":
        return BlurredDiscriminator(disc.ndf, disc.n_layers, dtype)
    return NLayerDiscriminator(disc.ndf, disc.n_layers, disc.use_actnorm, dtype)
