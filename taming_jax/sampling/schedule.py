"""Paints grids with a wavefront transformer: one front of its schedule after another, each in one pass of new slots."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from taming_jax.sampling.draw import Sampling, draw
from taming_jax.sampling.painter import Painter
from taming_jax.schedule import Schedule, make_front

CHUNK = 32  # steps of one program, between two lines of progress


def make_schedule_painter(schedule: Schedule, begin: Callable, step: Callable) -> Painter:
    """A painter of grids of any size; its arguments and results are those of `painter.make_painter`'s painter.

    begin: (params, condition, h, w) -> wave, whatever a step needs of those before it. step: (params, codes [B,h,w],
    wave, front) -> (logits [B,rows,V], wave).
    The condition is ids [B,S], or a grid of them. A code's draw is folded with its cell: neither chunks nor the batch
    change it.
    """

    start_of = jax.jit(begin, static_argnums=(2, 3))
    run = jax.jit(make_chunk(schedule, step), donate_argnames=("codes", "wave"))

    def paint(params, cond, codes, known, keys, sampling: Sampling) -> Iterator[tuple[jax.Array, int]]:
        _, h, w = codes.shape
        times = schedule.times(h, w)
        codes, known = jnp.where(known, codes, 0).astype(jnp.int32), jnp.asarray(known)
        wave, total = start_of(params, cond, h, w), int(times.max()) + 1
        for start in range(0, total, CHUNK):
            stop = min(start + CHUNK, total)
            codes, wave = run(params, codes, known, keys, sampling, wave, start, stop)
            yield codes, int((times < stop).sum())

    return paint


def make_chunk(schedule: Schedule, step: Callable) -> Callable:
    """(params, codes, known, keys, sampling, wave, start, stop) -> (codes, wave) after the steps from start to stop."""

    def paint_front(params, codes, known, keys, sampling, wave, t):
        b, h, w = codes.shape
        front = make_front(schedule, t, h, w)
        logits, wave = step(params, codes, wave, front)
        rows = logits.shape[1]
        place = jnp.tile(front.i * w + front.j, b)
        drawn = draw(logits.reshape(b * rows, -1), jnp.repeat(keys, rows), place, sampling).reshape(b, rows)
        writes = front.inside & ~known[front.i.clip(0, h - 1), front.j.clip(0, w - 1)]
        return codes.at[:, jnp.where(writes, front.i, h), front.j].set(drawn, mode="drop"), wave

    def chunk(params, codes, known, keys, sampling, wave, start, stop):
        def body(t, carry):
            codes, wave = carry
            return paint_front(params, codes, known, keys, sampling, wave, t)

        return jax.lax.fori_loop(start, stop, body, (codes, wave))

    return chunk
