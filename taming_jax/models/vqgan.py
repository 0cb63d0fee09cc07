"""Stage one's generator: encoder, quantizer, decoder."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from taming_jax.models import autoencoder, maskgit
from taming_jax.models.quantize import make_quantizer


class VQModel(nn.Module):
    """VQGAN generator (Esser et al. 2021, section 3.1). Images are [B,H,W,C] in [-1, 1], codes [B,h,w] int32.

    out_ch: C. quantizer: `name` and the fields of that module in `models/quantize.py`. network: 'vqgan'; 'maskgit' for
    the one in `models/maskgit.py`, which has no attention and reads codes as they are; or 'local', for codes that
    depend on what is near alone, see `autoencoder.Encoder`. remat: see `autoencoder.blocks`. patch: pixels on a side of
    the squares that the network takes for single ones; with 2, four times as many pixels for the same work. `step` and
    `train` are for quantizers with schedules and noise.
    """

    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    resolution: int
    z_channels: int
    out_ch: int
    quantizer: dict
    network: str = "vqgan"
    remat: bool = False
    patch: int = 1
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        trunk = dict(
            ch=self.ch,
            ch_mult=self.ch_mult,
            num_res_blocks=self.num_res_blocks,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.quantize = make_quantizer(self.quantizer)
        self.quant_conv = autoencoder.conv(self.quantize.embed_dim, 1, name=None, dtype=self.dtype)
        if self.network == "maskgit":
            self.encoder, self.decoder = maskgit.Encoder(**trunk), maskgit.DecoderTrunk(**trunk)
            self.post_quant_conv = lambda z_q: z_q
        else:
            trunk |= dict(attn_resolutions=self.attn_resolutions, resolution=self.resolution)
            trunk |= dict(local=self.network == "local")
            self.encoder = autoencoder.Encoder(z_channels=self.z_channels, **trunk)
            self.decoder = autoencoder.DecoderTrunk(**trunk)
            self.post_quant_conv = autoencoder.conv(self.z_channels, 1, name=None, dtype=self.dtype)
        conv, _ = autoencoder.make_parts(self.dtype, self.network == "local")
        self.conv_out = conv(self.out_ch * self.patch**2, name=None)

    def encode(
        self, images: jax.Array, step: jax.Array | int = 0, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """[B,H,W,C] -> (z_q [B,h,w,D], {'ids': [B,h,w] int32, 'loss': [], ...})."""
        return self.quantize(self.quant_conv(self.encoder(autoencoder.to_patches(images, self.patch))), step, train)

    def head(self, hidden: jax.Array) -> jax.Array:
        """The last convolution, where the adaptive weight looks. [B,H/patch,W/patch,ch] -> [B,H,W,C] float32."""
        images = autoencoder.from_patches(self.conv_out(hidden).astype(jnp.float32), self.patch)
        return 2 * images - 1 if self.network == "maskgit" else images

    def features(
        self, images: jax.Array, step: jax.Array | int = 0, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Everything before `head`. [B,H,W,C] -> (hidden [B,H/patch,W/patch,ch], as `encode`)."""
        z_q, codes = self.encode(images, step, train)
        return self.decoder(self.post_quant_conv(z_q)), codes

    def decode(self, z_q: jax.Array) -> jax.Array:
        """[B,h,w,D] -> [B,H,W,C], roughly in [-1, 1]."""
        return self.head(self.decoder(self.post_quant_conv(z_q)))

    def decode_ids(self, ids: jax.Array) -> jax.Array:
        """[B,h,w] int32 -> [B,H,W,C]."""
        return self.decode(self.quantize.lookup(ids))

    def lookup(self, ids: jax.Array) -> jax.Array:
        """[...] int32 -> their codes [...,D]."""
        return self.quantize.lookup(ids)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        hidden, codes = self.features(images)
        return self.head(hidden), codes
