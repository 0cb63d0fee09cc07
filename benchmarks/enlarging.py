"""How well a transformer on thumbnails (`low`) paints large images, beside bicubic enlargement of the same thumbnails.

    python -m benchmarks.enlarging --workdir=runs/openmoji_large_transformer --out=runs/enlarging

The paper's transformer, on as many codes a step, in windows as large as the tokenizer's crops:

    python -m taming_jax.train --config=openmoji_large_transformer --workdir=runs/large_window_transformer \\
        --config.gpt.architecture=gpt --config.gpt.context.kind=window --config.cond.aligned=True \\
        --config.data.size=32 --config.data.resize_factor=16 --config.batch_size=32 \\
        --config.vector_weight=0 --config.vector_init=0
    python -m benchmarks.enlarging --workdir=runs/large_window_transformer --out=runs/enlarging_window --stride=4

Held-out drawings: LPIPS of whole images (less is better), and the Fréchet distance (EfficientNet) between all patches
of theirs and of the originals. Pictures are kept in the folder, so that they can be looked at; of a transformer with a
window, --stride says how far it moves. Distances of different numbers of images are not to be compared.
"""

import time

import jax
import numpy as np
from absl import flags
from PIL import Image

from taming_jax import cli, images, request, sharding
from taming_jax.console import say
from taming_jax.errors import ArgumentError
from taming_jax.generator import Generator
from taming_jax.models.perceptual import load_weights, lpips
from taming_jax.quality import networks
from taming_jax.quality.viewer import Viewer, compare

PATCH = 128  # pixels on a side of what the network sees at once


def patches(pictures: np.ndarray) -> np.ndarray:
    """[N,H,W,3] -> [N * H/PATCH * W/PATCH,PATCH,PATCH,3]."""
    n, h, w, _ = pictures.shape
    cut = pictures.reshape(n, h // PATCH, PATCH, w // PATCH, PATCH, 3)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, PATCH, PATCH, 3)


def main() -> None:
    given, out = flags.FLAGS, cli.required_folder("out")
    out.mkdir(parents=True, exist_ok=True)
    generator = Generator.load(cli.required("workdir"))
    plan = generator.plan(size=given.size, stride=given.stride)
    if any(side % PATCH for side in plan.size):
        raise ArgumentError(f"size={given.size}: multiples of {PATCH}, the network's patches")
    rows = request.make_rows(generator.stage, generator.config, plan.size, {}, None, given.num_images)
    began = time.monotonic()
    numbered = rows | {"index": np.zeros(len(rows["label"]), np.int32)}
    painted = np.concatenate(list(generator.paint(numbered, plan, given.batch_size)))
    codes = painted[..., 0].size // generator.stage.first.patch**2
    say(f"{codes / (time.monotonic() - began):.0f} codes/s, compiling and decoding included")

    weights, measure = load_weights(), jax.jit(lambda w, x, y: lpips(w, x, y).mean())
    viewer = Viewer(networks.load("efficientnet"), sharding.mesh_here())
    originals = out / "originals.npz"
    images.write_npz(originals, patches(rows["image"]))
    for name, pictures in (("bicubic", rows["low"]), ("painted", painted)):
        images.write_npz(out / f"{name}.npz", patches(pictures))
        pairs = zip(pictures, rows["image"], strict=True)
        distances = [float(measure(weights, *(x[None] / 127.5 - 1 for x in pair))) for pair in pairs]
        numbers = compare(viewer, out / f"{name}.npz", originals).numbers
        say(
            f"{name}: LPIPS {np.mean(distances):.4f} ({', '.join(f'{d:.4f}' for d in distances)}), fd of"
            f" {len(pictures)} images' patches {numbers['fd_efficientnet']:.4g}"
        )
    columns = [np.concatenate(row, 1) for row in zip(rows["low"], painted, rows["image"], strict=True)]
    images.save_png(Image.fromarray(np.concatenate(columns[: given.shown])), out / "pictures.png")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Run directory of a transformer on 'low'.")
    flags.DEFINE_string("out", None, "Folder of the pictures, made if needed.")
    flags.DEFINE_string("size", "512x512", "Height x width in pixels.")
    flags.DEFINE_integer("num_images", 16, "Held-out images.", lower_bound=1)
    flags.DEFINE_integer("shown", 4, "Rows of pictures.png: thumbnail, painting, original.", lower_bound=1)
    flags.DEFINE_integer("stride", 1, "Of a window.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 4, "Images painted at once.", lower_bound=1)
    cli.run(main)
