"""Speculative Jacobi decoding (Teng et al. 2024, arXiv 2410.01699): several codes a pass, the same distribution.

A pass looks at the next k codes as they were guessed, all at once. Each guess is kept with the probability min(1, p/q),
of what the transformer now says and what it was drawn from; the first that is not kept is drawn from what is left of p
(Leviathan et al. 2023, algorithm 1), and those behind it are guessed anew. Codes that a guess had right cost no pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from taming_jax.sampling.draw import Sampling, filter_logits


def sample_speculative(
    decode: Callable,
    cache,
    last: jax.Array,
    position: jax.Array | int,
    codes: jax.Array,
    known: jax.Array,
    key: jax.Array,
    sampling: Sampling,
    guesses: int,
    num_ids: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """N ids of one sequence -> (ids [N] int32, the cache, the number of passes []).

    cache: holds the ids before `last` [], which stands at `position`, in front of them. decode, codes [N], known [N]:
    as of `sequence.sample_full`, for a batch of one. guesses: k, 2 to N. num_ids: V.
    """
    n, k = len(codes), guesses
    fill = [(0, k)]
    codes, known = jnp.pad(codes, fill), jnp.pad(known, fill)

    def probabilities(logits: jax.Array, start: jax.Array) -> jax.Array:
        """What each of k codes is drawn from, [k,V]; codes that are given are certain."""
        top_k = jnp.minimum(sampling.top_k, num_ids)
        p = jax.nn.softmax(filter_logits(logits / sampling.temperature, top_k, sampling.top_p), -1)
        given = jax.nn.one_hot(jax.lax.dynamic_slice_in_dim(codes, start, k), num_ids)
        return jnp.where(jax.lax.dynamic_slice_in_dim(known, start, k)[:, None], given, p)

    def one_pass(state: tuple) -> tuple:
        ids, drawn_from, done, cache, passes = state
        start = jnp.minimum(done, n - k)  # near the end, codes that are kept already are looked at again
        accept_key, draw_key, guess_key = jax.random.split(jax.random.fold_in(key, passes), 3)
        window, q = (jax.lax.dynamic_slice_in_dim(x, start, k) for x in (ids, drawn_from))
        before = jnp.where(start > 0, ids[start - 1], last)
        logits, cache = decode(jnp.append(before, window[:-1])[None], position + start, cache)
        p, at = probabilities(logits[0], start), jnp.arange(k)
        right = jax.random.uniform(accept_key, (k,)) * q[at, window] < p[at, window]
        kept = jnp.cumprod(right | (start + at < done)).sum()  # how many from the first on
        left = jnp.maximum(p - q, 0)
        left = jnp.where(left.sum(-1, keepdims=True) > 0, left, p)
        weights = jnp.where((at == kept)[:, None], left, p)
        new = jax.random.categorical(draw_key, jnp.log(weights)).astype(jnp.int32)
        window, q = jnp.where(at < kept, window, new), jnp.where((at > kept)[:, None], p, q)
        ahead = jnp.broadcast_to(p[-1], (k, num_ids))  # the best that is known of codes beyond
        guessed = jax.random.categorical(guess_key, jnp.log(ahead)).astype(jnp.int32)
        ids = jax.lax.dynamic_update_slice_in_dim(ids, jnp.append(window, guessed), start, 0)
        drawn_from = jax.lax.dynamic_update_slice_in_dim(drawn_from, jnp.concatenate([q, ahead]), start, 0)
        return ids, drawn_from, jnp.maximum(done, start + jnp.minimum(kept + 1, k)), cache, passes + 1

    uniform = jnp.full((n + k, num_ids), 1 / num_ids)
    first_key, key = jax.random.split(key)
    ids = jax.random.randint(first_key, (n + k,), 0, num_ids, jnp.int32)
    state = ids, uniform, jnp.zeros((), jnp.int32), cache, jnp.zeros((), jnp.int32)
    ids, _, _, cache, passes = jax.lax.while_loop(lambda state: state[2] < n, one_pass, state)
    return ids[:n], cache, passes
