"""What training on codes gains over training on images: steps a second, with reading and everything else.

    python -m taming_jax.encode --config=configs/openmoji_transformer.py --out=runs/openmoji_codes
    python -m benchmarks.codes  --config=configs/openmoji_transformer.py --config.codes=runs/openmoji_codes

Both run in turns, so that they share whatever else the machine does; the processor's own seconds are counted beside the
clock's. The losses are those of the last turn: with the same crops they are the same.
"""

import os
import time

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from taming_jax import cli, completion, data, metrics, sharding
from taming_jax.encoded import open_codes
from taming_jax.errors import UserError
from taming_jax.loop import compile_step
from taming_jax.tasks import make_task


def main() -> None:
    config = completion.complete(cli.required_config())
    if not config.codes:
        raise UserError("--config.codes is missing: a folder that taming_jax.encode has written")
    images = data.open_source(config.data, "train")
    config = completion.complete_from_data(config, images)
    sources = {"images": images, "codes": open_codes(config)}
    mesh, task = sharding.make_mesh(config.mesh), make_task(config)
    frozen = task.load_frozen()
    init_key, run_key = jax.random.split(jax.random.key(config.seed))
    begin = {}
    with jax.set_mesh(mesh):
        for name, source in sources.items():
            augment = None if name == "codes" else data.make_augment(config.data, task.annotator)
            batches = data.train_batches(source, config, 0, augment)
            state = task.init(init_key).replace(frozen=frozen)
            state = jax.device_put(state, sharding.infer_shardings(state, mesh))
            batch = sharding.shard_batch(next(batches), mesh)
            begin[name] = batches, state, compile_step(task, run_key, None, state, batch)
        spent, losses = {name: [] for name in sources}, {}
        for _ in tqdm(range(flags.FLAGS.turns), "measuring", unit="turn"):
            for name, (batches, state, step) in begin.items():
                clock, processor, window = time.monotonic(), time.process_time(), None
                for _ in range(flags.FLAGS.steps):
                    state, logged = step(state, sharding.shard_batch(next(batches), mesh), run_key)
                    window = logged if window is None else metrics.merge(window, logged)
                losses[name] = metrics.summarize(window)["loss"]
                spent[name].append((time.monotonic() - clock, time.process_time() - processor))
                begin[name] = batches, state, step
    for name, turns in spent.items():
        seconds, busy = np.median(turns[1:], 0) / flags.FLAGS.steps  # the first turn fills caches
        print(f"{name:6}  {1 / seconds:.2f} steps/s  {busy:.3f} processor seconds a step  loss {losses[name]:.6f}")
    print(f"medians of {flags.FLAGS.turns - 1} turns of {flags.FLAGS.steps} steps; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "Config file of a transformer, with config.codes.", lock_config=True
    )
    flags.DEFINE_integer("turns", 7, "How often both are measured.", lower_bound=2)
    flags.DEFINE_integer("steps", 30, "Steps in a turn.", lower_bound=1)
    cli.run(main)
