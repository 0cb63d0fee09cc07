"""Encoder and decoder of MaskGIT's VQGAN (Chang et al. 2022), as RAR and TiTok's decoders use it.

Against `autoencoder`: no attention, fewer biases, average pooling, as many blocks in the decoder as in the encoder and
as many in the middle, and a shortcut that is not one, see `ResBlock`. Its pixels are in [0, 1]; ours are [-1, 1], and
are moved at both ends. The encoder ends before its last convolution, 1x1, which is `VQModel.quant_conv`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from taming_jax.models.autoencoder import conv, group_norm, upsample


class ResBlock(nn.Module):
    """norm, swish, conv, twice, and a shortcut. [B,H,W,C] -> [B,H,W,features].

    Where the number of channels changes, the shortcut's convolution sees the block's result and not its input, which is
    lost: y + conv(y). The published weights are trained so.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kwargs = dict(dtype=self.dtype, use_bias=False)
        h = conv(self.features, name="conv1", **kwargs)(nn.swish(group_norm("norm1", self.dtype)(x)))
        h = conv(self.features, name="conv2", **kwargs)(nn.swish(group_norm("norm2", self.dtype)(h)))
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, name="nin_shortcut", **kwargs)(h)
        return x + h


class Encoder(nn.Module):
    """Images in [-1, 1] to the last hidden map. [B,H,W,3] -> [B,H/f,W/f,ch*ch_mult[-1]], f = 2^(len(ch_mult) - 1)."""

    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        res_block = nn.remat(ResBlock) if self.remat else ResBlock
        x = conv(self.ch, name="conv_in", dtype=self.dtype, use_bias=False)(((x + 1) / 2).astype(self.dtype))
        for level, mult in enumerate(self.ch_mult):
            if level:
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for i in range(self.num_res_blocks):
                x = res_block(self.ch * mult, self.dtype, name=f"down_{level}_block_{i}")(x)
        for i in range(self.num_res_blocks):
            x = res_block(x.shape[-1], self.dtype, name=f"mid_block_{i}")(x)
        return nn.swish(group_norm("norm_out", self.dtype)(x))


class DecoderTrunk(nn.Module):
    """Codes to the last hidden map, before `VQModel.head`. [B,h,w,D] -> [B,h*f,w*f,ch*ch_mult[0]]."""

    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        res_block = nn.remat(ResBlock) if self.remat else ResBlock
        x = conv(self.ch * self.ch_mult[-1], name="conv_in", dtype=self.dtype)(z.astype(self.dtype))
        for i in range(self.num_res_blocks):
            x = res_block(x.shape[-1], self.dtype, name=f"mid_block_{i}")(x)
        for level in reversed(range(len(self.ch_mult))):
            for i in range(self.num_res_blocks):
                x = res_block(self.ch * self.ch_mult[level], self.dtype, name=f"up_{level}_block_{i}")(x)
            if level:
                x = conv(x.shape[-1], name=f"up_{level}_conv", dtype=self.dtype)(upsample(x))
        return nn.swish(group_norm("norm_out", self.dtype)(x))
