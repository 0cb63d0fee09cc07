"""What a longer stride of the sliding window costs: nats per code of held-out images.

    python -m benchmarks.stride --workdir=runs/openmoji_coordinates_transformer --size=64x64

Each code is predicted from the window that would decode it. At stride 1 that is the window centred on it, as in the
original; at stride s the window moves every s columns, so the last code of a group sees s - 1 columns less to its right
in the rows above, and more to its left. The run must write row by row, without condition or on classes or coordinates.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from tqdm import tqdm

from taming_jax import checkpoint, cli, conditions, data, sampling, sharding
from taming_jax import sample as sampler
from taming_jax.data.transforms import coordinates
from taming_jax.errors import UserError
from taming_jax.images import to_float
from taming_jax.tasks import conditioners, prior, vqgan

STRIDES = (1, 2, 4, 8)
BATCH = 64  # windows at once


def windows(h: int, w: int, n: int, stride: int) -> np.ndarray:
    """Every window with what it decodes: row, top, left, first column, number of columns. [N,5] int."""
    tops = sampling.window_start(np.arange(h), n, h)
    groups = sampling.column_groups(w, n, stride)
    return np.array([(i, tops[i], *group) for i in range(h) for group in groups])


def main() -> None:
    workdir = Path(cli.required("workdir"))
    config, step = sampler.load_config(workdir)
    if config.cond.name not in ("none", "class", "coordinates") or config.order != "row_major":
        raise UserError(f"{workdir} is conditioned on {config.cond.name!r} in the order {config.order!r}; see --help")
    size = conditions.parse_size(flags.FLAGS.size, config)
    task, cond, gpt = prior.make(config), conditioners.make(config), prior.make_model(config)
    n, factor = vqgan.side(config.first_stage.config), prior.code_size(config)
    h, w = (side // factor for side in size)
    like = jax.eval_shape(task.init, jax.random.key(0)).params["gpt"]
    nets = jax.device_put({"gpt": checkpoint.load_net(workdir, step, "gpt", like), **task.load_frozen()})

    @jax.jit
    def read(nets, image, label):
        """-> codes [1,h,w] and the condition [1,S] or [1,h,w]."""
        codes = prior.encode_grid(config, nets["gen"], to_float(image), jax.random.key(0))
        c = cond.tokens(nets, {"label": label, "coord": coordinates(*size)[None]})
        return codes, prior.fold_condition(config, c, (h, w))

    @jax.jit
    def nll(params, codes, c, window):
        """Summed over what a batch of windows [N,5] decodes."""

        def tokens(row):
            _, top, left, _, _ = row
            prefix = sampling.prefix_at(c, top, left, n, h)
            return jnp.concatenate([prefix, sampling.cut(codes, top, left, n)], 1)[0]

        ids = jax.vmap(tokens)(window)
        logits = gpt.apply({"params": params}, ids[:, :-1])[:, -n * n :, : prior.num_codes(config)]
        cost = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, -n * n :]).reshape(-1, n, n)
        i, top, left, first, count = (x[:, None, None] for x in window.T)
        rows, columns = top + jnp.arange(n)[:, None], left + jnp.arange(n)
        return jnp.sum(jnp.where((rows == i) & (columns >= first) & (columns < first + count), cost, 0))

    source = data.open_source(config.data, "validation")
    chosen = np.random.default_rng(0).permutation(len(source))[: flags.FLAGS.num_images]
    with jax.set_mesh(sharding.make_mesh(config.mesh)):
        records = [conditions.fit(source[int(i)], size) for i in chosen]
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
