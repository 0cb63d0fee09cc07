"""Convolutional encoder and decoder of the VQGAN (Esser et al. 2021, table 7; after Ho et al. 2020).

Follows the original implementation: ResNet blocks of GroupNorm, swish and 3x3 convolutions; single-head
attention at chosen resolutions and in the middle; down-sampling pads right and bottom only;
`num_res_blocks + 1` blocks per level in the decoder; no tanh at the output.
Kernels start from the original's distribution (PyTorch's U(+-1/sqrt(fan_in))); biases start at 0 instead of
that same distribution, which no result depends on.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from taming_jax.models.convolution import Conv

# Hard-wired in the original.
GROUPS = 32  # of GroupNorm, so that all widths are multiples of it
GROUP_NORM_EPS = 1e-6
torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def conv(
    features: int,
    kernel_size: int = 3,
    *,
    name: str,
    dtype: jnp.dtype,
    strides: int = 1,
    padding="SAME",
    use_bias: bool = True,
) -> nn.Conv:
    return Conv(
        features,
        (kernel_size, kernel_size),
        strides=strides,
        padding=padding,
        use_bias=use_bias,
        kernel_init=torch_init,
        dtype=dtype,
        name=name,
    )


def group_norm(name: str, dtype: jnp.dtype) -> nn.GroupNorm:
    # The fast variance E[x^2] - E[x]^2 cancels at large means and would move codes away from the original's.
    return nn.GroupNorm(num_groups=GROUPS, epsilon=GROUP_NORM_EPS, use_fast_variance=False, dtype=dtype, name=name)


def make_parts(dtype: jnp.dtype, local: bool) -> tuple[Callable[..., nn.Conv], Callable[..., nn.Module]]:
    """`conv` and `group_norm`; where `local`, convolutions that mirror borders and norms over each place's channels."""
    if not local:
        return functools.partial(conv, dtype=dtype), functools.partial(group_norm, dtype=dtype)
    norm = functools.partial(nn.LayerNorm, epsilon=GROUP_NORM_EPS, use_fast_variance=False, dtype=dtype)
    return functools.partial(conv, dtype=dtype, padding="REFLECT"), norm


class ResBlock(nn.Module):
    """norm, swish, conv, twice, and a shortcut. [B,H,W,C] -> [B,H,W,features]. local: see `Encoder`."""

    features: int
    dtype: jnp.dtype = jnp.float32
    local: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, norm = make_parts(self.dtype, self.local)
        h = conv(self.features, name="conv1")(nn.swish(norm(name="norm1")(x)))
        h = conv(self.features, name="conv2")(nn.swish(norm(name="norm2")(h)))
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, name="nin_shortcut")(x)
        return x + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, scaled by C^-0.5. [B,H,W,C] -> [B,H,W,C]."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        y = group_norm("norm", self.dtype)(x)
        q, k, v = (conv(c, 1, name=n, dtype=self.dtype)(y).reshape(b, h * w, 1, c) for n in ("q", "k", "v"))
        y = jax.nn.dot_product_attention(q, k, v).reshape(b, h, w, c)
        return x + conv(c, 1, name="proj_out", dtype=self.dtype)(y)


def to_patches(x: jax.Array, side: int) -> jax.Array:
    """Squares of side x side pixels become channels. [B,H,W,C] -> [B,H/side,W/side,side*side*C]."""
    b, h, w, c = x.shape
    x = jnp.moveaxis(x.reshape(b, h // side, side, w // side, side, c), 2, 3)
    return x.reshape(b, h // side, w // side, side * side * c)


def from_patches(x: jax.Array, side: int) -> jax.Array:
    """The inverse of `to_patches`."""
    b, h, w, c = x.shape
    x = jnp.moveaxis(x.reshape(b, h, w, side, side, c // side**2), 3, 2)
    return x.reshape(b, h * side, w * side, c // side**2)


def upsample(x: jax.Array) -> jax.Array:
    """Nearest neighbour, twice as large. [B,H,W,C] -> [B,2H,2W,C]."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def blocks(remat: bool) -> tuple[type[nn.Module], type[nn.Module]]:
    """The modules of a level; with `remat`, the backward pass keeps their inputs and computes the rest again."""
    return (nn.remat(ResBlock), nn.remat(AttnBlock)) if remat else (ResBlock, AttnBlock)


class Encoder(nn.Module):
    """Images to latents. [B,H,W,3] -> [B,H/f,W/f,z_channels] with f = 2^(len(ch_mult) - 1).

    `attn_resolutions` are side lengths of the feature map for images of `resolution` pixels; other image
    sizes get attention at the same levels. remat: see `blocks`. local: no attention, norms of single places and
    mirrored borders. A latent then depends on what is near alone, and on nothing of the whole image: away from its
    borders, a crop is encoded as the large image is.
    """

    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    resolution: int
    z_channels: int
    remat: bool = False
    local: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        res_block, attn_block = blocks(self.remat)
        conv, norm = make_parts(self.dtype, self.local)
        x = conv(self.ch, name="conv_in")(x.astype(self.dtype))
        for level, mult in enumerate(self.ch_mult):
            for i in range(self.num_res_blocks):
                x = res_block(self.ch * mult, self.dtype, self.local, name=f"down_{level}_block_{i}")(x)
                if self.resolution >> level in self.attn_resolutions:
                    x = attn_block(self.dtype, name=f"down_{level}_attn_{i}")(x)
            if level + 1 < len(self.ch_mult):
                pad = {} if self.local else dict(padding=((0, 1), (0, 1)))
                x = conv(x.shape[-1], name=f"down_{level}_conv", strides=2, **pad)(x)
        x = res_block(x.shape[-1], self.dtype, self.local, name="mid_block_1")(x)
        x = x if self.local else attn_block(self.dtype, name="mid_attn_1")(x)
        x = res_block(x.shape[-1], self.dtype, self.local, name="mid_block_2")(x)
        x = nn.swish(norm(name="norm_out")(x))
        return conv(self.z_channels, name="conv_out")(x)


class DecoderTrunk(nn.Module):
    """Latents to the last hidden map. [B,h,w,z_channels] -> [B,h*f,w*f,ch*ch_mult[0]].

    The decoder without its final convolution, which `VQModel` holds: the adaptive weight looks at that layer alone.
    """

    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    resolution: int
    remat: bool = False
    local: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        res_block, attn_block = blocks(self.remat)
        conv, norm = make_parts(self.dtype, self.local)
        top = len(self.ch_mult) - 1
        x = conv(self.ch * self.ch_mult[top], name="conv_in")(z.astype(self.dtype))
        x = res_block(x.shape[-1], self.dtype, self.local, name="mid_block_1")(x)
        x = x if self.local else attn_block(self.dtype, name="mid_attn_1")(x)
        x = res_block(x.shape[-1], self.dtype, self.local, name="mid_block_2")(x)
        for level in range(top, -1, -1):
            for i in range(self.num_res_blocks + 1):
                x = res_block(self.ch * self.ch_mult[level], self.dtype, self.local, name=f"up_{level}_block_{i}")(x)
                if self.resolution >> level in self.attn_resolutions:
                    x = attn_block(self.dtype, name=f"up_{level}_attn_{i}")(x)
            if level:
                x = conv(x.shape[-1], name=f"up_{level}_conv")(upsample(x))
        return nn.swish(norm(name="norm_out")(x))
