"""Masked decoding (Chang et al. 2022, MaskGIT, section 3.2): each pass writes all codes and keeps the surest."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from taming_jax.sampling.draw import Sampling, draw
from taming_jax.sampling.painter import Painter


def share_hidden(done: jax.Array | float) -> jax.Array:
    """The share of codes that are hidden when the share `done` of the passes is over, from 1 to 0.

    1d-tokenizer's, by the arc cosine; the paper's cosine hides more at first and fewer in the end.
    """
    return jnp.arccos(jnp.clip(done, 0, 1)) / (jnp.pi / 2)


def draw_hidden(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Which codes of each training example are hidden, [B,N] bool: as many as at a moment of sampling, one at least."""
    share_key, key = jax.random.split(key)
    count = jnp.round(shape[1] * share_hidden(jax.random.uniform(share_key, (shape[0], 1))))
    ranks = jnp.argsort(jnp.argsort(jax.random.uniform(key, shape), -1), -1)
    return ranks < jnp.maximum(count, 1)


def left_hidden(step: jax.Array | int, passes: jax.Array | int, total: int) -> jax.Array:
    """How many of `total` hidden codes stay hidden after the pass `step` of `passes`: each pass keeps one at least."""
    left = jnp.floor(total * share_hidden((step + 1) / passes)).astype(jnp.int32)
    return jnp.where(step + 1 < passes, jnp.maximum(left, 1), 0)


def unsure(scores: jax.Array, left: jax.Array) -> jax.Array:
    """The `left` [B] least sure codes of each row, and those as unsure as the last. scores [B,N], inf where certain."""
    left = left[:, None]
    edge = jnp.take_along_axis(jnp.sort(scores, -1), jnp.maximum(left, 1) - 1, -1)
    return (scores <= edge) & (left > 0) & jnp.isfinite(scores)


def one_pass(
    read: Callable,
    params,
    cond: jax.Array,
    codes: jax.Array,
    hidden: jax.Array,
    keys: jax.Array,
    sampling: Sampling,
    step: jax.Array | int,
    total: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
    """Draws all hidden codes, and hides the least sure of them again -> (codes [B,N], hidden [B,N]).

    read: (params, condition [B,S], codes [B,N], hidden [B,N]) -> logits [B,N,V]. total: how many codes were hidden at
    first. How sure a code is: its log-probability before temperature, top-k and top-p, as in MaskGIT, with Gumbel noise
    of `choice_temperature`, less and less of it.
    """
    b, n = codes.shape
    logits = read(params, cond, codes, hidden)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    drawn = draw(logits.reshape(b * n, -1), jnp.repeat(keys, n), jnp.tile(jnp.arange(n), b), sampling).reshape(b, n)
    codes = jnp.where(hidden, drawn, codes)
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits, -1), codes[..., None], -1)[..., 0]
    noise = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, n), (n,)))(keys)
    # Whatever a code is worth, it stays finite: only those that are there have a score of inf.
    scores = jnp.nan_to_num(log_p + sampling.choice_temperature * (1 - (step + 1) / sampling.passes) * noise)
    left = jnp.minimum(left_hidden(step, sampling.passes, total), hidden.sum(-1) - 1)
    return codes, unsure(jnp.where(hidden, scores, jnp.inf), left)


def make_masked_painter(read: Callable) -> Painter:
    """A painter of grids as large as in training, in `sampling.passes` passes, or fewer where there are fewer codes.

    Its arguments and results are those of `painter.make_painter`'s painter; a grid under way holds what the last pass
    wrote, with the codes that it is going to hide again. read: see `one_pass`.
    """
    run = jax.jit(lambda *args: one_pass(read, *args))

    def paint(params, cond, codes, known, keys, sampling: Sampling) -> Iterator[tuple[jax.Array, int]]:
        (b, *grid), known = codes.shape, np.asarray(known)
        total = int((~known).sum())
        sampling = sampling._replace(passes=min(int(sampling.passes), total))
        flat, hidden = codes.reshape(b, -1), jnp.broadcast_to(~known.ravel(), (b, known.size))
        if not total:
            yield codes, known.size
        for step in range(sampling.passes):
            flat, hidden = run(params, cond, flat, hidden, keys, sampling, step, total)
            yield flat.reshape(b, *grid), known.size - int(left_hidden(step, sampling.passes, total))

    return paint
