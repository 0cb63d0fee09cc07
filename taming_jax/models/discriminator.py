"""PatchGAN discriminator (Isola et al. 2017), as in the original."""

import flax.linen as nn
import jax
import jax.numpy as jnp

# Hard-wired in the original, or PyTorch's own where it names none.
LEAKY_SLOPE = 0.2
BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1  # of the new batch, as PyTorch counts it; flax counts the old ones
ACT_NORM_EPS = 1e-6
normal_init = nn.initializers.normal(0.02)


def leaky_relu(x: jax.Array) -> jax.Array:
    """`LEAKY_SLOPE` below 0 and, unlike in `jax.nn`, at 0 itself: gradients are PyTorch's there too."""
    return jnp.where(x > 0, x, LEAKY_SLOPE * x)


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
            return nn.Conv(
                features, (4, 4), strides, pad, use_bias=use_bias, kernel_init=normal_init, dtype=self.dtype, name=name
            )

        x = leaky_relu(conv(self.ndf, 2, "conv_0", True)(x.astype(self.dtype)))
        for n in range(1, self.n_layers + 1):
            features = self.ndf * min(2**n, 8)
            x = conv(features, 2 if n < self.n_layers else 1, f"conv_{n}", self.use_actnorm)(x)
            norm = ActNorm if self.use_actnorm else BatchNorm
            x = leaky_relu(norm(self.dtype, name=f"norm_{n}")(x, train))
        return conv(1, 1, "conv_out", True)(x).astype(jnp.float32)
