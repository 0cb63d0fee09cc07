"""Files of tensors: what `torch.save` writes, now and before PyTorch 1.6, safetensors, and shards of both.

Nothing is allocated because a file says so: tensors are views of the file, within its bounds.
"""

import io
import json
import math
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError

from taming_jax import checkpoint, images, published
from taming_jax.convert.pickles import Object, describe
from taming_jax.errors import ArgumentError, UserError

Tensors = dict[str, np.ndarray]
Places = dict[str, tuple[int, int]]  # a storage's key -> its first byte in the file, and its bytes

MAX_HEADER = 2**24  # bytes of a pickle, or of safetensors' JSON; a whole training's pickle has two million
MAX_SHARING = 8  # layers may share weights, but not thousands of them
MAX_STEP = 2**31 - 1
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
TORCH = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "C64": np.complex64,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
# How files begin that are taken for checkpoints, and what to do about them.
OTHERS = {
    b"version https://git-lfs": "is a pointer of git-lfs, not the file itself: run `git lfs pull` where it lies",
    b"<": "looks like a web page, not a checkpoint: download the file itself",
    b"\x1f\x8b": "is packed by gzip: unpack it",
    b"BZh": "is packed by bzip2: unpack it",
    b"\xfd7zXZ": "is packed by xz: unpack it",
    b"(\xb5/\xfd": "is packed by zstd: unpack it",
    b"7z\xbc\xaf": "is packed by 7-Zip: unpack it",
    b"Rar!": "is packed by RAR: unpack it",
    b"\x89HDF": "is an HDF5 file, as Keras writes, not one of PyTorch",
}
# What trainers call the state dict in a checkpoint; averages come before the weights that they are of.
STATE_DICTS = ("state_dict", "ema", "model_ema", "ema_state_dict", "model_state_dict", "model", "generator", "module")
PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")


def read(path: Path, prefer: Sequence[str] = STATE_DICTS) -> tuple[Tensors, int]:
    """A checkpoint's state dict, as views of its file, and its step (0 where it does not say).

    path: a file, an index of shards, or a folder with one index. prefer: of several state dicts, the one that is named
    first. Raises ArgumentError for what holds no state dict, is damaged, or claims more than it holds.
    """
    try:
        if path.is_dir():
            return read_folder(path)
        if not path.exists():
            raise UserError("does not exist: there is no such file")
        if not path.is_file():
            raise UserError("is no regular file")
        return read_shards(path) if path.name.endswith(".index.json") else read_file(path, prefer)
    except ArgumentError:
        raise
    except UserError as e:
        raise ArgumentError(f"ckpt={path} {e}") from e
    except OSError as e:
        raise ArgumentError(f"ckpt={path} cannot be read: {e.strerror or e}") from e
    except (
        *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, RuntimeError, TypeError),
        *(ValueError, struct.error, zipfile.BadZipFile),
    ) as e:  # damage surfaces anywhere in numpy, json, pickletools and zipfile
        reason = " ".join(str(e).split())[:100]
        raise ArgumentError(
            f"ckpt={path} cannot be read as tensors: it is damaged or cut off, download it again ({reason})"
        ) from e


def read_file(path: Path, prefer: Sequence[str]) -> tuple[Tensors, int]:
    """One file, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise UserError("is empty")
    if start[8:9] == b"{":
        tensors, step = read_safetensors(path), 0
    elif start.startswith(b"PK"):
        tensors, step = to_tensors(path, *describe_zip(path), prefer)
    elif start.startswith(b"\x80"):
        tensors, step = to_tensors(path, *describe_legacy(path), prefer)
    else:
        for magic, message in OTHERS.items():
            if start.lstrip().startswith(magic):
                raise UserError(message)
        if start[257:262] == b"ustar":
            raise UserError("is a tar archive: unpack it, or save it with a PyTorch after 0.1.10")
        raise UserError(f"is neither a file of torch.save nor safetensors: it begins with {start[:8]!r}")
    if sum(value.nbytes for value in tensors.values()) > MAX_SHARING * path.stat().st_size:
        raise UserError("holds tensors that use the same bytes again and again: no model does")
    return tensors, step


def describe_zip(path: Path) -> tuple[Any, Places]:
    """What `torch.save` writes: the root of its pickle, and where the storages lie. All checksums are verified."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        records = archive.infolist()
        pickles = [r for r in records if r.filename.endswith("/data.pkl") and r.filename.count("/") == 1]
        if len(pickles) != 1:
            raise UserError("is a zip file without a data.pkl, so none of torch.save")
        folder = pickles[0].filename.removesuffix("data.pkl")
        if any(r.filename == f"{folder}constants.pkl" for r in records):
            raise UserError("is a TorchScript program: save its state_dict() by torch.save")
        if any(r.compress_type != zipfile.ZIP_STORED or r.flag_bits & 1 for r in records):
            raise UserError("cannot be read as tensors: it has compressed records, which torch.save does not write")
        if sum(max(r.file_size, r.compress_size) for r in records) > path.stat().st_size:
            raise UserError("cannot be read as tensors: its records claim more bytes than it has")
        if pickles[0].file_size > MAX_HEADER:
            raise UserError(f"cannot be read as tensors: its pickle has {pickles[0].file_size} bytes, not of tensors")
        damaged = archive.testzip()
        if damaged is not None:
            raise UserError(f"is damaged: the checksum of its record {damaged[:80]!r} does not fit; download it again")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise UserError("was written on a big-endian machine; save it again on a little-endian one")
        places = {}
        for record in records:
            file.seek(record.header_offset + 26)
            begin = record.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
            places[record.filename.removeprefix(f"{folder}data/")] = (begin, record.file_size)
        return describe(io.BytesIO(archive.read(pickles[0])))[0], places


def describe_legacy(path: Path) -> tuple[Any, Places]:
    """What `torch.save` wrote before PyTorch 1.6: five pickles, then each storage after its number of elements."""
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MAX_HEADER))
        if describe(head)[0] != LEGACY_MAGIC:
            raise UserError("cannot be read as tensors: it is a pickle, but none of torch.save")
        describe(head), describe(head)  # the version, and the machine
        root, storages = describe(head)
        keys, _ = describe(head)
        kinds = {key: kind.name.rpartition(".")[2] for _, kind, key, *_ in storages if isinstance(key, str)}
        places, place, size = {}, head.tell(), path.stat().st_size
        for key in keys:
            if not isinstance(key, str) or kinds.get(key) not in TORCH:
                raise UserError("holds tensors of another type than floats and whole numbers, which are not read")
            file.seek(place)
            length = struct.unpack("<q", file.read(8))[0] * np.dtype(TORCH[kinds[key]]).itemsize
            if not 0 <= length <= size - place - 8:
                raise UserError("is cut off: it ends before its tensors do; download it again")
            places[key] = (place + 8, length)
            place += 8 + length
    return root, places


def to_tensors(path: Path, root: Any, places: Places, prefer: Sequence[str]) -> tuple[Tensors, int]:
    """The state dict and the step of what a file's pickle describes."""
    data, tensors = np.memmap(path, np.uint8, "r"), {}
    for name, node in state_dict(root, prefer):
        if node is None or (isinstance(name, str) and name.endswith("_extra_state")):  # of layers that have none
            continue
        tensors[checked_name(name)] = to_tensor(name, node, data, places)
    step = next((value for key, value in root.items if key == "global_step"), 0)
    if not isinstance(step, int):
        step = 0
    if not 0 <= step <= MAX_STEP:
        raise UserError(f"says that its global_step is no number from 0 to {MAX_STEP}")
    return tensors, step


def state_dict(root: Any, prefer: Sequence[str]) -> list[tuple[Any, Any]]:
    """The names and values of a checkpoint's state dict, wherever trainers put it: up to three dictionaries deep."""
    if not isinstance(root, Object):
        raise UserError("holds no state dict of tensors")
    found, level, seen = {}, [("", root)], set()
    for _ in range(3):
        below = []
        for key, node in level:
            if id(node) in seen:
                continue
            seen.add(id(node))
            count = sum(is_tensor(value) for _, value in node.items)
            if count:
                found.setdefault(key, (count, node.items))
            below += [(name, value) for name, value in node.items if isinstance(name, str) and is_dictionary(value)]
        level = below
    if not found:
        what = "" if root.name in ("dict", "collections.OrderedDict") else f" but a {root.name[:80]!r}"
        raise UserError(f"holds no state dict of tensors{what}; save a model's state_dict()")
    most = max(count for count, _ in found.values())
    whole = {key: items for key, (count, items) in found.items() if 2 * count >= most}  # not only an optimizer's
    return whole[next((name for name in prefer if name in whole), next(iter(whole)))]


def is_dictionary(node: Any) -> bool:
    """Whether a part of a pickle holds items under keys."""
    return isinstance(node, Object) and bool(node.items)


def is_tensor(node: Any) -> bool:
    """Whether a part of a pickle is a tensor of any kind."""
    return isinstance(node, Object) and node.name.startswith("torch._") and "._rebuild_" in node.name


def checked_name(name: Any) -> str:
    """A tensor's name; raises UserError for one that cannot be one of a model's."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > 500:
        raise UserError("cannot be read as tensors: a key of its state dict is no name")
    return name


def to_tensor(name: str, node: Any, data: np.ndarray, places: Places) -> np.ndarray:
    """A tensor as a view of the file's bytes; raises UserError for one of another kind, and where it leaves them."""
    while isinstance(node, Object) and node.name in PARAMETERS:
        node = node.args[0]
    match node:
        case Object(
            name="torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor",
            args=(Object(name="persistent", args=("storage", Object(name=kind), key, *_)), offset, shape, strides, *_),
        ):
            kind = kind.rpartition(".")[2]
        case Object(name=kind):
            raise UserError(f"holds {name!r} as a {kind[:80]!r}: no quantized, sparse or float8 tensors are read")
        case _:
            raise UserError(f"holds {name!r} as a {type(node).__name__}, not as a tensor")
    if kind not in TORCH:
        raise UserError(f"holds {name!r} as a {kind[:80]!r}: no quantized, sparse or float8 tensors are read")
    if not isinstance(key, str) or key not in places:
        raise UserError(f"is cut off: the bytes of its tensor {name!r} are missing; download it again")
    begin, length = places[key]
    shape, strides = (value.args[0] if isinstance(value, Object) else value for value in (shape, strides))
    return view(name, data[begin : begin + length], TORCH[kind], shape, offset, strides)


def view(
    name: str,
    data: np.ndarray,
    dtype: type,
    shape: Sequence[int],
    offset: int = 0,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """A tensor of some bytes, which may not need more bytes than there are. offset, strides: in elements.

    strides: None for those of the shape.
    """
    size, numbers = np.dtype(dtype).itemsize, (*shape, offset, *(strides or ()))
    if len(numbers) > 65 or not all(isinstance(n, int) and 0 <= n < 2**63 for n in numbers):
        raise UserError(f"cannot be read as tensors: {name!r} has no shape")
    if math.prod(shape) * size > len(data):
        raise UserError(f"holds {name!r} of the shape {shape}, but only {len(data)} bytes for it")
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.ndarray(shape, dtype, data, offset * size, strides and [stride * size for stride in strides])


def read_safetensors(path: Path) -> Tensors:
    """A file of safetensors: the length of a JSON, the JSON, and the bytes that it names."""
    data = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(bytes(data[:8]), "little")
    if length > min(MAX_HEADER, len(data) - 8):
        raise UserError("cannot be read as tensors: its header is longer than it may be")
    header, data = json.loads(bytes(data[8 : 8 + length])), data[8 + length :]
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        checked_name(name)
        if entry["dtype"] not in SAFETENSORS:
            raise UserError(f"holds {name!r} as {entry['dtype'][:80]!r}: no quantized or float8 tensors are read")
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= len(data):
            raise UserError(f"is cut off: it ends before its tensor {name!r} does; download it again")
        tensors[name] = view(name, data[begin:end], SAFETENSORS[entry["dtype"]], entry["shape"])
    if not tensors:
        raise UserError("holds no tensors")
    return tensors


def read_shards(index: Path) -> tuple[Tensors, int]:
    """The files that an index names, as one."""
    if index.stat().st_size > MAX_HEADER:
        raise UserError("is too long for an index of shards")
    content = json.loads(index.read_bytes())
    tensors, files = {}, content["weight_map"]
    for name in sorted(set(files.values())):
        shard = index.parent / name
        if Path(name).name != name or name.endswith(".json") or not shard.is_file():
            raise UserError(f"names {name[:80]!r}, which is no file beside it")
        tensors |= read(shard)[0]
    missing = sorted(set(files) - set(tensors))
    if missing:
        raise UserError(f"names the tensor {missing[0][:80]!r}, which its files do not hold")
    return tensors, 0


def read_folder(path: Path) -> tuple[Tensors, int]:
    """The shards in a folder; raises UserError for another one, and says what makes a file of it."""
    indices = sorted(path.glob("*.index.json"))
    if len(indices) == 1:
        return read_shards(indices[0])
    if (path / "checkpoints").is_dir():
        raise UserError("is a folder, a run directory already: nothing is to be converted")
    if (path / ".metadata").is_file():
        tool = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        raise UserError(f"is a folder of torch.distributed.checkpoint: make a file of it by `{tool} FOLDER FILE`")
    files = sorted(p.name for p in path.iterdir() if p.suffix in (".ckpt", ".pt", ".pth", ".bin", ".safetensors"))
    if files:
        raise UserError(f"is a folder, not a file: name one of those in it, such as {files[0]}")
    raise UserError("is a folder, not a file: if DeepSpeed wrote it, its zero_to_fp32.py makes a file of it")


def write_tensors(flag: str, file: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Writes safetensors as a whole. Raises ArgumentError about the flag that names their folder."""
    try:
        images.write_whole(file, lambda part: published.save_tensors(part, tensors, metadata))
    except SafetensorError as e:  # of a full disk, say
        raise ArgumentError(f"{flag}={file.parent} cannot be written: {checkpoint.cause_of(e)}") from e
