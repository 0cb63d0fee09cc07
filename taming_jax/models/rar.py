"""RAR's transformer (Yu et al. 2024, arXiv 2411.00776): codes in any order, each told which place comes next."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from taming_jax.models.gpt import GPT, Attention, Cache, dense, gelu, make_layers, normal_init, rows_at, run_layers

SPARE_PLACES, SPARE_STEPS = 1024, 100  # rows of the tables beyond the codes, which nothing reads


def draw_orders(key: jax.Array, share: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Orders of writing [B,N] int32: random ones with the probability `share` for each sample, or else row by row."""
    which, how = jax.random.split(key)
    random = jnp.argsort(jax.random.uniform(how, shape), -1)
    return jnp.where(jax.random.bernoulli(which, share, (shape[0], 1)), random, jnp.arange(shape[1]))


def random_share(step: jax.Array, start: int, end: int) -> jax.Array:
    """The share of random orders (section 3.2): 1 until `start`, falling linearly to 0 at `end`. -> like `step`."""
    return jnp.clip((end - step) / max(1, end - start), 0, 1)


def layer_norm(eps: float, dtype: jnp.dtype, name: str | None = None, weights: bool = True) -> nn.LayerNorm:
    # The fast variance E[x^2] - E[x]^2 cancels at large means.
    kwargs = dict(use_bias=weights, use_scale=weights, use_fast_variance=False)
    return nn.LayerNorm(epsilon=eps, dtype=dtype, name=name, **kwargs)


class NormedAttention(Attention):
    """Attention with a LayerNorm of each head's queries and keys."""

    norm_eps: float = 0.0

    def tune(self, q: jax.Array, k: jax.Array, position: jax.Array | int, at: jax.Array | None) -> tuple:
        q_norm, k_norm = (layer_norm(self.norm_eps, self.dtype, name) for name in ("q_norm", "k_norm"))
        return q_norm(q), k_norm(k)


class Block(nn.Module):
    """Pre-norm block, modulated at each position by its condition `c` [B,T,D] (adaLN). Else calls as `gpt.Block`'s.

    The norms have weights of their own besides the modulation.
    """

    num_heads: int
    mlp_dim: int
    attn_pdrop: float
    resid_pdrop: float
    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, c, mask, deterministic, cache=None, position=None, at=None):
        d = x.shape[-1]
        modulation = jnp.split(dense(6 * d, self.dtype, "modulation")(nn.silu(c)), 6, -1)
        shift, scale, gate, *of_mlp = modulation
        h = layer_norm(self.norm_eps, self.dtype, "ln1")(x) * (1 + scale) + shift
        fields = (self.num_heads, self.attn_pdrop, self.resid_pdrop, self.dtype, True, None, self.norm_eps)
        h, cache = NormedAttention(*fields, name="attn")(h, mask, deterministic, cache, position, at)
        if at is not None:
            x, gate, *of_mlp = (rows_at(y, at) for y in (x, gate, *of_mlp))
        x = x + gate * h
        shift, scale, gate = of_mlp
        h = layer_norm(self.norm_eps, self.dtype, "ln2")(x) * (1 + scale) + shift
        h = dense(d, self.dtype, "mlp_out")(gelu(dense(self.mlp_dim, self.dtype, "mlp_in")(h)))
        return x + gate * nn.Dropout(self.resid_pdrop)(h, deterministic=deterministic), cache


class RAR(GPT, kw_only=True):
    """A transformer over one id of a condition and num_codes codes.

    Calls as `GPT`'s, with ids of the condition and of codes that count from 0 each; block_size: num_codes + 1. The
    condition has cond_size ids, with the one for none. RAR has one table of embeddings: codes, a mask that nothing
    reads, and the condition's ids; here those are a table of their own. A learned token precedes all, whose logits are
    dropped. Each position has embeddings of its own place and of the place that it predicts; those of the step and of
    the condition modulate the layers.
    """

    cond_size: int
    num_codes: int
    mlp_dim: int
    norm_eps: float = 1e-6

    def setup(self) -> None:
        places, d = self.num_codes + SPARE_PLACES, self.embed_dim
        self.token_embedding = self.param("token_embedding", normal_init, (self.vocab_size + 1, d))
        self.cond_embedding = self.param("cond_embedding", normal_init, (self.cond_size, d))
        self.cls_embedding = self.param("cls_embedding", normal_init, (1, d))
        self.position_embedding = self.param("position_embedding", normal_init, (places, d))
        self.target_embedding = self.param("target_embedding", normal_init, (places, d))
        self.step_embedding = self.param("step_embedding", normal_init, (self.num_codes + SPARE_STEPS, d))
        self.embd_drop = nn.Dropout(self.embd_pdrop)
        fields = (self.num_heads, self.mlp_dim, self.attn_pdrop, self.resid_pdrop, self.norm_eps, self.dtype)
        self.blocks = make_layers(self, Block, fields, shared=3)
        self.final_modulation = dense(2 * d, self.dtype)
        self.ln_f = layer_norm(self.norm_eps, self.dtype, weights=False)
        self.head = dense(self.vocab_size, self.dtype)

    def __call__(
        self,
        ids: jax.Array,
        train: bool = False,
        embeddings: jax.Array | None = None,
        start: int = 0,
        orders: jax.Array | None = None,
    ) -> jax.Array:
        """orders [B,N] int32: the cells in the order in which the codes stand; None for row by row."""
        x, c = self.embed_at(ids, ids[:, 0], 0, orders, begins=True)
        x = self.embd_drop(x, deterministic=not train)
        x = run_layers(self.blocks, x, c, None, not train)
        return self.answer(x[:, start + 1 :], c[:, start + 1 :])

    def embed_at(
        self,
        ids: jax.Array,
        cond: jax.Array,
        position: jax.Array | int,
        orders: jax.Array | None = None,
        begins: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """What goes into the layers, and what modulates them: [B,T,D] each, [B,1+T,D] with the learned token before.

        position: the first id's. cond [B]: the condition's ids. begins: whether the learned token comes first. Rows 0
        and 1 of the tables of places are for it and for the condition.
        """
        count = self.num_codes
        cells = jnp.arange(count)[None] if orders is None else orders
        cells = jnp.pad(cells, ((0, 0), (0, 1)))  # nothing follows the last code
        rows = position + jnp.arange(ids.shape[1])
        own = jnp.where(rows == 0, 1, 2 + cells[:, rows - 1])
        x = jnp.where((rows == 0)[:, None], self.cond_embedding[ids], self.token_embedding[ids])
        x = x + self.position_embedding[own]
        x = x + jnp.where((rows < count)[:, None], self.target_embedding[2 + cells[:, rows]], 0)
        steps = rows + 1
        if begins:
            token = self.cls_embedding + self.position_embedding[:1]
            x = jnp.concatenate([jnp.broadcast_to(token, (len(x), *token.shape)), x], 1)
            steps = jnp.append(0, steps)
        c = self.cond_embedding[cond][:, None] + self.step_embedding[steps]
        return x.astype(self.dtype), c.astype(self.dtype)

    def answer(self, x: jax.Array, c: jax.Array) -> jax.Array:
        """Logits. The last norm's scale comes before its shift, unlike the layers'."""
        scale, shift = jnp.split(self.final_modulation(nn.silu(c)), 2, -1)
        return self.head(self.ln_f(x) * (1 + scale) + shift).astype(jnp.float32)

    def init_cache(self, batch_size: int) -> tuple[Cache, jax.Array]:
        """Empty keys and values, and the condition's ids, which later calls do not bring."""
        return super().init_cache(batch_size), jnp.zeros(batch_size, jnp.int32)

    def decode(
        self,
        ids: jax.Array,
        position: jax.Array | int,
        cache: tuple[Cache, jax.Array],
        embeddings: jax.Array | None = None,
        at: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[Cache, jax.Array]]:
        """As `GPT.decode`, row by row; the first call's position is the number 0 itself and no array, and it begins."""
        (cache, cond), first = cache, isinstance(position, int)
        cond = ids[:, 0] if first else cond
        x, c = self.embed_at(ids, cond, position, begins=first)
        at = at + 1 if first and at is not None else at
        place, filled = (0 if first else position + 1), []
        mask = self.visible(place + jnp.arange(x.shape[1]), cache[0][0].shape[2])
        for block, kv in zip(self.blocks, cache, strict=True):
            x, kv = block(x, c, mask, True, kv, place, at if block is self.blocks[-1] else None)
            filled.append(kv)
        c = c if at is None else rows_at(c, at)
        skip = int(first and at is None)
        return self.answer(x[:, skip:], c[:, skip:]), (tuple(filled), cond)
