"""Codes on disk, which `taming_jax.encode` writes and the training of a transformer reads in place of images.

A folder holds `codes.json`, what the records are and what they were made of, and ArrayRecord files of equally many
records. Record `i * views + v` is view v of image i: a packed numpy row of its codes and of its condition's ids.
"""

import hashlib
import json
from pathlib import Path

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from taming_jax import checkpoint, cli
from taming_jax.errors import UserError
from taming_jax.tasks import conditioners

SMALLEST, MOST = 1024, 512  # records of a file at least; files at most, once there are that many records
PLACES = ("path", "dir")  # of pictures
UNRELATED = (*PLACES, "workers", "max_bad_share", "features", "layout")  # the condition says the last two itself


class Codes:
    """Random access to the records of a folder: {'codes': int32 [h,w], 'cond': int32 [S]}."""

    def __init__(self, folder: Path, stated: dict):
        self.views, self.row = stated["views"], row_type(stated)
        self.records = grain.sources.ArrayRecordDataSource(list(map(str, files(folder, stated))))

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"Codes({self.records!r})"

    def __getitem__(self, index: int) -> dict:
        (row,) = np.frombuffer(self.records[index], self.row)
        return {name: row[name].astype(np.int32) for name in self.row.names}


def open_codes(config: ConfigDict) -> Codes:
    """The records in `config.codes`, for a completed config with its class names.

    Raises UserError where they are of other weights, of another condition or of other data, or are not all there.
    """
    folder = Path(config.codes)
    stated = read_statement(folder)
    if stated is None:
        raise UserError(f"codes={folder}: there is no codes.json; python -m taming_jax.encode writes such folders")
    if changed := differences(stated["made_of"], made_of(config)):
        raise UserError(f"codes={folder} are not those of this config: {changed}; encode again to another --out")
    missing = [file.name for file in files(folder, stated) if not file.exists()]
    if missing:
        raise UserError(f"codes={folder}: {len(missing)} files are missing; the command that encoded them goes on")
    try:
        source = Codes(folder, stated)
    except (RuntimeError, ValueError, OSError) as e:
        raise UserError(f"codes={folder} cannot be read: {' '.join(str(e).split())[:200]}") from e
    if len(source) != stated["records"]:
        raise UserError(f"codes={folder}: {len(source)} records instead of {stated['records']}, a file is damaged")
    return source


def read_statement(folder: Path) -> dict | None:
    """What `codes.json` says; None where there is none. Raises UserError for what is no such file."""
    file = folder / "codes.json"
    try:
        return json.loads(file.read_text()) if file.exists() else None
    except ValueError as e:
        raise UserError(f"{file} cannot be read: {e}") from e


def statement(config: ConfigDict, images: int, views: int, row: np.dtype) -> dict:
    """What `codes.json` says of a completed config with its class names; `row` is the type of a record."""
    stages = {"first_stage": config.first_stage} | ({"cond": config.cond} if config.cond.name == "image" else {})
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
    return json.loads(json.dumps(stated))


def made_of(config: ConfigDict) -> dict:
    """What codes follow from, wherever it lies: the first stages' weights, the condition and the data."""
    cond, data = config.cond.to_dict(), config.data.to_dict()
    stated = {
        "first_stage": weights(config.first_stage),
        "cond": {name: cond[name] for name in ("name", *conditioners.FIELDS[cond["name"]])},
        "data": {name: value for name, value in data.items() if name not in UNRELATED},
    }
    if cond["name"] == "image":
        stated["cond"] |= weights(config.cond)
    return json.loads(json.dumps(stated))


def weights(stage: ConfigDict) -> dict:
    """Tells the weights of a first stage from all others, those of a repeated run too: its step and its codebook."""
    size = stage.config.quantizer.codebook_size, stage.config.quantizer.embed_dim
    like = {"quantize": {"embedding": jax.ShapeDtypeStruct(size, np.float32)}}
    codebook = checkpoint.load_net(Path(stage.workdir), stage.step, "gen", like)["quantize"]["embedding"]
    return {"step": stage.step, "codebook": hashlib.blake2b(codebook.tobytes(), digest_size=8).hexdigest()}


def differences(stated: dict, asked: dict) -> str:
    """'seed 0 -> 1, views 1 -> 4', or '' where both are the same; the run directories may have been moved."""
    stated, asked = (
        ConfigDict({name: value for name, value in x.items() if name != "workdirs"}) for x in (stated, asked)
    )
    return ", ".join(cli.differences(stated, asked))


def row_type(stated: dict) -> np.dtype:
    """A record as numpy reads it: 'codes' [h,w] and 'cond' [S], in unsigned types, packed."""
    return np.dtype([(name, kind, tuple(shape)) for name, kind, shape in stated["row"]])


def files(folder: Path, stated: dict) -> list[Path]:
    """The files of a folder in the order of their records."""
    count = -(-stated["records"] // stated["records_per_file"])
    return [folder / f"codes-{number:05}-of-{count:05}.array_record" for number in range(count)]
