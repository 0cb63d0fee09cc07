"""What a longer stride of the sliding window costs: nats per code of held-out images.

    python -m benchmarks.stride --workdir=runs/openmoji_coordinates_transformer --size=64x64

Each code is predicted from the window that would decode it. At stride 1 that is the window centred on it, as in the
original; at stride s the window moves every s columns, so the last code of a group sees s - 1 columns less to its right
in the rows above, and more to its left. The run must write row by row, without condition or on classes or coordinates.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from tqdm import tqdm

from taming_jax import cli, data, request
from taming_jax.data.transforms import coordinates, fit
from taming_jax.errors import UserError
from taming_jax.generator import Generator
from taming_jax.sampling.window import column_groups, cut, prefix_at, window_start

STRIDES = (1, 2, 4, 8)
BATCH = 64  # windows at once


def windows(h: int, w: int, n: int, stride: int) -> np.ndarray:
    """Every window with what it decodes: row, top, left, first column, number of columns. [N,5] int."""
    tops = window_start(np.arange(h), n, h)
    groups = column_groups(w, n, stride)
    return np.array([(i, tops[i], *group) for i in range(h) for group in groups])


def main() -> None:
    generator = Generator.load(cli.required("workdir"))
    stage, config, nets = generator.stage, generator.config, generator.nets
    if stage.cond.NEEDS_DATA or not stage.slides:
        raise UserError(
            f"{flags.FLAGS.workdir} is conditioned on {config.cond.name!r} in the order {config.order!r}; see --help"
        )
    size, n = request.parse_size(flags.FLAGS.size, stage, config), stage.first.side
    h, w = (side // stage.first.patch for side in size)
    gpt = stage.gpt.clone(unrolled=True)

    @jax.jit
    def read(nets, image, label):
        """-> codes [1,h,w] and the condition [1,S] or [1,h,w]."""
        codes = stage.first.remap(stage.first.encode(nets["gen"], {"image": image}), jax.random.key(0))
        return codes, stage.condition(nets, {"label": label, "coord": coordinates(*size)[None]}, (h, w))

    @jax.jit
    def nll(params, codes, c, window):
        """The sum over the codes that a batch of windows [N,5] decodes."""

        def tokens(row):
            _, top, left, _, _ = row
            prefix = prefix_at(c, top, left, n, h)
            return jnp.concatenate([prefix, cut(codes, top, left, n)], 1)[0]

        ids = jax.vmap(tokens)(window)
        logits = gpt.apply({"params": params}, ids[:, :-1])[:, -n * n :, : stage.first.num_ids]
        cost = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, -n * n :]).reshape(-1, n, n)
        i, top, left, first, count = (x[:, None, None] for x in window.T)
        rows, columns = top + jnp.arange(n)[:, None], left + jnp.arange(n)
        return jnp.sum(jnp.where((rows == i) & (columns >= first) & (columns < first + count), cost, 0))

    source = data.open_source(config.data, "validation")
    chosen = np.random.default_rng(0).permutation(len(source))[: flags.FLAGS.num_images]
    with jax.set_mesh(generator.mesh):
        records = [fit(source[int(i)], size) for i in chosen]
        grids = [read(nets, record["image"][None], record["label"][None]) for record in records]
        for stride in (s for s in STRIDES if s <= n // 2):
            batch = windows(h, w, n, stride)
            filling = np.repeat(batch[:1] * [1, 1, 1, 1, 0], -len(batch) % BATCH, 0)  # decodes no column
            batch, total = np.concatenate([batch, filling]).reshape(-1, BATCH, 5), 0.0
            for codes, c in tqdm(grids, f"stride {stride}", unit="image", leave=False, mininterval=1):
                total += sum(float(nll(nets["gpt"], codes, c, part)) for part in batch)
            print(f"stride {stride}: {total / (len(grids) * h * w):.4f} nats per code", flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Run directory of a transformer.")
    flags.DEFINE_string("size", None, "Height x width in pixels, larger than in training.")
    flags.DEFINE_integer("num_images", 64, "Held-out images to read.", lower_bound=1)
    cli.run(main)
