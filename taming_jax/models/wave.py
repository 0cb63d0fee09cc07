"""The wavefront transformer: codes are written along slanted fronts, and each sees what is near and written before.

Its schedule is its mask, see `schedule`. A slot's inputs are the codes to its left and above it, and it predicts its
own: so sampling does what training did, keys and values are never computed again, and each code costs one token's work,
however large the grid is.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from taming_jax.models.gpt import BLOCK, LAYER_NORM_EPS, dense, gelu, make_layers, normal_init, run_layers
from taming_jax.schedule import Front, Schedule

RMS_NORM_EPS = 1e-5  # LLaMA's
ROPE_BASE = 100.0  # ratio of the longest wave to the shortest: reaches are tens of codes, not thousands of words

# Per layer: rotated keys and values of the last steps, [B,steps,rows,heads,D/heads].
Cache = tuple[tuple[jax.Array, jax.Array], ...]


class Wave(NamedTuple):
    """A front on its way over a grid [h,w]: its state between steps.

    cache: see `Cache`. prefix: keys and values of the condition's ids, per layer [B,P,heads,D/heads].
    """

    cache: Cache
    prefix: Cache
    cond: jax.Array  # what each slot gets of a condition that lies on a grid, [B,h,w,D]


def rotate(x: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
    """Rotary positions in two dimensions (Su et al. 2021): half of a head turns with the row, half with the column.

    x [...,heads,D], i and j [...] -> like x. Products of two depend on the difference of their places alone.
    """
    quarter = x.shape[-1] // 4
    waves = ROPE_BASE ** (-np.arange(quarter) / quarter)
    angles = jnp.concatenate([place[..., None] * waves for place in (i, j)], -1)[..., None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1).astype(x.dtype)


def weigh(parts: list[tuple], drop: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Softmax attention over several groups of keys at once: (q [B,T,N,D], k, v [B,S,N,D], mask [T,S] or None) each."""
    scores = []
    for q, k, _, mask in parts:
        found = jnp.einsum("btnd,bsnd->bnts", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
        scores.append(found if mask is None else jnp.where(mask, found, -jnp.inf))
    weights = drop(jax.nn.softmax(jnp.concatenate(scores, -1), -1))
    at = np.cumsum([k.shape[1] for _, k, _, _ in parts])[:-1]
    return sum(
        jnp.einsum("bnts,bsnd->btnd", w.astype(v.dtype), v)
        for w, (_, _, v, _) in zip(jnp.split(weights, at, -1), parts, strict=True)
    )


class Block(nn.Module):
    """Pre-norm transformer block; the paper's, but for whom its positions see."""

    schedule: Schedule
    embed_dim: int
    num_heads: int
    attn_pdrop: float
    resid_pdrop: float
    dtype: jnp.dtype

    def setup(self) -> None:
        self.ln1 = nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=self.dtype)
        self.ln2 = nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=self.dtype)
        self.query, self.key, self.value, self.proj = (dense(self.embed_dim, self.dtype) for _ in range(4))
        self.mlp_in, self.mlp_out = dense(4 * self.embed_dim, self.dtype), dense(self.embed_dim, self.dtype)
        self.attn_drop, self.resid_drop = nn.Dropout(self.attn_pdrop), nn.Dropout(self.resid_pdrop)

    def ask(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Queries, keys and values: [B,T,D] -> [B,T,heads,D/heads] each."""
        x = self.ln1(x)
        return tuple(f(x).reshape(*x.shape[:2], self.num_heads, -1) for f in (self.query, self.key, self.value))

    def answer(self, x: jax.Array, y: jax.Array, deterministic: bool) -> jax.Array:
        """What was attended to, [B,T,heads,D/heads], and the MLP, added to x [B,T,D]."""
        x = x + self.resid_drop(self.proj(y.reshape(x.shape)), deterministic=deterministic)
        return x + self.resid_drop(self.mlp(self.ln2(x)), deterministic=deterministic)

    def mlp(self, x: jax.Array) -> jax.Array:
        return self.mlp_out(gelu(self.mlp_in(x)))

    def __call__(self, x: tuple[jax.Array, jax.Array], deterministic: bool) -> tuple[tuple, None]:
        """Prefix [B,P,D] and all slots of a grid [B,h,w,D] at once -> the same."""
        prefix, slots = x
        drop = lambda weights: self.attn_drop(weights, deterministic=deterministic)  # noqa: E731
        (b, h, w, d), seen = slots.shape, []
        if prefix.shape[1]:
            q, k, v = self.ask(prefix)
            prefix = self.answer(prefix, weigh([(q, k, v, None)], drop), deterministic)
            seen = [(k, v)]
        slots = slots.reshape(b, h * w, d)
        q, k, v = self.ask(slots)
        i, j = (jnp.asarray(place.ravel(), jnp.float32) for place in np.indices((h, w)))
        turned, k = rotate(q, i, j), rotate(k, i, j)
        rows, parts = max(1, BLOCK // w), []
        for top in range(0, h, rows):
            bottom, first = min(top + rows, h), max(0, top - self.schedule.reach[0])
            last = min(h, bottom + self.schedule.reach[0])
            asks, near = slice(top * w, bottom * w), slice(first * w, last * w)
            mask = jnp.asarray(self.schedule.mask(h, w, asks, near))
            groups = [(turned[:, asks], k[:, near], v[:, near], mask)]
            parts.append(weigh(groups + [(q[:, asks], *kv, None) for kv in seen], drop))
        slots = self.answer(slots, jnp.concatenate(parts, 1), deterministic)
        self.sow("intermediates", "out", slots)
        return (prefix, slots.reshape(b, h, w, d)), None

    def read(self, prefix: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """The condition's ids alone: [B,P,D] -> the same, and their keys and values for `step`."""
        q, k, v = self.ask(prefix)
        return self.answer(prefix, weigh([(q, k, v, None)], lambda w: w), True), (k, v)

    def step(self, x: jax.Array, front: Front, prefix: tuple | None, cache: tuple) -> tuple[jax.Array, tuple]:
        """The slots of one step, [B,rows,D] -> the same, and the cache with them."""
        q, k, v = self.ask(x)
        i, j = (place.astype(jnp.float32) for place in (front.i, front.j))
        turned, k = rotate(q, i, j), rotate(k, i, j)
        cache = tuple(
            jax.lax.dynamic_update_slice_in_dim(old, new[:, None], front.plane, 1)
            for old, new in zip(cache, (k, v), strict=True)
        )
        parts = []
        for asks, near in front.groups:
            keys, values = (old[:, :, near].reshape(len(x), -1, *old.shape[3:]) for old in cache)
            mask = front.mask[asks][:, :, near].reshape(len(asks), -1)
            groups = [(turned[:, asks], keys, values, mask)]
            parts.append(weigh(groups + ([(q[:, asks], *prefix, None)] if prefix is not None else []), lambda w: w))
        return self.answer(x, jnp.concatenate(parts, 1), True), cache


class ModernBlock(Block):
    """The same with RMSNorm (Zhang and Sennrich 2019), SwiGLU without biases (Shazeer 2020), and norms of each head's
    queries and keys (Henry et al. 2020)."""

    mlp_dim: int

    def setup(self) -> None:
        norm = functools.partial(nn.RMSNorm, epsilon=RMS_NORM_EPS, dtype=self.dtype)
        self.ln1, self.ln2, self.q_norm, self.k_norm = norm(), norm(), norm(), norm()
        self.query, self.key, self.value, self.proj = (dense(self.embed_dim, self.dtype) for _ in range(4))
        self.mlp_gate, self.mlp_in = (dense(self.mlp_dim, self.dtype, use_bias=False) for _ in range(2))
        self.mlp_out = dense(self.embed_dim, self.dtype, use_bias=False)
        self.attn_drop, self.resid_drop = nn.Dropout(self.attn_pdrop), nn.Dropout(self.resid_pdrop)

    def ask(self, x: jax.Array) -> tuple[jax.Array, ...]:
        q, k, v = super().ask(x)
        return self.q_norm(q), self.k_norm(k), v

    def mlp(self, x: jax.Array) -> jax.Array:
        return self.mlp_out(nn.silu(self.mlp_gate(x)) * self.mlp_in(x))


class WaveGPT(nn.Module):
    """The wavefront transformer over a grid of codes.

    vocab_size: codes. cond_size: ids of the condition, with the one that stands for none. prefix: how many of them
    precede the codes, all seen by every slot; 0 for a condition that lies on a grid, of which each slot gets what lies
    at its own place and around it. cells: codes on a side for one id of that grid. mlp_dim: None for the paper's
    layers, or that of `ModernBlock`s. places: how many rows and columns have a learned embedding, as shares of the
    whole grid, whatever its size; 0 for none, so that a slot knows no more than what it sees. gather, remat, unrolled:
    see `gpt.GPT`.
    """

    schedule: Schedule
    vocab_size: int
    cond_size: int
    prefix: int
    cells: int
    num_layers: int
    num_heads: int
    embed_dim: int
    embd_pdrop: float
    attn_pdrop: float
    resid_pdrop: float
    mlp_dim: int | None = None
    places: int = 0
    gather: Callable[[dict], dict] = lambda params: params
    remat: str = "none"
    unrolled: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        d = self.embed_dim
        # One more than there are codes: for what lies outside.
        self.left_embedding = self.param("left_embedding", normal_init, (self.vocab_size + 1, d))
        self.above_embedding = self.param("above_embedding", normal_init, (self.vocab_size + 1, d))
        self.cond_embedding = self.param("cond_embedding", normal_init, (self.cond_size, d))
        if self.places:
            self.row_embedding = self.param("row_embedding", normal_init, (self.places, d))
            self.column_embedding = self.param("column_embedding", normal_init, (self.places, d))
        if self.prefix:
            self.prefix_embedding = self.param("prefix_embedding", nn.initializers.zeros, (self.prefix, d))
        else:
            self.cell_embedding = self.param("cell_embedding", normal_init, (self.cells, self.cells, d))
            self.cond_in, self.cond_out = (nn.Conv(d, (3, 3), dtype=self.dtype) for _ in range(2))
        self.embd_drop = nn.Dropout(self.embd_pdrop)
        fields = (self.schedule, d, self.num_heads, self.attn_pdrop, self.resid_pdrop, self.dtype)
        if self.mlp_dim is None:
            self.blocks = make_layers(self, Block, fields, shared=1)
            self.ln_f = nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=self.dtype)
        else:
            self.blocks = make_layers(self, ModernBlock, (*fields, self.mlp_dim), shared=1)
            self.ln_f = nn.RMSNorm(epsilon=RMS_NORM_EPS, dtype=self.dtype)
        self.head = dense(self.vocab_size, self.dtype, use_bias=False)

    def __call__(self, c: jax.Array, codes: jax.Array, train: bool = False) -> jax.Array:
        """Logits of every code, given the condition and the codes written before it: [B,h*w,vocab_size] float32.

        c: ids, [B,prefix] or a grid [B,h/cells,w/cells]. codes [B,h,w] int32. `train` draws 'dropout'.
        """
        around = jnp.pad(codes, ((0, 0), (1, 0), (1, 0)), constant_values=self.vocab_size)
        x = self.left_embedding[around[:, 1:, :-1]] + self.above_embedding[around[:, :-1, 1:]]
        x = x + self.place(*np.indices(codes.shape[1:]), *codes.shape[1:])
        prefix, aligned = self.condition(c)
        x = x if aligned is None else x + aligned
        drop = lambda x: self.embd_drop(x.astype(self.dtype), deterministic=not train)  # noqa: E731
        _, x = run_layers(self.blocks, (drop(prefix), drop(x)), not train)
        return self.head(self.ln_f(x.reshape(len(codes), -1, self.embed_dim))).astype(jnp.float32)

    def place(self, i: jax.Array, j: jax.Array, h: int, w: int) -> jax.Array | float:
        """What slots (i, j) of a grid h x w know of where they are: [...] -> [...,D], or 0."""
        if not self.places:
            return 0.0
        return self.row_embedding[i * self.places // h] + self.column_embedding[j * self.places // w]

    def condition(self, c: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The prefix [B,P,D], and what each slot gets, [B,h,w,D], or None."""
        x = self.cond_embedding[c]
        if self.prefix:
            return x + self.prefix_embedding, None
        x = self.cond_out(gelu(self.cond_in(x.astype(self.dtype)))).astype(jnp.float32)
        x = x.repeat(self.cells, 1).repeat(self.cells, 2)
        return x[:, :0, 0], x + jnp.tile(self.cell_embedding, (*c.shape[1:], 1))

    def begin(self, c: jax.Array, h: int, w: int) -> Wave:
        """Before the first step over a grid of h x w codes; for `unrolled`. c: as in the call."""
        prefix, aligned = self.condition(c)
        x, read = prefix.astype(self.dtype), []
        for block in self.blocks if self.prefix else ():
            x, kv = block.read(x)
            read.append(kv)
        shape = (
            len(c),
            self.schedule.steps(h, w),
            self.schedule.rows(h, w),
            self.num_heads,
            self.embed_dim // self.num_heads,
        )
        cache = tuple((jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)) for _ in range(self.num_layers))
        return Wave(cache, tuple(read), aligned)

    def step(self, codes: jax.Array, wave: Wave, front: Front) -> tuple[jax.Array, Wave]:
        """The logits of a front's slots, [B,rows,vocab_size] float32, given the codes [B,h,w] written before."""
        h, w = codes.shape[1:]
        i, j = front.i.clip(0, h - 1), front.j.clip(0, w - 1)
        left = jnp.where(front.j > 0, codes[:, i, j - 1], self.vocab_size)
        above = jnp.where(front.i > 0, codes[:, i - 1, j], self.vocab_size)
        x = self.left_embedding[left] + self.above_embedding[above] + self.place(i, j, h, w)
        x = x if wave.cond is None else x + wave.cond[:, i, j]
        x, filled = x.astype(self.dtype), []
        for block, prefix, cache in zip(self.blocks, wave.prefix or [None] * self.num_layers, wave.cache, strict=True):
            x, cache = block.step(x, front, prefix, cache)
            filled.append(cache)
        return self.head(self.ln_f(x)).astype(jnp.float32), wave._replace(cache=tuple(filled))
