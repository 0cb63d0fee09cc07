"""How fast the sampler paints, on this machine, with random weights.

    python -m benchmarks.sampling

Prints codes per second (the condition and all images of a batch counted, compilation not), the number of sequential
steps, and the seconds that compiling took. Compare rows of one run with one another, not runs of different machines.
"""

import functools
import time

import jax
import jax.numpy as jnp

from taming_jax import sampling
from taming_jax.models.gpt import GPT
from taming_jax.tasks.prior import next_code

WINDOW, VOCAB = 16, 1024
DROPS = dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, n_unmasked=0)
OPTIONS = (1.0, 100, 1.0)
# Grid, batch size, method, stride.
SLIDING = [
    ((32, 32), 1, "cached", 1),
    ((32, 32), 1, "wavefront", 1),
    ((32, 32), 1, "cached", 2),
    ((32, 32), 1, "cached", 4),
    ((32, 32), 1, "cached", 8),
    ((32, 32), 8, "cached", 1),
    ((64, 64), 1, "cached", 1),
    ((64, 64), 1, "cached", 8),
    ((32, 128), 1, "cached", 1),
    ((32, 128), 1, "wavefront", 1),
]


def model_of(num_layers: int, embed_dim: int, prefix: int) -> tuple[GPT, dict]:
    gpt = GPT(VOCAB, prefix + WINDOW**2 - 1, num_layers, 8, embed_dim, **DROPS)
    return gpt, jax.jit(gpt.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def timed(run) -> tuple[float, float]:
    """Seconds of a first call, which compiles, beyond those of a second; and of the second."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return seconds[0] - seconds[1], seconds[1]


def main() -> None:
    print("16x16, class-conditional, 12 layers of 512, all cached")
    gpt, params = model_of(12, 512, 1)
    for batch_size in (1, 16):

        @jax.jit
        def paint(params, prefix, keys):
            decode = functools.partial(next_code, gpt, VOCAB, params)
            return sampling.sample_full(decode, gpt.init_cache(len(prefix)), prefix, WINDOW**2, keys, *OPTIONS)

        keys = jax.random.split(jax.random.key(0), batch_size)
        prefix = jnp.zeros((batch_size, 1), jnp.int32)
        compiling, seconds = timed(lambda prefix=prefix, keys=keys: paint(params, prefix, keys))
        print(
            f"  batch {batch_size:2}: {batch_size * 256 / seconds:8.1f} codes/s, compiled in {compiling:.0f} s",
            flush=True,
        )

    print("sliding window, condition of 16x16, 6 layers of 256")
    gpt, params = model_of(6, 256, WINDOW**2)
    for (h, w), batch_size, method, stride in SLIDING:
        painter = sampling.make_painter(
            functools.partial(next_code, gpt, VOCAB), gpt.init_cache, WINDOW, method, stride
        )
        codes, known = jnp.zeros((batch_size, h, w), jnp.int32), jnp.zeros((h, w), bool)
        keys = jax.random.split(jax.random.key(0), batch_size)

        def run(painter=painter, codes=codes, known=known, keys=keys):
            *_, (grid, _) = painter(params, codes, codes, known, keys, *OPTIONS)
            return grid

        compiling, seconds = timed(run)
        steps = sampling.wavefront_length(h, w, WINDOW) if method == "wavefront" else h * w
        print(
            f"  {h}x{w}, batch {batch_size}, {method:9} stride {stride}: {batch_size * h * w / seconds:8.1f} codes/s,"
            f" {steps} steps, compiled in {compiling:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
