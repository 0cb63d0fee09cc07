"""How fast the sampler paints, on this machine, with random weights.

    python -m benchmarks.sampling
    python -m benchmarks.sampling 16x16 32x32 64x64/1

Prints a row for each way of painting, or only for the grids and batch sizes that the arguments name: codes per second
of all images of a batch, the number of sequential steps, the seconds of compiling, and the peak memory. Each row runs
in a process of its own. Compare rows of one run with one another, not runs of different machines. Steps of a wavefront
are all alike: if a grid takes longer than half a minute, the time of the other steps is estimated from those done.

At batch 1, all weights are read once for each code: the last line has the codes per second that the memory's bandwidth
would allow, measured by reading as many bytes.
"""

import functools
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from taming_jax.models.gpt import GPT
from taming_jax.models.wave import WaveGPT
from taming_jax.sampling.draw import Sampling
from taming_jax.sampling.painter import Painter, make_painter, painting_order
from taming_jax.sampling.schedule import make_schedule_painter
from taming_jax.sampling.sequence import make_sequence_painter
from taming_jax.schedule import Schedule
from taming_jax.second_stage import next_code

WINDOW, VOCAB = 16, 1024
DROPS = dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, n_unmasked=0)
SAMPLING = Sampling(1.0, 100, 1.0)
LIMIT = 30.0  # seconds, for a wavefront
CLASS, SPATIAL = (12, 512, 1), (6, 256, WINDOW**2)  # layers, width, ids of the condition
# Model, grid, batch size, method, stride.
ROWS = [(CLASS, (16, 16), batch_size, "sequence", 1) for batch_size in (1, 8, 16)]
ROWS += [
    (SPATIAL, grid, batch_size, method, stride)
    for grid in ((32, 32), (64, 64), (32, 128))
    for batch_size in (1, 8)
    for method, stride in (("cached", 1), ("wavefront", 1), ("cached", 2), ("cached", 4), ("cached", 8))
]
# A wavefront transformer of the same size, over grids that no window could afford too.
ROWS += [
    (SPATIAL, (n, n), batch_size, "schedule", 0)
    for n in (8, 32, 64, 128)
    for batch_size in (1, 8)
    if n < 128 or batch_size == 1
]
SCHEDULE = Schedule(3, (4, 4))


def make_model(num_layers: int, embed_dim: int, prefix: int) -> tuple[GPT, dict]:
    gpt = GPT(VOCAB, prefix + WINDOW**2 - 1, num_layers, 8, embed_dim, unrolled=True, **DROPS)
    return gpt, jax.jit(gpt.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def make_schedule(num_layers: int, embed_dim: int) -> tuple[Painter, dict]:
    """A painter with a wavefront transformer, and its weights."""
    drops = {name: value for name, value in DROPS.items() if name != "n_unmasked"}
    net = WaveGPT(SCHEDULE, VOCAB, VOCAB + 1, 0, 1, num_layers, 8, embed_dim, unrolled=True, **drops)
    grid = jnp.zeros((1, 4, 4), jnp.int32)

    def begin(params, c, h, w):
        return net.apply({"params": params}, c, h, w, method="begin")

    def step(params, codes, wave, front):
        return net.apply({"params": params}, codes, wave, front, method="step")

    return make_schedule_painter(SCHEDULE, begin, step), jax.jit(net.init)(jax.random.key(0), grid, grid)["params"]


def peak_memory() -> float:
    """In GiB: the device's, if it counts that, or else the process's."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30


def measure(row: tuple) -> str:
    """A line of the table."""
    model, (h, w), batch_size, method, stride = row
    gpt, params = make_model(*model)
    decode = functools.partial(next_code, gpt, VOCAB)
    if method == "schedule":
        painter, params = make_schedule(*model[:2])
    elif method == "sequence":
        painter = make_sequence_painter(decode, gpt.init_cache, np.arange(h * w))
    else:
        painter = make_painter(decode, gpt.init_cache, WINDOW, method, stride)
    codes, known = jnp.zeros((batch_size, h, w), jnp.int32), jnp.zeros((h, w), bool)
    cond = codes if model == SPATIAL else codes[:, 0, :1]
    order = SCHEDULE.times(h, w) if method == "schedule" else painting_order(h, w, WINDOW, method)
    steps = int(order.max()) + 1
    parts = []  # seconds of each part, in a first pass, which compiles, and in a second
    for seed in range(2):
        keys, seconds = jax.random.split(jax.random.key(seed), batch_size), []
        began = time.perf_counter()
        for grid, _ in painter(params, cond, codes, known, keys, SAMPLING):
            grid.block_until_ready()
            seconds.append(time.perf_counter() - began - sum(seconds))
            if method == "wavefront" and sum(seconds) > LIMIT:
                break
        parts.append(seconds)
    compiling = sum(max(0.0, first - second) for first, second in zip(*parts, strict=False))
    share = min(1.0, len(parts[1]) * w / steps) if method == "wavefront" else 1.0
    return (
        f"{h:3}x{w:<4} {batch_size:5}  {method:9} {stride:6}  {batch_size * h * w * share / sum(parts[1]):9.1f}"
        f" {steps:8} {compiling:9.0f} {peak_memory():10.2f}"
    )


def bandwidth_limit() -> str:
    """Codes per second if reading the weights were the only cost."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(make_model(*CLASS)[1]))
    weights, total = jnp.ones(size // 4), jax.jit(jnp.sum)
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        total(weights).block_until_ready()
        seconds.append(time.perf_counter() - began)
    rate = size / min(seconds[1:])
    return f"floor of 12x512 at batch 1: {size / 1e6:.0f} MB at {rate / 1e9:.1f} GB/s are {rate / size:.0f} codes/s"


def main() -> None:
    print("16x16: class-conditional, 12 layers of 512. Larger: condition of 16x16, 6 layers of 256.")
    print("   grid  batch  method    stride    codes/s    steps  compile s  memory GiB", flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        for row in ROWS:
            grid = "x".join(map(str, row[1]))
            if len(sys.argv) == 1 or {grid, f"{grid}/{row[2]}"} & set(sys.argv[1:]):
                print(pool.submit(measure, row).result(), flush=True)
        print(pool.submit(bandwidth_limit).result())


if __name__ == "__main__":
    main()
