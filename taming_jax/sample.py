"""A run directory of the second stage -> images.

    python -m taming_jax.sample --workdir=runs/openmoji_transformer --out=runs/openmoji_samples

Writes `samples.png`, one row per class, every image as a file of its own, and `samples.json` with what made them.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from taming_jax import checkpoint, cli, data, images, sharding
from taming_jax.errors import UserError, nearest
from taming_jax.metrics import say
from taming_jax.tasks import prior

MOST_CLASSES = 16  # painted when --classes does not say which


def parse_classes(text: str | None, names: tuple[str, ...]) -> list[int]:
    """'flags, 3' -> label numbers; None is all classes, or 16 spread evenly over more.

    Raises UserError for a class that is not there.
    """
    count = max(1, len(names))
    if text is None:
        return sorted({round(i) for i in np.linspace(0, count - 1, min(count, MOST_CLASSES))})
    labels = []
    for word in (w.strip() for w in text.split(",")):
        by_name = [i for i, name in enumerate(names) if name.lower() == word.lower()]
        if not by_name and not (word.isdecimal() and int(word) < count):
            lower = {name.lower(): name for name in names}
            raise UserError(
                f"--classes: there is no class {word!r}{nearest(word.lower(), lower)}; classes are 0 to {count - 1}"
                + (f": {', '.join(names)}" if 0 < len(names) <= 20 else "")
            )
        labels.append(by_name[0] if by_name else int(word))
    return labels


def sample(
    config: ConfigDict,
    workdir: Path,
    step: int,
    conditions: dict[str, np.ndarray],
    columns: int,
    seed: int,
    batch_size: int,
    decoding: dict,
    size: tuple[int, int] | None = None,
    method: str = "cached",
    stride: int = 1,
) -> np.ndarray:
    """`columns` images of each condition from a run's checkpoint: uint8 [R,columns,H,W,3].

    size: height and width in pixels where the images are larger than those of training; the window of the transformer
    slides then, see `sampling.make_painter` for method and stride.

    config, step: as `load_config` gives them; decoding: temperature, top_k, top_p. conditions: the features of a batch
    that the condition needs, [R,...], and 'label' [R] int32. Image i of a row is drawn from the seed, the label and i
    alone, whatever else is painted beside it.
    """
    task = prior.make(config)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(batch_size, mesh)
    like = jax.eval_shape(task.init, jax.random.key(0)).params["gpt"]
    nets = {"gpt": checkpoint.load_net(workdir, step, "gpt", like), **task.load_frozen()}
    cond = prior.make_conditioner(config)
    nets = jax.device_put(nets, sharding.infer_shardings(nets, mesh))

    def keys_of(rows):
        return jax.vmap(lambda label, i: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), label), i))(
            rows["label"], rows["index"]
        )

    @jax.jit
    def paint(nets, rows, decoding):
        return prior.sample(config, nets["gpt"], nets["gen"], cond.tokens(nets, rows), keys_of(rows), **decoding)

    @jax.jit
    def begin(nets, rows):
        return cond.tokens(nets, rows), keys_of(rows)

    @jax.jit
    def finish(nets, grid):
        return prior.decode_grid(config, nets["gen"], grid)

    def paint_large(nets, rows, decoding):
        factor = config.data.size // prior.side(config.first_stage.config)
        codes = jnp.zeros((batch_size, size[0] // factor, size[1] // factor), jnp.int32)
        known, (c, keys) = jnp.zeros(codes.shape[1:], bool), begin(nets, rows)
        limit = jnp.minimum(decoding["top_k"], prior.num_codes(config))
        parts = painter(nets["gpt"], c, codes, known, keys, decoding["temperature"], limit, decoding["top_p"])
        for grid in tqdm(parts, "sliding", unit="row", total=codes.shape[1], mininterval=1, leave=False):
            grid.block_until_ready()
        return finish(nets, grid)

    if size is not None:
        painter, paint = prior.make_painter(config, method, stride), paint_large

    count = len(conditions["label"])
    total = count * columns
    rows = {name: np.repeat(value, columns, 0) for name, value in conditions.items()}
    rows["index"] = np.tile(np.arange(columns, dtype=np.int32), count)
    painted = []
    with jax.set_mesh(mesh), tqdm(total=total, desc="painting", unit="image", mininterval=1) as progress:
        for start in range(0, total, batch_size):
            # The last batch is filled up with the first rows again, so that one program serves all.
            part = np.arange(start, start + batch_size) % total
            batch = sharding.shard_batch({key: value[part] for key, value in rows.items()}, mesh)
            painted.append(images.to_uint8(jax.device_get(paint(nets, batch, decoding))))
            progress.update(min(batch_size, total - start))
    array = np.concatenate(painted)[:total]
    return array.reshape(count, columns, *array.shape[1:])


def parse_size(text: str | None, config: ConfigDict) -> tuple[int, int] | None:
    """'512x1024' -> (512, 1024), height first; None for the size of training.

    Raises UserError for a size that is smaller, or that the first stage does not divide, or that a condition lacks.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"--size={text!r}: height x width in pixels, such as 512x1024")
    size, least = (int(parts[0]), int(parts[1])), config.data.size
    factor = least // prior.side(config.first_stage.config)
    if min(size) < least or size[0] % factor or size[1] % factor:
        raise UserError(f"--size={text}: multiples of {factor} from {least} on, the size of training")
    if config.cond.name in ("image", "coordinates"):
        raise UserError(
            f"--size: the condition {config.cond.name!r} would have to be as large, and cannot be given yet"
        )
    return size if size != (least, least) else None


def held_out(config: ConfigDict, count: int) -> dict[str, np.ndarray]:
    """The first `count` held-out records as conditions, numbered in 'label'."""
    batches = data.eval_batches(data.open_source(config.data, "validation"), config)
    parts = [batches[i] for i in range(min(len(batches), -(-count // config.batch_size)))]
    rows = {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}
    rows = {name: value[rows["mask"] > 0] for name, value in rows.items()}
    return rows | {"label": np.arange(len(rows["label"]), dtype=np.int32)}


def load_config(workdir: Path) -> tuple[ConfigDict, int]:
    """Config and step of a run's newest checkpoint; raises UserError where it is no transformer's."""
    config, step = checkpoint.load_config(workdir)
    if config.task != "prior":
        raise UserError(f"{workdir} is a {config.task!r} run; samples come from a transformer's run (task 'prior')")
    return config, step


def main() -> None:
    workdir, out = Path(cli.required("workdir")), Path(cli.required("out"))
    config, step = load_config(workdir)
    if flags.FLAGS.first_stage is not None:
        config.first_stage.workdir = flags.FLAGS.first_stage
    if flags.FLAGS.data_path is not None and config.cond.name in ("none", "class"):
        raise UserError(f"--data_path: {workdir} is conditioned on {config.cond.name!r}, not on pictures")
    if flags.FLAGS.data_path is not None:
        config.data.update(name="folder", path=flags.FLAGS.data_path, validation_share=1.0)
    names = config.data.class_names
    kind = config.cond.name
    if kind == "class":
        labels = parse_classes(flags.FLAGS.classes, names)
    elif flags.FLAGS.classes is not None:
        raise UserError(f"--classes: {workdir} is conditioned on {kind!r}, not on a class")
    else:
        labels = [0] if kind == "none" else list(range(flags.FLAGS.num_conditions))
    given = {name: flags.FLAGS[name].value for name in config.sample}
    decoding = {name: config.sample[name] if value is None else value for name, value in given.items()}
    prior.check_decoding(decoding)
    made_by = dict(
        workdir=str(workdir),
        step=step,
        first_stage=config.first_stage.workdir,
        seed=flags.FLAGS.seed,
        num_samples=flags.FLAGS.num_samples,
        data_path=flags.FLAGS.data_path,
        size=flags.FLAGS.size,
        stride=flags.FLAGS.stride,
        classes=labels,
        **decoding,
    )
    size = parse_size(flags.FLAGS.size, config)
    if (out / "checkpoints").exists():
        raise UserError(f"--out={out} is a run directory, whose pictures would be written over; name another")
    record = out / "samples.json"
    if record.exists():
        if json.loads(record.read_text()) == made_by:
            say(f"these samples are already painted: {out / 'samples.png'}")
            return
        raise UserError(f"{out} holds samples made with other options (see {record}); name another --out")

    num_samples, seed = flags.FLAGS.num_samples, flags.FLAGS.seed
    named = kind == "class" and len(names) > 0
    rows = {"label": np.int32(labels)} if kind in ("none", "class") else held_out(config, len(labels))
    way = dict(size=size, method=flags.FLAGS.method, stride=flags.FLAGS.stride)
    array = sample(config, workdir, step, rows, num_samples, seed, flags.FLAGS.batch_size, decoding, **way)
    word = "class" if kind == "class" else "condition"
    for label, row in zip(rows["label"], array, strict=True):
        folder, caption = out / f"{word}_{label:03}", {"class": names[label]} if named else {}
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(row):
            images.save_png(Image.fromarray(image), folder / f"{i:05}.png", **made_by, **caption, index=i)
    captions = tuple(names[label] for label in labels) if named else ()
    images.save_png(images.draw_sheet(images.Sheet(array, captions)), out / "samples.png", **made_by)
    record.write_text(json.dumps(made_by))
    say(f"{array.shape[0] * array.shape[1]} samples for {len(array)} conditions: {out / 'samples.png'}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Run directory of a transformer.")
    flags.DEFINE_string("out", None, "Folder for the images, made if needed.")
    flags.DEFINE_string("first_stage", None, "Run directory of the first stage, if it was moved.")
    flags.DEFINE_string(
        "classes", None, f"Names or numbers, with commas between; default: all, or {MOST_CLASSES} spread evenly."
    )
    flags.DEFINE_integer("num_samples", 8, "Images of each class or condition.", lower_bound=1)
    flags.DEFINE_string("size", None, "Height x width in pixels, larger than in training: 512x1024.")
    flags.DEFINE_integer("stride", 1, "Columns of codes that the window of a large image moves at once.")
    flags.DEFINE_enum(
        "method", "cached", ["cached", "wavefront"], "For large images; the same codes, 'wavefront' for accelerators."
    )
    flags.DEFINE_string("data_path", None, "Folder of those pictures, in place of the run's validation split.")
    flags.DEFINE_integer(
        "num_conditions", 8, "Held-out pictures, for a transformer conditioned on those.", lower_bound=1
    )
    flags.DEFINE_integer("batch_size", 16, "Images painted at once.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "The same seed gives the same images.")
    flags.DEFINE_float(
        "temperature", None, "Above 1 is wilder, below 1 is tamer; default: the run's config, as for the next two."
    )
    flags.DEFINE_integer("top_k", None, "Draw from the k likeliest codes.")
    flags.DEFINE_float("top_p", None, "Draw from the likeliest codes that hold this share of the probability.")
    cli.run(main)
