"""A data set of codes on disk, which the training of a transformer reads in place of images; written once.

A folder holds `codes.json`, which says what the records are and what they were made from, and ArrayRecord files of
equally many records. Record `i * views + v` is view v of image i: a packed numpy row of its codes and of its
condition's ids.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from taming_jax import checkpoint, completion, data, places, sharding
from taming_jax.conditions import CONDITIONS, find_condition
from taming_jax.console import bar, say
from taming_jax.data.transforms import Augment
from taming_jax.errors import ArgumentError, UserError, reason
from taming_jax.fields import OF_TASK, STEP, differences
from taming_jax.first_stage import make_first_stage
from taming_jax.second_stage import SecondStage, make_second_stage
from taming_jax.tasks.transformer import load_first_stages
from taming_jax.values import INT64, Rule, among, whole

SMALLEST, MOST = 1024, 512  # records in a file, at least; files, at most
PLACES = ("path", "dir")  # where the images are
STATED: dict[str, Rule] = {  # by a rule; the rest of `codes.json` is compared as a whole
    "records": whole(1, INT64),
    "records_per_file": whole(1, INT64),
    "views": whole(1),
    "seed": STEP,
    "made_of.cond.name": among(CONDITIONS),
}
UNRELATED = (*PLACES, "workers", "max_bad_share", "features", "layout")  # the condition itself states the last two


class Codes:
    """Random access to the records of a folder: {'codes': int32 [h,w], 'cond': int32 [S]}."""

    def __init__(self, folder: Path, stated: dict, row: np.dtype):
        self.folder, self.views, self.row = folder, stated["views"], row
        self.records = grain.sources.ArrayRecordDataSource(list(map(str, files(folder, stated))))

    def __len__(self) -> int:
        return len(self.records)

    @property
    def kind(self) -> str:
        """What its records are, in words."""
        return f"records of codes, {self.views} of each image,"

    def __repr__(self) -> str:
        return f"Codes({self.records!r})"

    def __getitem__(self, index: int) -> dict:
        try:
            (row,) = np.frombuffer(self.records[index], self.row)
        except Exception as e:
            raise UserError(f"codes={self.folder}: record {index} cannot be read: {reason(e)}") from e
        return {name: row[name].astype(np.int32) for name in self.row.names}


def open_codes(config: ConfigDict) -> Codes:
    """Opens the records in `config.codes`, for a completed config with its class names.

    Raises UserError where they come from other weights, another condition or other data, or where some are missing.
    """
    folder = Path(config.codes)
    stated, row = required_statement(folder), record_type(make_second_stage(config))
    made = stated["made_of"]
    asked = as_stated(made, made_of(config)) | {"row": as_json(row.descr)}
    if changed := changes(made | {"row": stated.get("row")}, asked):
        raise UserError(f"codes={folder} are not those of this config: {changed}; encode again to another folder")
    missing = [file.name for file in files(folder, stated) if not file.exists()]
    if missing:
        raise UserError(f"codes={folder}: {len(missing)} files are missing; the command that encoded them goes on")
    try:
        source = Codes(folder, stated, row)
    except (RuntimeError, ValueError, OSError) as e:
        raise UserError(f"codes={folder} cannot be read: {' '.join(str(e).split())[:200]}") from e
    if len(source) != stated["records"]:
        raise UserError(f"codes={folder}: {len(source)} records instead of {stated['records']}, a file is damaged")
    return source


def learned(config: ConfigDict) -> ConfigDict:
    """The fields of the condition that the codes in `config.codes` were made with; raises as `open_codes` does."""
    found = ConfigDict(checkpoint.to_tuples(required_statement(Path(config.codes))["made_of"]["cond"]))
    if found.name != config.cond.name:
        raise UserError(
            f"codes={config.codes} are not those of this config: cond.name {found.name!r} -> {config.cond.name!r};"
            " encode again to another folder"
        )
    return found


def required_statement(folder: Path) -> dict:
    """The contents of `codes.json`; raises UserError where there is none."""
    stated = read_statement(folder)
    if stated is None:
        raise UserError(f"codes={folder}: there is no codes.json; python -m taming_jax.encode writes such folders")
    return stated


def read_statement(folder: Path) -> dict | None:
    """The contents of `codes.json`; None where there is none. Raises UserError if it is none of ours.

    Fields of the data that an older one lacks get the value of what it did then.
    """
    file = folder / "codes.json"
    if not file.exists():
        return None
    try:
        stated = json.loads(file.read_text())
        check_statement(stated)
        ConfigDict(stated)  # raises for keys that are no names
    except (AttributeError, LookupError, OSError, RecursionError, TypeError, UserError, ValueError) as e:
        raise UserError(f"{file} cannot be read: {reason(e)}") from e
    later = {path.removeprefix("data."): value for path, value in completion.LATER.items() if path.startswith("data.")}
    stated["made_of"]["data"] = later | stated["made_of"]["data"]
    return stated


def check_statement(stated: dict) -> None:
    """Raises UserError for a field of `codes.json` that is missing or out of range, or for more files than `MOST`."""
    for name in ("made_of", "made_of.first_stage", "made_of.cond", "made_of.data"):
        if not isinstance(find_field(stated, name), dict):
            raise UserError(f"{name} is no group of fields")
    for name, rule in STATED.items():
        rule(name, find_field(stated, name))
    for name in find_condition(stated["made_of"]["cond"]["name"]).LEARNED:
        OF_TASK["transformer"][f"cond.{name}"](f"made_of.cond.{name}", stated["made_of"]["cond"].get(name))
    if stated["records"] % stated["views"]:
        raise UserError(f"records={stated['records']} are not views={stated['views']} of each image")
    if stated["records"] > MOST * stated["records_per_file"]:
        raise UserError(f"records_per_file={stated['records_per_file']}: there would be more than {MOST} files")


def find_field(stated: dict, name: str) -> Any:
    """A field by its full name; None where it is not there."""
    for part in name.split("."):
        stated = stated.get(part) if isinstance(stated, dict) else None
    return stated


def statement(config: ConfigDict, images: int, views: int, row: np.dtype) -> dict:
    """The contents of `codes.json` for a completed config with its class names; `row` is the type of a record."""
    kind = find_condition(config.cond.name)
    stages = {"first_stage": config.first_stage} | ({"cond": config.cond} if kind.HAS_STAGE else {})
    stated = {
        "records": images * views,
        "records_per_file": max(SMALLEST, -(-images * views // MOST)),
        "row": row.descr,
        "views": views,
        "seed": config.seed,
        "workdirs": {name: stage.workdir for name, stage in stages.items()},
        "pictures": {name: config.data[name] for name in PLACES},
        "made_of": made_of(config),
    }
    return as_json(stated)


def made_of(config: ConfigDict) -> dict:
    """What determines the codes, wherever the files are: the first stages' weights, the condition and the data."""
    cond, kind = config.cond.to_dict(), find_condition(config.cond.name)
    stated = {
        "first_stage": weights(config.first_stage),
        "cond": {name: cond[name] for name in ("name", *kind.FIELDS)},
        "data": {name: value for name, value in config.data.to_dict().items() if name not in UNRELATED},
    }
    if kind.HAS_STAGE:
        stated["cond"] |= weights(config.cond)
    return as_json(stated)


def weights(stage: ConfigDict) -> dict:
    """Identifies a first stage's weights, even among repeated runs: its step, digests, and a hash of its codebook.

    Where the codebook is not learned, the hash is that of all weights. 'codes' is the digest of what gives the codes,
    'digest' that of all weights. Older codes have the hash alone, or with it the latter.
    """
    first = make_first_stage(stage.config)
    params = checkpoint.load_net(Path(stage.workdir), stage.step, "gen", first.parameter_shapes())
    learned = "quantize" in params
    arrays = [np.asarray(first.codebook(params))] if learned else jax.tree.leaves(params)
    hashed = hashlib.blake2b(b"".join(array.tobytes() for array in arrays), digest_size=8).hexdigest()
    hashed = {"codebook" if learned else "weights": hashed, "codes": completion.digest_of_codes(stage, params)}
    return {"step": stage.step, **hashed, "digest": checkpoint.digest(params)}


def as_stated(stated: dict, made: dict) -> dict:
    """What `made_of` says, as codes state it: without the digests that older ones do not state.

    First stages count as the same where they give the same codes, whatever their decoders have learned.
    """

    def fields(group: str) -> dict:
        before, now = stated[group], made[group]
        if now.get("codes") and now["codes"] == before.get("codes"):
            return now | {name: before[name] for name in ("step", "digest", "weights") if name in before}
        return {name: value for name, value in now.items() if name not in ("digest", "codes") or name in before}

    return {group: fields(group) for group in made}


def changes(stated: dict, asked: dict) -> str:
    """'seed 0 -> 1, views 1 -> 4', or '' where both are the same. Run directories may have moved and do not count."""
    old, new = ({k: v for k, v in given.items() if k != "workdirs"} for given in (stated, asked))
    return ", ".join(differences(old, new)[:5])


def as_json(tree: Any) -> Any:
    """What JSON makes of it: lists in place of tuples."""
    return json.loads(json.dumps(tree))


def files(folder: Path, stated: dict) -> list[Path]:
    """The files of a folder in the order of their records."""
    count = -(-stated["records"] // stated["records_per_file"])
    return [folder / f"codes-{number:05}-of-{count:05}.array_record" for number in range(count)]


def encode(config: ConfigDict, out: Path, views: int, batch_size: int) -> None:
    """Writes the codes of `views` views of every training image, and their condition's ids; see above.

    config: that of a transformer, from `completion.complete`. Seed, i and v alone determine view v of image i, a crop
    and a flip. Each device encodes `batch_size` views at once. Finished files stay; each process writes a share of the
    missing ones, each as a whole. Raises UserError where `out` holds anything else.
    """
    if views > 1 and not (config.data.random_crop or config.data.flip or find_condition(config.cond.name).ANNOTATES):
        raise ArgumentError(f"views={views}: with data.random_crop=False and data.flip=False all are the same")
    config = config.copy_and_resolve_references()
    config.data.class_names = ()  # not those of the first stage
    source = data.in_turn(lambda: data.open_source(config.data, "train"))
    config = completion.complete_from_data(config, source)
    stage = make_second_stage(config)
    stated = statement(config, len(source), views, record_type(stage))
    data.in_turn(lambda: prepare(out, stated))
    paths, size = files(out, stated), stated["records_per_file"]
    there = multihost_utils.broadcast_one_to_all(np.array([file.exists() for file in paths]))
    if all(there):
        say(f"these codes are already written: {out}")
        return

    say(f"{views} views of each of {len(source)} images into {len(paths)} files, {sum(there)} are there: {out}")
    missing = np.flatnonzero(~there)[jax.process_index() :: jax.process_count()]
    numbers = [np.arange(i * size, min((i + 1) * size, stated["records"])) for i in missing]
    for i, rows in zip(missing, encode_files(config, stage, source, numbers, views, batch_size), strict=True):
        part = paths[i].with_suffix(".part")
        writer = ArrayRecordWriter(str(part), "group_size:1")
        for row in rows:
            writer.write(row.tobytes())
        writer.close()
        part.replace(paths[i])
    multihost_utils.sync_global_devices("all files are there")
    say(f"{stated['records']} records; to train on them, a config has codes={out}")


def prepare(out: Path, stated: dict) -> None:
    """Makes the folder; raises UserError where it is there and holds something else."""
    found = read_statement(out)
    if found is not None:
        made = as_stated(found["made_of"], stated["made_of"])
        if changed := changes(found, stated | {"made_of": made}):
            raise ArgumentError(f"out={out} holds codes that were made otherwise: {changed}; name another folder")
    if found is None:
        part = out / "codes.part"
        if out.exists() and not (out.is_dir() and set(out.iterdir()) <= {part, out / places.CLAIM}):
            raise ArgumentError(f"out={out} is there and holds no codes; name another folder")
        try:
            out.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(stated, indent=1))
            part.replace(out / "codes.json")
        except OSError as e:
            raise ArgumentError(f"out={out} cannot be written: {e}") from e


def record_type(stage: SecondStage) -> np.dtype:
    """A record: codes and the condition's ids, each in the smallest unsigned type that holds them."""
    fields = (
        ("codes", stage.first.codebook_size, (stage.first.side, stage.first.side)),
        ("cond", stage.cond.vocab_size, (stage.cond.length,)),
    )
    return np.dtype([(name, np.min_scalar_type(count - 1).newbyteorder("<"), shape) for name, count, shape in fields])


def encode_files(
    config: ConfigDict, stage: SecondStage, source, numbers: list[np.ndarray], views: int, batch_size: int
) -> Iterator[np.ndarray]:
    """Yields each file's records [N] of `record_type`, by its record numbers [N], on the devices of this process."""
    mesh = sharding.make_mesh(ConfigDict(dict(data=-1, fsdp=1, tensor=1)), jax.local_devices())
    batch_size *= mesh.size
    frozen = load_first_stages(config, stage)
    frozen = jax.device_put(frozen, sharding.infer_shardings(frozen, mesh))
    read, augment = jax.jit(stage.read), data.make_augment(config.data, stage.cond.annotator)
    # Each file begins with a new batch, so that its contents do not depend on which other files are missing.
    filled = [np.pad(n, (0, -len(n) % batch_size), mode="edge") for n in numbers]
    chosen = Views(source, augment, config.seed, views, np.concatenate([np.arange(0), *filled]))
    batches = data.iterate(grain.MapDataset.source(chosen).batch(batch_size), config.data.workers, len(source))
    progress = bar(
        desc="encoding",
        total=sum(map(len, numbers)),
        unit="image",
        disable=jax.process_index() > 0,
    )
    with closing(batches), progress, jax.set_mesh(mesh):
        for n in numbers:
            rows = np.zeros(len(n), record_type(stage))
            for start in range(0, len(n), batch_size):
                part = rows[start : start + batch_size]
                cond, grid = read(frozen, sharding.shard_batch(next(batches), mesh))
                part["cond"], part["codes"] = np.asarray(cond)[: len(part)], np.asarray(grid)[: len(part)]
                progress.update(len(part))
            yield rows


@dataclasses.dataclass(frozen=True)
class Views:
    """The images of the chosen records: number `i * views + v` is view v of image i of the source."""

    source: data.Readable
    augment: Augment
    seed: int
    views: int
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict:
        image, view = divmod(int(self.numbers[index]), self.views)
        return self.source.read(
            image, lambda record: self.augment(record, np.random.default_rng((self.seed, image, view)))
        )
