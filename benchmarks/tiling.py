"""How far decoding in tiles is from decoding at once, on a first stage's held-out images.

    python -m benchmarks.tiling --workdir=runs/openmoji_scenes_vq --size=256x256 --tile=32

Each picture is made of held-out ones side by side, encoded whole, and decoded both ways.
"""

import itertools
from pathlib import Path

import jax
import numpy as np
from absl import flags

from taming_jax import checkpoint, cli, completion, data, sharding
from taming_jax.errors import UserError
from taming_jax.first_stage import make_first_stage
from taming_jax.images import to_float
from taming_jax.sampling.tiling import decode_tiled

PICTURES = 8


def main() -> None:
    workdir = Path(cli.required("workdir"))
    config, step = completion.load_config(workdir)
    if config.task != "vqgan" or config.input != "image":
        raise UserError(f"--workdir={workdir} is no first stage of images")
    height, width = (int(side) // config.data.size for side in flags.FLAGS.size.split("x"))
    stage, held_out = make_first_stage(config), data.open_source(config.data, "validation")
    batches = data.eval_batches(held_out, config, data.make_augment(config.data))
    params = jax.device_put(checkpoint.load_net(workdir, step, "gen", stage.parameter_shapes()))
    source = itertools.cycle(image for batch in batches for image in to_float(batch["image"]))
    with jax.set_mesh(sharding.make_mesh(config.mesh)):
        encode = jax.jit(lambda images: stage.encode(params, {"image": images}))
        decode = jax.jit(lambda ids: stage.decode(params, ids))
        errors = []
        for _ in range(PICTURES):
            rows = [np.concatenate([next(source) for _ in range(width)], 1) for _ in range(height)]
            ids = encode(np.concatenate(rows)[None])
            whole, tiled = (np.clip(decode_tiled(decode, ids, tile), -1, 1) for tile in (10**6, flags.FLAGS.tile))
            errors.append((whole - tiled) * 127.5)
    mse = float(np.mean(np.square(errors)))
    print(f"{PICTURES} pictures of {ids.shape[1]}x{ids.shape[2]} codes in tiles of {flags.FLAGS.tile}, of 255 levels:")
    print(f"mean |difference| {np.mean(np.abs(errors)):.2f}, largest {np.max(np.abs(errors)):.0f}")
    print(f"PSNR between both {10 * np.log10(255**2 / mse):.1f} dB")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Run directory of a first stage.")
    flags.DEFINE_string("size", "256x256", "Height x width in pixels, multiples of those of training.")
    flags.DEFINE_integer("tile", 32, "Codes a side that are decoded at once.", lower_bound=8)
    cli.run(main)
