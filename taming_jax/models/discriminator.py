"""PatchGAN discriminator (Isola et al. 2017), as in the original."""

import flax.linen as nn
import jax
import jax.numpy as jnp

normal_init = nn.initializers.normal(0.02)


class NLayerDiscriminator(nn.Module):
    """Judges overlapping patches. [B,H,W,C] in [-1, 1] -> logits [B,h,w,1] float32, higher is more real.

    BatchNorm statistics cover the global batch (under `jit`, whatever the mesh); the original's cover one GPU.
    """

    ndf: int
    n_layers: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def conv(features, strides, name, use_bias):
            pad = ((1, 1), (1, 1))
            return nn.Conv(
                features, (4, 4), strides, pad, use_bias=use_bias, kernel_init=normal_init, dtype=self.dtype, name=name
            )

        x = nn.leaky_relu(conv(self.ndf, 2, "conv_0", True)(x.astype(self.dtype)), 0.2)
        for n in range(1, self.n_layers + 1):
            features = self.ndf * min(2**n, 8)
            x = conv(features, 2 if n < self.n_layers else 1, f"conv_{n}", False)(x)
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                scale_init=lambda key, shape, dtype: 1 + normal_init(key, shape, dtype),
                use_fast_variance=False,
                dtype=self.dtype,
                name=f"norm_{n}",
            )(x)
            x = nn.leaky_relu(x, 0.2)
        return conv(1, 1, "conv_out", True)(x).astype(jnp.float32)
