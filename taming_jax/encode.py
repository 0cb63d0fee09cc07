"""A transformer's data set as codes, written once: training on them does not run the first stage at every step.

    python -m taming_jax.encode --config=configs/openmoji_transformer.py --out=runs/openmoji_codes
    python -m taming_jax.train  --config=configs/openmoji_transformer.py --workdir=runs/openmoji_transformer \\
        --config.codes=runs/openmoji_codes

The same command goes on where it was stopped. Several hosts share the work (--distributed, as in training).
"""

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grain
import jax
import numpy as np
from absl import flags
from array_record.python.array_record_module import ArrayRecordWriter
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from taming_jax import cli, data, sharding
from taming_jax.data import codes, transforms
from taming_jax.errors import UserError
from taming_jax.metrics import say
from taming_jax.tasks import conditioners, prior, vqgan
from taming_jax.train import PREEMPTED


def encode(config: ConfigDict, out: Path, views: int, batch_size: int) -> None:
    """Writes the codes of `views` views of every training image, and their condition's ids; see `data/codes.py`.

    config: a transformer's, completed. View v of image i is the crop and the flip that follow from seed, i and v alone.
    Each device encodes `batch_size` of them at once. Files that are there stay; each process writes a share of the
    others, whole ones. Raises UserError where `out` holds anything else.
    """
    if views > 1 and not (config.data.random_crop or config.data.flip or config.cond.name == "objects"):
        raise UserError(f"--views={views}: with data.random_crop=False and data.flip=False all are the same")
    source = data.in_turn(lambda: data.open_source(config.data, "train"))
    config.data.class_names = tuple(source.class_names)
    stated = codes.statement(config, len(source), views, row_type(config))
    data.in_turn(lambda: prepare(out, stated))
    files, size = codes.files(out, stated), stated["records_per_file"]
    there = multihost_utils.broadcast_one_to_all(np.array([file.exists() for file in files]))
    if all(there):
        say(f"these codes are already written: {out}")
        return

    say(f"{views} views of each of {len(source)} images into {len(files)} files, {sum(there)} are there: {out}")
    missing = np.flatnonzero(~there)[jax.process_index() :: jax.process_count()]
    numbers = [np.arange(i * size, min((i + 1) * size, stated["records"])) for i in missing]
    for i, rows in zip(missing, encode_files(config, source, numbers, views, batch_size), strict=True):
        part = files[i].with_suffix(".part")
        writer = ArrayRecordWriter(str(part), "group_size:1")
        for row in rows:
            writer.write(row.tobytes())
        writer.close()
        part.replace(files[i])
    multihost_utils.sync_global_devices("all files are there")
    say(f"{stated['records']} records; to train on them: --config.codes={out}")


def prepare(out: Path, stated: dict) -> None:
    """Makes the folder; raises UserError where it is there and holds something else."""
    found = codes.read_statement(out)
    if found is not None and (changed := codes.differences(found, stated)):
        raise UserError(f"{out} holds codes that were made otherwise: {changed}; name another --out")
    if found is None:
        part = out / "codes.part"
        if out.exists() and not (out.is_dir() and set(out.iterdir()) <= {part}):
            raise UserError(f"--out={out} is there and holds no codes; name another")
        try:
            out.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(stated, indent=1))
            part.replace(out / "codes.json")
        except OSError as e:
            raise UserError(f"--out={out} cannot be written: {e}") from e


def row_type(config: ConfigDict) -> np.dtype:
    """A record: codes and the condition's ids, each in the smallest unsigned type that holds them."""
    cond, side = conditioners.make(config), vqgan.side(config.first_stage.config)
    fields = (
        ("codes", config.first_stage.config.quantizer.codebook_size, (side, side)),
        ("cond", cond.vocab_size, (cond.length,)),
    )
    return np.dtype([(name, np.min_scalar_type(count - 1).newbyteorder("<"), shape) for name, count, shape in fields])


def encode_files(
    config: ConfigDict, source, numbers: list[np.ndarray], views: int, batch_size: int
) -> Iterator[np.ndarray]:
    """For each file's record numbers [N] its records [N] of `row_type`, on the devices of this process."""
    mesh = sharding.make_mesh(ConfigDict(dict(data=-1, fsdp=1, tensor=1)), jax.local_devices())
    batch_size *= mesh.size
    frozen = prior.make(config).load_frozen()
    frozen = jax.device_put(frozen, sharding.infer_shardings(frozen, mesh))
    read = jax.jit(lambda frozen, batch: prior.read(config, frozen, batch))
    # Each file begins a batch: what is in it does not depend on which others are missing.
    filled = [np.pad(n, (0, -len(n) % batch_size), mode="edge") for n in numbers]
    chosen = Views(source, data.augment(config.data), config.seed, views, np.concatenate([np.arange(0), *filled]))
    batches = data.iterate(grain.MapDataset.source(chosen).batch(batch_size), config.data.workers)
    progress = tqdm(
        desc="encoding",
        total=sum(map(len, numbers)),
        unit="image",
        mininterval=1,
        disable=jax.process_index() > 0,
    )
    with closing(batches), progress, jax.set_mesh(mesh):
        for n in numbers:
            rows = np.zeros(len(n), row_type(config))
            for start in range(0, len(n), batch_size):
                part = rows[start : start + batch_size]
                cond, grid = read(frozen, sharding.shard_batch(next(batches), mesh))
                part["cond"], part["codes"] = np.asarray(cond)[: len(part)], np.asarray(grid)[: len(part)]
                progress.update(len(part))
            yield rows


@dataclasses.dataclass(frozen=True)
class Views:
    """The chosen records as pictures: number `i * views + v` is view v of image i of the source."""

    source: data.Readable
    augment: transforms.Augment
    seed: int
    views: int
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict:
        image, view = divmod(int(self.numbers[index]), self.views)
        return self.augment(self.source[image], np.random.default_rng((self.seed, image, view)))


def main() -> None:
    cli.join_processes()
    # Files are written whole, so there is nothing to save. Of several processes, jax itself would only note the signal,
    # and a plain exit would wait for the others.
    end = sys.exit if jax.process_count() == 1 else os._exit
    signal.signal(signal.SIGTERM, lambda *_: end(PREEMPTED))
    given, config = flags.FLAGS, cli.required_config()
    if config.task != "prior":
        raise UserError(f"--config is for task {config.task!r}: give a transformer's, which says what the condition is")
    config.first_stage.workdir = given.workdir or config.first_stage.workdir
    config = prior.complete(config, None)
    name = f"{config.cond.name}_views{given.views}"
    out = Path(given.out) if given.out else Path(config.first_stage.workdir) / "codes" / name
    encode(config, out, given.views, given.batch_size)


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "Config file of a transformer; its fields can be set as --config.field=value.", lock_config=True
    )
    flags.DEFINE_string("workdir", None, "Run directory of the first stage, in place of the config's.")
    flags.DEFINE_string(
        "out", None, "Folder for the codes; default: codes/<condition>_views<views>/ in that directory."
    )
    flags.DEFINE_integer(
        "views", 1, "Random crops and flips of each image, if data.random_crop or data.flip.", lower_bound=1
    )
    flags.DEFINE_integer("batch_size", 16, "Images that each device encodes at once.", lower_bound=1)
    cli.define_processes()
    cli.run(main)
