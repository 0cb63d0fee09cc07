"""The transformer of stage two: mingpt's GPT as in the original, with a cache for sampling."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from taming_jax.backend import platform

BLOCK = 256  # queries that attend at once
LAYER_NORM_EPS = 1e-5  # PyTorch's, which the original leaves as it is; flax has 1e-6
normal_init = nn.initializers.normal(0.02)
Cache = tuple[tuple[jax.Array, jax.Array], ...]  # per layer: keys and values, [B,heads,T,D/heads]


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU in PyTorch's form; `jax.nn.gelu` takes erfc, which costs a CPU a tenth of the training step."""
    return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))


def contract(a: jax.Array, b: jax.Array, axes: tuple) -> jax.Array:
    """Products of two arrays of one dtype, summed over the axes (of a, of b) in float32 -> that dtype, free axes."""
    return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32).astype(a.dtype)


@jax.custom_vjp
def bfloat16_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x [B,T,D] and w [D,E], bfloat16 -> [B,T,E], with a CPU's own instructions for it, which need sums in float32.

    Twice as fast as float32 (AVX512-BF16, jaxlib 0.10.2); jax's own gradients would multiply in float32 again.
    """
    return contract(x, w, ((2,), (0,)))


bfloat16_product.defvjp(
    lambda x, w: (contract(x, w, ((2,), (0,))), (x, w)),  # in the open, where a policy of remat sees a product
    lambda xw, g: (contract(g, xw[1], ((2,), (1,))), contract(xw[0], g, ((0, 1), (0, 1)))),
)


def dense(features: int, dtype: jnp.dtype, name: str | None = None, use_bias: bool = True) -> nn.Dense:
    """A linear layer, its weights as mingpt begins them. [B,T,D] -> [B,T,features]."""
    on_cpu = dtype == jnp.bfloat16 and platform() == "cpu"
    dot_general = (lambda x, w, *_, **__: bfloat16_product(x, w)) if on_cpu else None
    return nn.Dense(features, use_bias, dtype, kernel_init=normal_init, dot_general=dot_general, name=name)


def rows_at(x: jax.Array, at: jax.Array) -> jax.Array:
    """One position of each sequence. [B,T,D], at [B] int32 -> [B,1,D]."""
    return jnp.take_along_axis(x, at[:, None, None], 1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention with a mask. q [B,T,N,D], k and v [B,N,S,D], mask [B or 1,1,T,S] -> [B,T,N,D].

    Heads come before time, so that a batch of them is read in one go: on a CPU, three times as fast as the other way.
    """
    scores = jnp.einsum("btnd,bnsd->bnts", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), -1).astype(v.dtype)
    return jnp.einsum("bnts,bnsd->btnd", weights, v)


def attend_all(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Attention of whole sequences, causal without a mask. q, k, v [B,T,N,D], mask [1,1,T,T] -> [B,T,N,D].

    In bfloat16 on NVIDIA GPUs it is cuDNN's, which keeps no scores [B,N,T,T]. Elsewhere, causal attention goes block by
    block of queries, each with the keys up to its end: of two blocks, a quarter of the scores need not be computed.
    """
    if mask is None and q.dtype == jnp.bfloat16 and platform() == "gpu":
        try:
            return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
        except (RuntimeError, NotImplementedError):  # an older GPU, or heads that it does not take
            pass
    k, v, t = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), q.shape[1]
    if mask is not None:
        return attend(q, k, v, mask)
    causal = jnp.tril(jnp.ones((1, 1, t, t), bool))
    blocks = ((start, min(start + BLOCK, t)) for start in range(0, t, BLOCK))
    parts = [attend(q[:, s:e], k[:, :, :e], v[:, :, :e], causal[:, :, s:e, :e]) for s, e in blocks]
    return jnp.concatenate(parts, 1)


class Attention(nn.Module):
    """Multi-head self-attention. [B,T,D] -> [B,T,D]; `at` [B] asks for one position each, -> [B,1,D].

    mask: who sees whom; None for each position those up to itself. num_kv_heads: fewer keys and values, each for
    several heads in a row; None for as many.
    """

    num_heads: int
    attn_pdrop: float
    resid_pdrop: float
    dtype: jnp.dtype
    use_bias: bool = True
    num_kv_heads: int | None = None

    def tune(self, q: jax.Array, k: jax.Array, position: jax.Array | int, at: jax.Array | None) -> tuple:
        """Queries and keys [B,T,heads,D/heads] before they meet. position: the first key's; at: as in the call."""
        return q, k

    @nn.compact
    def __call__(self, x, mask, deterministic, cache=None, position=None, at=None):
        b, _, d = x.shape
        asks, mask = (x, mask) if at is None else (rows_at(x, at), jnp.swapaxes(mask[0][:, at], 0, 1)[:, :, None])
        heads, kv_heads, head_dim = self.num_heads, self.num_kv_heads or self.num_heads, d // self.num_heads
        q, k, v = (
            dense(n * head_dim, self.dtype, name, self.use_bias)(y).reshape(b, -1, n, head_dim)
            for name, y, n in (("query", asks, heads), ("key", x, kv_heads), ("value", x, kv_heads))
        )
        q, k = self.tune(q, k, 0 if position is None else position, at)
        if kv_heads < heads:
            k, v = (jnp.repeat(y, heads // kv_heads, 2) for y in (k, v))
        if cache is not None:
            k, v = cache = tuple(
                jax.lax.dynamic_update_slice_in_dim(old, jnp.swapaxes(new, 1, 2), position, 2)
                for old, new in zip(cache, (k, v), strict=True)
            )
            y = attend(q, k, v, mask)
        elif self.attn_pdrop and not deterministic:  # the fused one has no dropout
            y = nn.dot_product_attention(
                q,
                k,
                v,
                mask=nn.make_causal_mask(x[..., 0]) if mask is None else mask,
                dropout_rng=self.make_rng("dropout"),
                dropout_rate=self.attn_pdrop,
                broadcast_dropout=False,
                force_fp32_for_softmax=True,
            )
        else:
            y = attend_all(q, k, v, mask)
        y = dense(d, self.dtype, "proj", self.use_bias)(y.reshape(b, -1, d))
        return nn.Dropout(self.resid_pdrop)(y, deterministic=deterministic), cache


class Block(nn.Module):
    """Pre-norm transformer block; LayerNorm's eps and exact GELU as in PyTorch. [B,T,D] -> [B,T,D].

    `at` [B] asks for one position of each sequence: -> [B,1,D].
    """

    num_heads: int
    attn_pdrop: float
    resid_pdrop: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, mask, deterministic, cache=None, position=None, at=None):
        d = x.shape[-1]
        h = nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=self.dtype, name="ln1")(x)
        attention = Attention(self.num_heads, self.attn_pdrop, self.resid_pdrop, self.dtype, name="attn")
        h, cache = attention(h, mask, deterministic, cache, position, at)
        x = (x if at is None else rows_at(x, at)) + h
        h = nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=self.dtype, name="ln2")(x)
        h = dense(4 * d, self.dtype, "mlp_in")(h)
        h = dense(d, self.dtype, "mlp_out")(gelu(h))
        x = x + nn.Dropout(self.resid_pdrop)(h, deterministic=deterministic)
        self.sow("intermediates", "out", x)
        return x, cache


REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def make_layers(net: nn.Module, block: type[nn.Module], fields: tuple, shared: int) -> nn.Module | list[nn.Module]:
    """The layers of a transformer for `run_layers`: one by one, or as one that is scanned over all their parameters.

    net: has num_layers, dtype, gather, remat and unrolled, see `GPT`. shared: how many arguments of a call all layers
    share, of which the last is static. What comes out of each, they `sow` as 'intermediates'.
    """
    if net.unrolled:
        return [block(*fields) for _ in range(net.num_layers)]

    def gather_layer(variables: dict) -> dict:
        """One layer's parameters, gathered; cast before, since half as many bytes travel."""
        cast = jax.tree.map(lambda x: x.astype(net.dtype) if x.ndim > 1 else x, variables["params"])
        return {"params": net.gather(cast)}

    # Not at their start, or the cast ones would be stored.
    block = block if net.is_initializing() else nn.map_variables(block, "params", gather_layer)
    if net.remat != "none":
        block = nn.remat(block, prevent_cse=False, static_argnums=(shared + 1,), policy=REMAT[net.remat])
    axes, rngs = {"params": 0, "intermediates": 0}, {"params": True, "dropout": True}
    # CPUs lose a tenth of the step's time to a loop; but without one, XLA would undo the rematerialisation.
    unroll = net.num_layers if platform() == "cpu" and net.remat == "none" else 1
    in_axes = (nn.broadcast,) * shared
    return nn.scan(block, axes, split_rngs=rngs, in_axes=in_axes, length=net.num_layers, unroll=unroll)(*fields)


def run_layers(layers: nn.Module | tuple[nn.Module, ...], x: Any, *shared: Any) -> Any:
    """What goes through all layers of `make_layers`, which give it with something else that is dropped."""
    for layer in layers if isinstance(layers, (list, tuple)) else (layers,):
        x, _ = layer(x, *shared)
    return x


class GPT(nn.Module):
    """Autoregressive transformer over token ids (Esser et al. 2021, section 3.2).

    Learned absolute positions, untied head without bias. block_size: the longest sequence. n_unmasked: so many first
    positions see each other, before and behind. `embeddings` [B,P,D] in the calls stand before the ids, as they are.

    gather: what becomes of a layer's parameters, already cast, before it runs: where they lie in shards, their whole.
    remat: what the backward pass computes again: 'none', 'dots' (all but the products with weights) or 'full' (all but
    the layers' inputs). unrolled: parameters lie layer by layer ('blocks_0', ...; see `unstack`), as `decode` wants
    them; else in one array for all layers ('blocks'), over which one compiled layer is scanned.
    """

    vocab_size: int
    block_size: int
    num_layers: int
    num_heads: int
    embed_dim: int
    embd_pdrop: float
    attn_pdrop: float
    resid_pdrop: float
    n_unmasked: int
    gather: Callable[[dict], dict] = lambda params: params
    remat: str = "none"
    unrolled: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.token_embedding = self.param("token_embedding", normal_init, (self.vocab_size, self.embed_dim))
        # The original starts positions at 0.
        self.position_embedding = self.param(
            "position_embedding", nn.initializers.zeros, (self.block_size, self.embed_dim)
        )
        self.embd_drop = nn.Dropout(self.embd_pdrop)
        fields = (self.num_heads, self.attn_pdrop, self.resid_pdrop, self.dtype)
        self.blocks = make_layers(self, Block, fields, shared=2)
        self.ln_f = nn.LayerNorm(epsilon=LAYER_NORM_EPS, dtype=self.dtype)
        self.head = dense(self.vocab_size, self.dtype, use_bias=False)

    def __call__(
        self, ids: jax.Array, train: bool = False, embeddings: jax.Array | None = None, start: int = 0
    ) -> jax.Array:
        """[B,T] int32 -> logits [B,P+T-start,vocab_size] float32 of the positions from `start` on.

        Position t sees ids up to t. `train` draws 'dropout'.
        """
        x = self.embed(ids, 0, embeddings)
        t = x.shape[1]
        x = self.embd_drop(x.astype(self.dtype), deterministic=not train)
        mask = self.visible(jnp.arange(t), t) if self.n_unmasked else None
        x = run_layers(self.blocks, x, mask, not train)
        return self.head(self.ln_f(x[:, start:])).astype(jnp.float32)

    def embed(self, ids: jax.Array, position: jax.Array | int, embeddings: jax.Array | None) -> jax.Array:
        """What goes into the layers; `position` [] is the first one's. [B,T] -> [B,P+T,D]."""
        x = self.token_embedding[ids]
        x = x if embeddings is None else jnp.concatenate([embeddings, x], 1)
        return x + jax.lax.dynamic_slice_in_dim(self.position_embedding, position, x.shape[1])

    def visible(self, positions: jax.Array, length: int) -> jax.Array:
        """Which of `length` keys each position [T] sees: [1,1,T,length] bool."""
        keys, positions = jnp.arange(length), positions[:, None]
        return ((keys <= positions) | ((positions < self.n_unmasked) & (keys < self.n_unmasked)))[None, None]

    def init_cache(self, batch_size: int) -> Cache:
        """An empty cache for `decode`, which may be resized to what is needed."""
        shape = (batch_size, self.num_heads, self.block_size, self.embed_dim // self.num_heads)
        return tuple((jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)) for _ in range(self.num_layers))

    def decode(
        self,
        ids: jax.Array,
        position: jax.Array | int,
        cache: Cache,
        embeddings: jax.Array | None = None,
        at: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """The next T ids [B,T], the first at `position` [] -> (logits [B,P+T,vocab_size] float32, cache).

        at: [B] int32, the one position among these T whose logits are wanted, [B,1,vocab_size]; the last layer and the
        head do no more. With `n_unmasked`, the first call must bring at least so many. For `unrolled` alone: a scan
        would copy each layer's weights and cache for each code.
        """
        x = self.embed(ids, position, embeddings)
        t = x.shape[1]
        x, mask = x.astype(self.dtype), self.visible(position + jnp.arange(t), cache[0][0].shape[2])
        filled = []
        for block, kv in zip(self.blocks, cache, strict=True):
            x, kv = block(x, mask, True, kv, position, at if block is self.blocks[-1] else None)
            filled.append(kv)
        return self.head(self.ln_f(x)).astype(jnp.float32), tuple(filled)


def align(params: dict, places: np.ndarray, num_heads: int, named: np.ndarray | None = None) -> dict:
    """First parameters of a transformer whose positions attend to what lies at their own places, before they learn to.

    places: [T,3], for each position the row and the column that it is about, in codes, and 0 for a condition, 1 for
    codes. named: [N,2], where the first ids are names of places (corners of boxes, say), those places; then ids and not
    positions say where a condition lies (what else these ids name, such as categories, is taken for places until the
    training tells them apart). Embeddings become waves over rows and columns, and keys are asked for by equal
    queries (the mimetic initialization of Trockman and Kolter 2023); the original begins with positions of 0 and
    chance. The number of embedding dimensions must be a multiple of 4.
    """
    d, amplitude, similarity = params["position_embedding"].shape[1], 0.05, 3.6

    def waves(where):
        angles = where[:, :2, None] * (np.pi / 2 * 8.0 ** (-np.arange(d // 4) / (d // 4)))
        return amplitude * np.concatenate([np.sin(angles), np.cos(angles)], -1).reshape(len(where), d)

    table = waves(places)
    if named is not None:
        # A condition's ids say where it lies. Codes are ids too, many of which name another place: theirs weighs more.
        table *= 2 * places[:, 2:]
        tokens = params["token_embedding"].at[: len(named)].add(waves(named))
        params = {**params, "token_embedding": tokens}
    table[:, ::2] += 0.2 * amplitude * (places[:, 2:] - 0.5)  # tells a condition from codes
    attn = params["blocks"]["attn"]
    # Of two equal inputs of unit variance, the scores' mean becomes `similarity`.
    scale = (similarity / (d * (d / num_heads) ** 0.5)) ** 0.5 / 0.02
    query = {**attn["query"], "kernel": attn["query"]["kernel"] * scale}
    key = {**attn["key"], "kernel": attn["query"]["kernel"] * scale}
    blocks = {**params["blocks"], "attn": {**attn, "query": query, "key": key}}
    positions = params["position_embedding"].at[: len(places)].set(table)
    return {**params, "blocks": blocks, "position_embedding": positions}


def unstack(params: dict) -> dict:
    """Parameters as `unrolled` has them. {'blocks': [L,...]} -> {'blocks_0': [...], ...}, the others as they are."""
    leaves, tree = jax.tree.flatten(params["blocks"])
    layers = {f"blocks_{i}": tree.unflatten([x[i] for x in leaves]) for i in range(len(leaves[0]))}
    return {name: value for name, value in params.items() if name != "blocks"} | layers


def stack(params: dict) -> dict:
    """The inverse of `unstack`, in numpy."""
    layers = [params[f"blocks_{i}"] for i in range(sum(name.startswith("blocks_") for name in params))]
    rest = {name: value for name, value in params.items() if not name.startswith("blocks_")}
    return rest | {"blocks": jax.tree.map(lambda *x: np.stack(x), *layers)}
