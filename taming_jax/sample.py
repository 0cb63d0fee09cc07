"""A run directory of the second stage -> images.

    python -m taming_jax.sample --workdir=runs/openmoji_transformer --out=runs/openmoji_samples
    python -m taming_jax.sample --workdir=runs/openmoji_coordinates_transformer --out=runs/large --size=64x128 \\
        --animate=gif
    python -m taming_jax.sample --workdir=runs/openmoji_transformer --out=runs/halves --image=photo.png --keep=top

Writes every image as a file of its own as soon as it is painted, `samples.png` with the first of them, and
`samples.json` with what makes them. The same command goes on where it was stopped.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import NamedSharding
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from taming_jax import animation, checkpoint, cli, conditions, images, sharding
from taming_jax.data.transforms import coordinates
from taming_jax.errors import UserError
from taming_jax.metrics import say
from taming_jax.tasks import conditioners, prior, vqgan
from taming_jax.tiling import TILE, decode_tiled

SHEET = (16, 8)  # rows and columns at most


def sample(
    config: ConfigDict,
    workdir: Path,
    step: int,
    rows: dict[str, np.ndarray],
    size: tuple[int, int],
    seed: int,
    batch_size: int,
    given: conditions.Given | None = None,
    method: str = "cached",
    stride: int = 1,
    tile: int = TILE,
) -> Iterator[np.ndarray]:
    """One image for each row, from a run's checkpoint, batch by batch: uint8 [b,H,W,3], b <= batch_size.

    config, step: as `load_config` gives them; `config.sample` says how codes are drawn. rows: the features of a batch
    that the condition needs, [N,...], and int32 'label' and 'index' [N]. An image follows from seed, label and index
    alone, whatever is painted beside it. size: (height, width) in pixels, not below those of training; above, the
    window of the transformer slides, see `sampling.make_painter` for method and stride. given: a part that stays.
    tile: codes a side that are decoded at once. Raises UserError for what does not fit.
    """
    prior.check_decoding(config)
    if "objects" in rows and "windows" not in rows and size != (config.data.size,) * 2:
        raise ValueError("rows: of a larger picture, scenes have 'windows', see `conditions.read_layouts`")
    task, cond = prior.make(config), conditioners.make(config)
    mesh, total = sharding.to_sample(sharding.make_mesh(config.mesh)), len(rows["label"])
    parts = mesh.shape["data"]
    batch_size = min(batch_size, -(-total // parts) * parts)
    sharding.check_batch(batch_size, mesh)
    like = jax.eval_shape(task.init, jax.random.key(0)).params["gpt"]
    nets = {"gpt": checkpoint.load_net(workdir, step, "gpt", like), **task.load_frozen()}
    nets = jax.device_put(nets, sharding.infer_shardings(nets, mesh))
    h, w = (side // prior.code_size(config) for side in size)
    painter = prior.make_painter(config, method, stride)
    params, options = prior.decode_params(config, nets.pop("gpt")), prior.draw_options(config)

    @jax.jit
    def begin(nets, rows):
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        keys = jax.vmap(jax.random.fold_in)(fold(jax.random.key(seed), rows["label"]), rows["index"])
        return prior.fold_condition(config, cond.tokens(nets, rows), (h, w)), keys

    @jax.jit
    def finish(nets, grid):
        return prior.decode_grid(config, nets["gen"], grid)

    with jax.set_mesh(mesh):
        codes, known = np.zeros((1, h, w), np.int32), np.zeros((h, w), bool)
        if given is not None:
            encode = jax.jit(lambda nets, x: prior.encode_grid(config, nets["gen"], x, jax.random.key(seed)))
            codes, known = np.asarray(encode(nets, images.to_float(jnp.asarray(given.image[None])))), given.keep
        codes = jax.device_put(codes.repeat(batch_size, 0), NamedSharding(mesh, sharding.BATCH))
        with tqdm(total=total * h * w, desc="painting", unit="code", unit_scale=True, mininterval=1) as progress:
            for start in range(0, total, batch_size):
                # The last batch is filled up with the first rows again, so that one program serves all.
                chosen = np.arange(start, start + batch_size) % total
                count = min(batch_size, total - start)
                batch = sharding.shard_batch({key: value[chosen] for key, value in rows.items()}, mesh)
                c, keys = begin(nets, batch)
                for grid, done in painter(params, c, codes, known, keys, *options):
                    grid.block_until_ready()
                    progress.update(start * h * w + count * done - progress.n)
                painted = decode_tiled(lambda part: finish(nets, part), grid, tile)
                yield images.to_uint8(painted)[:count]


def accept(
    images: np.ndarray,
    labels: np.ndarray,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    acceptance_rate: float,
    batch_size: int = 64,
) -> np.ndarray:
    """The paper's rejection sampling by a classifier: which images to keep, of each label those that score best.

    images: uint8 [N,H,W,3], labels: [N], as `--npz` has them. score: (images [b,H,W,3], labels [b]) -> [b], a
    classifier's probability of the label, say. acceptance_rate: the share of each label's images that is kept, in
    (0, 1], one at least. Returns positions, ascending. Raises ValueError for other rates and for scores not of that
    shape or not finite.
    """
    if not 0 < acceptance_rate <= 1:
        raise ValueError(f"acceptance_rate={acceptance_rate:g}: it must be in (0, 1]")
    scores = []
    for start in tqdm(range(0, len(images), batch_size), "scoring", unit="batch", mininterval=1):
        part = slice(start, start + batch_size)
        given = np.asarray(score(images[part], labels[part]), np.float64)
        if given.shape != labels[part].shape:
            raise ValueError(f"scores of {len(labels[part])} images: one each; got shape {given.shape}")
        if not np.isfinite(given).all():
            raise ValueError(f"scores from image {start} on are not all finite")
        scores.append(given)
    ranked, kept = np.argsort(-np.concatenate(scores), kind="stable"), []
    for label in np.unique(labels):
        of_label = ranked[labels[ranked] == label]
        kept.append(of_label[: max(1, round(acceptance_rate * len(of_label)))])
    return np.sort(np.concatenate(kept))


def load_config(workdir: Path) -> tuple[ConfigDict, int]:
    """Config and step of a run's newest checkpoint; raises UserError where it is no transformer's."""
    config, step = checkpoint.load_config(workdir)
    if config.task != "prior":
        raise UserError(f"{workdir} is a {config.task!r} run; samples come from a transformer's run (task 'prior')")
    return config, step


def ask(config: ConfigDict, workdir: Path, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The conditions that the flags name, one row each; raises UserError for flags that do not go with the run."""
    kind, given = config.cond.name, flags.FLAGS
    for flag, kinds in (
        ("classes", ("class",)),
        ("condition", ("image",)),
        ("layout", ("objects",)),
        ("data_path", ("image", "objects")),
    ):
        if given[flag].value is not None and kind not in kinds:
            raise UserError(f"--{flag}: {workdir} is conditioned on {kind!r}, not on {' or '.join(map(repr, kinds))}")
    for flag in ("condition", "layout"):
        if given[flag].value == []:
            raise UserError(f"--{flag} is empty: name files, with commas between")
    if (given.condition or given.layout) and given.data_path is not None:
        raise UserError("give one of --data_path and --condition or --layout")
    if given.layout is not None:
        return conditions.read_layouts(config, given.layout, size)
    if given.condition is not None:
        return conditions.read_conditions(config, given.condition, size)
    if kind not in ("none", "class", "coordinates"):
        return conditions.held_out(config, given.num_conditions, size)
    labels = conditions.parse_classes(given.classes, config.data.class_names) if kind == "class" else [0]
    rows = {"label": np.int32(labels)}
    return rows | ({"coord": coordinates(*size)[None]} if kind == "coordinates" else {})


def configured(workdir: Path) -> tuple[ConfigDict, int]:
    """`load_config`, with what the flags change of it."""
    given, (config, step) = flags.FLAGS, load_config(workdir)
    if given.first_stage is not None:
        config.first_stage.workdir = given.first_stage
    if given.data_path is not None:
        config.data.update(name="folder", path=given.data_path, validation_share=1.0)
    for name in config.sample:
        if given[name].value is not None:
            config.sample[name] = given[name].value
    prior.check_decoding(config)
    return config, step


def ask_part(config: ConfigDict, size: tuple[int, int]) -> conditions.Given | None:
    """The part of an image that the flags give, if any; raises UserError."""
    given = flags.FLAGS
    if (given.image is None) != (given.keep is None):
        raise UserError("--image and --keep go together: what is given, and which part of it stays")
    return None if given.image is None else conditions.read_given(config, given.image, given.keep, size)


def describe(config: ConfigDict, workdir: Path, step: int) -> dict:
    """All that the images follow from, but for label and index."""
    given = flags.FLAGS
    asked = "seed num_samples data_path condition layout image keep size stride tile classes num_conditions".split()
    files = digest([given.image, given.keep, *(given.condition or []), *(given.layout or [])])
    made_by = dict(workdir=str(workdir), step=step, first_stage=config.first_stage.workdir)
    return made_by | {name: given[name].value for name in asked} | config.sample.to_dict() | {"files": files}


def check_out(out: Path, record: Path, made_by: dict) -> None:
    """Raises UserError where other things lie already."""
    if (out / "checkpoints").exists():
        raise UserError(f"--out={out} is a run directory, whose pictures would be written over; name another")
    # Samples that are older than the field were made with what is now the default.
    if record.exists() and {"tile": TILE} | json.loads(record.read_text()) != made_by:
        raise UserError(f"{out} holds samples made with other options (see {record}); name another --out")


def main() -> None:
    given, workdir, out = flags.FLAGS, Path(cli.required("workdir")), Path(cli.required("out"))
    if given.animate == "mp4":
        animation.check_mp4()
    config, step = configured(workdir)
    size = conditions.parse_size(given.size, config)
    part, rows = ask_part(config, size), ask(config, workdir, size)
    made_by, record = describe(config, workdir, step), out / "samples.json"
    check_out(out, record, made_by)

    names, columns = config.data.class_names, given.num_samples
    named = config.cond.name == "class" and len(names) > 0
    word = "class" if config.cond.name == "class" else "condition"
    captions = [{"class": names[label]} if named else {} for label in rows["label"]]
    files = [out / f"{word}_{label:03}" / f"{i:05}.png" for label in rows["label"] for i in range(columns)]
    firsts = [file.with_suffix(f".{given.animate}") for file in files[::columns]] if given.animate else []
    archive = out / "samples.npz"
    if all(file.exists() for file in (*files, *firsts, *([archive] if given.npz else []), out / "samples.png")):
        say(f"these samples are already painted: {out / 'samples.png'}")
        return
    missing = np.flatnonzero([not file.exists() for file in files])
    if len(missing):
        todo = {name: value[missing // columns] for name, value in rows.items()}
        todo["index"] = np.int32(missing % columns)
        # 16 at once as large as in training, fewer larger ones, for memory's sake.
        share = size[0] * size[1] / config.data.size**2
        batch_size = given.batch_size or max(1, round(16 / share / jax.device_count())) * jax.device_count()
        way = dict(given=part, method=given.method, stride=given.stride, tile=given.tile)
        batches = sample(config, workdir, step, todo, size, given.seed, batch_size, **way)
        for number, image in zip(missing, (image for batch in batches for image in batch), strict=True):
            files[number].parent.mkdir(parents=True, exist_ok=True)
            if not record.exists():
                images.write_whole(record, lambda part: part.write_text(json.dumps(made_by)))
            row, index = divmod(int(number), columns)
            drawn = captions[row] | dict(label=int(rows["label"][row]), index=index)
            images.save_png(Image.fromarray(image), files[number], **made_by, **drawn)
    for png, file in zip(files[::columns], firsts, strict=bool(firsts)):
        if not file.exists():
            animate(config, np.asarray(Image.open(png)), part, file)
    shown, originals = conditions.pictures_of(config, rows, size), None
    if part is not None:
        originals = np.stack([part.image] * len(rows["label"]))
        shown = np.stack([conditions.picture_of_part(part)] * len(originals)) if shown is None else shown
    elif "image" in rows and given.condition is None:
        originals = rows["image"]
    for row, picture in enumerate(shown if shown is not None else []):
        images.save_png(Image.fromarray(images.to_uint8(picture)), files[row * columns].with_name("condition.png"))
    painted = np.array([files[i : i + columns] for i in range(0, len(files), columns)])
    sheet = make_sheet(painted, shown, originals, tuple(c["class"] for c in captions) if named else ())
    images.save_png(images.draw_sheet(sheet), out / "samples.png", **made_by)
    if given.npz:
        arrays = np.stack([np.asarray(Image.open(file)) for file in files]), np.repeat(rows["label"], columns)
        images.write_whole(archive, lambda part: save_arrays(part, *arrays))
    say(f"{len(files)} samples for {len(rows['label'])} conditions: {out / 'samples.png'}")


def save_arrays(path: Path, *arrays: np.ndarray) -> None:
    with path.open("wb") as file:  # np.savez would add an ending
        np.savez(file, *arrays)


def make_sheet(
    files: np.ndarray, shown: np.ndarray | None, originals: np.ndarray | None, captions: tuple[str, ...]
) -> images.Sheet:
    """The first of the painted files [rows,columns], before them their condition and behind them the original."""
    files = files[: SHEET[0], : SHEET[1]]
    sheet = [[np.asarray(Image.open(file)) for file in row] for row in files]
    if shown is not None:
        sheet = [[images.to_uint8(picture), *row] for picture, row in zip(shown, sheet, strict=False)]
    if originals is not None:
        sheet = [[*row, images.to_uint8(picture)] for picture, row in zip(originals, sheet, strict=False)]
    return images.Sheet(np.array(sheet), captions[: len(files)])


def digest(files: list[str | None]) -> str:
    """Tells other contents of files from these; names that are no files count as they are."""
    hashed = hashlib.blake2b(digest_size=8)
    for file in files:
        found = file is not None and Path(file).is_file()
        hashed.update(Path(file).read_bytes() if found else str(file).encode())
    return hashed.hexdigest()


def animate(config: ConfigDict, image: np.ndarray, given: conditions.Given | None, file: Path) -> None:
    """Writes the painting of an image as a GIF or MP4, as the flags have it."""
    method, stride, window = flags.FLAGS.method, flags.FLAGS.stride, vqgan.side(config.first_stage.config)
    size = tuple(side // prior.code_size(config) for side in image.shape[:2])
    when = prior.painting_order(config, size, method)
    if given is not None:
        when = np.where(given.keep, -1, when)
    frames = animation.draw_frames(animation.Animation(image, when, window, stride))
    if file.suffix == ".gif":
        images.write_whole(file, lambda part: part.write_bytes(animation.to_gif(frames)))
    else:
        images.write_whole(file, lambda part: animation.write_mp4(frames, str(part)))
    say(f"{len(frames)} frames: {file}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Run directory of a transformer.")
    flags.DEFINE_string("out", None, "Folder for the images, made if needed.")
    flags.DEFINE_string("first_stage", None, "Run directory of the first stage, if it was moved.")
    flags.DEFINE_string(
        "classes",
        None,
        f"Names or numbers, with commas between; default: all, or {conditions.MOST_CLASSES} spread evenly.",
    )
    flags.DEFINE_list("condition", None, "Pictures to be conditioned on, files with commas between.")
    flags.DEFINE_list("layout", None, "Scenes to be conditioned on, JSON files with commas between (docs/data.md).")
    flags.DEFINE_string("data_path", None, "Folder of such pictures, in place of the run's validation split.")
    flags.DEFINE_integer("num_conditions", 8, "Pictures that are taken from there.", lower_bound=1)
    flags.DEFINE_string("image", None, "A picture of which a part is given and the rest is painted.")
    flags.DEFINE_string("keep", None, "That part: top, bottom, left, right, or a mask that is white there.")
    flags.DEFINE_integer("num_samples", 8, "Images of each class or condition.", lower_bound=1)
    flags.DEFINE_string("size", None, "Height x width in pixels, larger than in training: 512x1024.")
    flags.DEFINE_integer("stride", 1, "Columns of codes that the window of a large image moves at once.")
    flags.DEFINE_enum(
        "method", "cached", ["cached", "wavefront"], "For large images; the same codes, 'wavefront' for accelerators."
    )
    flags.DEFINE_integer("tile", TILE, "Codes a side decoded at once, for the decoder's memory.", lower_bound=8)
    flags.DEFINE_enum("animate", None, ["gif", "mp4"], "Write how the first image of each condition is painted.")
    flags.DEFINE_bool("npz", False, "Write all images and their labels as samples.npz too (arr_0, arr_1).")
    flags.DEFINE_integer("batch_size", None, "Images painted at once; default: 16, fewer large ones.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "The same seed gives the same images.")
    flags.DEFINE_float(
        "temperature", None, "Above 1 is wilder, below 1 is tamer; default: the run's config, as for the next three."
    )
    flags.DEFINE_integer("top_k", None, "Draw from the k likeliest codes.")
    flags.DEFINE_float("top_p", None, "Draw from the likeliest codes that hold this share of the probability.")
    flags.DEFINE_float("guidance", None, "Above 1, the condition weighs more (if trained with cond.drop).")
    cli.run(main)
