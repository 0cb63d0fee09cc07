"""LlamaGen's transformer (Sun et al. 2024, arXiv 2406.06525): LLaMA's layers over codes, places by rotation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from taming_jax.models.gpt import GPT, Attention, dense, make_layers, normal_init, rows_at


def default_mlp_dim(embed_dim: int, multiple_of: int = 256) -> int:
    """The width of the SwiGLU's middle: two thirds of 4 times the embedding's, rounded up."""
    return -(-int(8 * embed_dim / 3) // multiple_of) * multiple_of


def rotary_table(prefix: int, side: int, head_dim: int, base: float) -> np.ndarray:
    """Cosine and sine for each position and pair of channels: float32 [prefix + side^2,head_dim/2,2].

    The first half of the pairs turns with the row, the second with the column. The entries of the prefix are 0, not 1
    and 0: a condition's query and key vanish, it sees itself, and codes weigh it with a score of 0. LlamaGen's weights
    are trained so.
    """
    waves = 1.0 / np.float32(base) ** (np.arange(0, head_dim // 2, 2, dtype=np.float32) / np.float32(head_dim // 2))
    places = np.indices((side, side), dtype=np.float32).reshape(2, -1)  # rows, columns
    angles = np.concatenate([np.outer(place, waves) for place in places], 1)
    turned = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
    return np.concatenate([np.zeros((prefix, *turned.shape[1:]), np.float32), turned])


def rotate(x: jax.Array, table: jax.Array) -> jax.Array:
    """Turns pairs of neighbouring channels. x [B,T,heads,D], table [T,D/2,2] or [B,T,D/2,2] -> like x."""
    a, b = jnp.moveaxis(x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2), -1, 0)
    cos, sin = table[..., None, :, 0], table[..., None, :, 1]
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape).astype(x.dtype)


class RotaryAttention(Attention):
    """Attention whose queries and keys are turned by their places, see `rotary_table`."""

    prefix: int = 0
    side: int = 0
    rope_base: float = 0.0

    def tune(self, q: jax.Array, k: jax.Array, position: jax.Array | int, at: jax.Array | None) -> tuple:
        table = jnp.asarray(rotary_table(self.prefix, self.side, q.shape[-1], self.rope_base))
        own = jax.lax.dynamic_slice_in_dim(table, position, k.shape[1])
        return rotate(q, own if at is None else own[at][:, None]), rotate(k, own)


class Block(nn.Module):
    """Pre-norm block of RMSNorm, rotary attention and SwiGLU, without biases. Calls as `gpt.Block`'s."""

    num_heads: int
    num_kv_heads: int | None
    mlp_dim: int
    attn_pdrop: float
    resid_pdrop: float
    norm_eps: float
    rope: tuple[int, int, float]  # prefix, side, base
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, mask, deterministic, cache=None, position=None, at=None):
        d = x.shape[-1]
        h = nn.RMSNorm(epsilon=self.norm_eps, dtype=self.dtype, name="ln1")(x)
        attention = RotaryAttention(
            self.num_heads,
            self.attn_pdrop,
            self.resid_pdrop,
            self.dtype,
            False,
            self.num_kv_heads,
            *self.rope,
            name="attn",
        )
        h, cache = attention(h, mask, deterministic, cache, position, at)
        x = (x if at is None else rows_at(x, at)) + h
        h = nn.RMSNorm(epsilon=self.norm_eps, dtype=self.dtype, name="ln2")(x)
        gate, h = (dense(self.mlp_dim, self.dtype, name, use_bias=False)(h) for name in ("mlp_gate", "mlp_in"))
        h = dense(d, self.dtype, "mlp_out", use_bias=False)(nn.silu(gate) * h)
        return x + nn.Dropout(self.resid_pdrop)(h, deterministic=deterministic), cache


class LlamaGPT(GPT, kw_only=True):
    """A transformer over a condition and a grid of side x side codes, which have a vocabulary each.

    Calls as `GPT`'s. vocab_size: codes. cond_size: ids of the condition, with the one that stands for none. prefix: how
    many of them precede the codes. norm_eps, rope_base: as LlamaGen's models have them.
    """

    cond_size: int
    prefix: int
    side: int
    mlp_dim: int
    num_kv_heads: int | None = None
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0

    def setup(self) -> None:
        self.token_embedding = self.param("token_embedding", normal_init, (self.vocab_size, self.embed_dim))
        self.cond_embedding = self.param("cond_embedding", normal_init, (self.cond_size, self.embed_dim))
        self.embd_drop = nn.Dropout(self.embd_pdrop)
        fields = (self.num_heads, self.num_kv_heads, self.mlp_dim, self.attn_pdrop, self.resid_pdrop, self.norm_eps)
        fields += ((self.prefix, self.side, self.rope_base), self.dtype)
        self.blocks = make_layers(self, Block, fields, shared=2)
        self.ln_f = nn.RMSNorm(epsilon=self.norm_eps, dtype=self.dtype)
        self.head = dense(self.vocab_size, self.dtype, use_bias=False)

    def embed(self, ids: jax.Array, position: jax.Array | int, embeddings: jax.Array | None) -> jax.Array:
        precedes = position + jnp.arange(ids.shape[1]) < self.prefix
        return jnp.where(precedes[:, None], self.cond_embedding[ids], self.token_embedding[ids])
