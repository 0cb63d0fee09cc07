"""Reads a program that XLA compiled for a TPU: its traffic with HBM, the work of the matrix units, its collectives.

XLA's own cost analysis counts the body of a loop once, and traffic of the on-chip memory as if it were HBM's. The text
of a compiled program, which is read here, distinguishes them.
"""

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota"}
SLICES = ("dynamic-slice", "slice", "gather")

SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)((?::[^{}]*)?)\})?")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?(%[\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")


class Array(NamedTuple):
    """A dense array: its dimensions, its bytes as they lie in memory (tiles are padded), and whether that is HBM."""

    dims: tuple[int, ...]
    nbytes: int
    hbm: bool


class Instruction(NamedTuple):
    name: str
    opcode: str
    shapes: list[Array]
    operands: list[str]
    called: list[str]
    line: str
    root: bool


class Collective(NamedTuple):
    """One collective: bytes and elements of its result on a chip, and how often it runs."""

    kind: str
    nbytes: int
    size: int
    times: int


Module = dict[str, dict[str, Instruction]]


def parse_arrays(text: str) -> list[Array]:
    """All arrays in the text of a shape, 'f32[8,128]{1,0:T(8,128)}' or a tuple."""
    arrays = []
    for dtype, dims, order, where in SHAPE.findall(text):
        if dtype not in BYTES:
            continue
        dims = tuple(int(d) for d in dims.split(",") if d)
        padded = [dims[int(i)] for i in order.split(",")] if order else list(reversed(dims))  # the minor-most first
        tile = re.match(r":T\(([\d,]+)\)", where)
        for i, t in enumerate(reversed(tile[1].split(","))) if tile else ():
            if i < len(padded):
                padded[i] = -(-padded[i] // int(t)) * int(t)
        arrays.append(Array(dims, math.prod(padded) * BYTES[dtype], not re.search(r"S\([1-9]", where)))
    return arrays


def parse(text: str) -> tuple[Module, str]:
    """The computations of a compiled module and the name of the first to run."""
    module, current, entry = {}, None, ""
    for line in text.splitlines():
        if line.endswith("{") and (head := re.match(r"(ENTRY )?(%[\w.\-]+) ", line)):
            current = module[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif current is not None and (found := INSTRUCTION.match(line)):
            name, shape, opcode, rest = found.groups()
            operands = re.findall(r"%[\w.\-]+", rest.split(")", 1)[0])
            called = re.findall(
                r"(?:calls|body|to_apply|called_computations=\{|branch_computations=\{)=?(%[\w.\-]+)", rest
            )
            root = line.lstrip().startswith("ROOT")
            current[name] = Instruction(name, opcode, parse_arrays(shape), operands, called, rest, root)
    return module, entry


def walk(module: Module, name: str, times: int = 1) -> Iterator[tuple[dict[str, Instruction], Instruction, int]]:
    """Yields every instruction that runs by itself, its computation and how often it runs, by loops' trip counts."""
    for instruction in module[name].values():
        if instruction.opcode == "while":
            trips = _trip_count(module, re.search(r"condition=(%[\w.\-]+)", instruction.line)[1])
            for called in instruction.called:
                yield from walk(module, called, times * trips)
        elif instruction.opcode in ("call", "conditional", "async-start"):
            for called in instruction.called:
                yield from walk(module, called, times)
        else:
            yield module[name], instruction, times


def _trip_count(module: Module, condition: str) -> int:
    """How often a loop runs whose counter starts at 0: the number that its condition compares with."""
    limits = [
        int(re.match(r"(\d+)\)", i.line)[1])
        for i in module[condition].values()
        if i.opcode == "constant" and i.shapes[0].dims == () and re.match(r"\d+\)", i.line)
    ]
    return max(limits, default=1)


def hbm_bytes(module: Module, entry: str) -> int:
    """Bytes that a chip reads and writes in HBM. An array that is only sliced counts as the slice."""
    total = 0
    for computation, instruction, times in walk(module, entry):
        total += times * _traffic(module, computation, instruction)
    return total


def _traffic(module: Module, computation: dict, instruction: Instruction) -> int:
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith("-done"):
        return 0
    arrays = {name: computation[name].shapes for name in instruction.operands if name in computation}
    if opcode in ("copy-start", "slice-start", "dynamic-slice-start"):
        sides = [a for a in instruction.shapes if a.dims]
        return sum(a.hbm for a in sides) * min(a.nbytes for a in sides) if sides else 0
    if opcode in SLICES:
        return 2 * _in_hbm(instruction.shapes)
    if opcode == "dynamic-update-slice":
        return 2 * _in_hbm(arrays[instruction.operands[1]])
    written = _in_hbm(instruction.shapes)
    read = {name: _in_hbm(shapes) for name, shapes in arrays.items()}
    if opcode == "fusion":
        for name, whole in read.items():
            places = [i for i, operand in enumerate(instruction.operands) if operand == name]
            parts = _add(_part(module, computation, instruction, i) for i in places)
            if parts is None or not whole:
                continue
            sliced, updated = parts
            in_place = any(a.hbm and a.nbytes == whole for a in instruction.shapes)
            if in_place or not updated:
                read[name] = min(sliced, whole)
                written += updated - whole if updated else 0
    return max(0, written) + sum(read.values())


# Of an array: bytes that are sliced out of it, and bytes that are updated in it; None if all of it is needed.
Parts = tuple[int, int] | None


def _part(module: Module, computation: dict, use: Instruction, position: int) -> Parts:
    """What an instruction needs of its operand at a position."""
    if use.opcode in SLICES and position == 0:
        return sum(a.nbytes for a in use.shapes), 0
    if use.opcode == "dynamic-update-slice" and position == 0:
        return 0, sum(a.nbytes for a in computation[use.operands[1]].shapes)
    if use.opcode == "bitcast":
        return _parts(module, computation, use.name)
    if use.opcode == "fusion" and use.called:
        inner = module[use.called[0]]
        parameters = (p for p in inner.values() if p.opcode == "parameter")
        return _parts(module, inner, next(p.name for p in parameters if p.line.startswith(f"{position})")))
    return None


def _parts(module: Module, computation: dict, name: str) -> Parts:
    """What a fused computation needs of one of its arrays."""
    if computation[name].root:
        return None
    return _add(
        _part(module, computation, use, position)
        for use in computation.values()
        for position, operand in enumerate(use.operands)
        if operand == name
    )


def _add(parts: Iterable[Parts]) -> Parts:
    parts = list(parts)
    return None if None in parts else (sum(sliced for sliced, _ in parts), sum(updated for _, updated in parts))


def _in_hbm(arrays: list[Array]) -> int:
    return sum(a.nbytes for a in arrays if a.hbm)


def matrix_flops(module: Module, entry: str) -> int:
    """Floating-point operations of a chip's matrix units: products and convolutions, also those inside fusions."""
    inside = {}

    def of(name: str) -> int:
        if name not in inside:
            computation = module[name]
            inside[name] = sum(
                _flops(computation, i) + (sum(map(of, i.called)) if i.opcode == "fusion" else 0)
                for i in computation.values()
            )
        return inside[name]

    total = 0
    for computation, instruction, times in walk(module, entry):
        called = instruction.called if instruction.opcode == "fusion" else []
        total += times * (_flops(computation, instruction) + sum(map(of, called)))
    return total


def _flops(computation: dict, instruction: Instruction) -> int:
    if instruction.opcode not in ("convolution", "dot"):
        return 0
    dims = instruction.shapes[0].dims
    out = math.prod(dims)
    left, kernel = (computation[name].shapes[0].dims for name in instruction.operands[:2])
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.line)[1]
        return 2 * out * math.prod(left[int(i)] for i in contracted.split(",") if i)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.line).groups()
    written = re.search(r"window=\{([^}]*)\}", instruction.line)
    window = [pair.split("=") for pair in written[1].split()] if written else []
    for side in range(len(labels[0]) - 2):
        shapes = zip((left, kernel, dims), labels, strict=True)
        n, size, places = (shape[names.index(str(side))] for shape, names in shapes)
        out = out // places * _taps(n, size, places, {key: value.split("x")[side] for key, value in window})
    return 2 * out * kernel[labels[1].index("i")]


def _taps(n: int, size: int, places: int, window: dict[str, str]) -> int:
    """How often a convolution multiplies along one side, without the zeros between and far beside its `n` inputs.

    The compiler for TPUs writes products over a batch with such zeros: only one place of the window is not zero. Zeros
    that pad an image count, as usual.
    """
    dilation, low = int(window.get("lhs_dilate", 1)), int(window.get("pad", "0_0").split("_")[0])
    if dilation == 1 and low < max(1, size - 1):
        return places * size
    starts = np.arange(places) * int(window.get("stride", 1)) - low
    at = starts[:, None] + np.arange(size) * int(window.get("rhs_dilate", 1))
    return int(((at >= 0) & (at <= (n - 1) * dilation) & (at % dilation == 0)).sum())


def collectives(module: Module, entry: str) -> list[Collective]:
    """All collectives; an all-reduce counts as a reduce-scatter if each chip keeps only a part of it.

    A collective that runs behind several other operations appears in each of them, under one channel.
    """
    found, channels = [], set()

    def look(computation: dict, instruction: Instruction, times: int) -> None:
        kind = instruction.opcode.removesuffix("-start")
        channel = re.search(r"channel_id=(\d+)", instruction.line)
        if kind in COLLECTIVES and channel:
            if channel[1] in channels:
                return
            channels.add(channel[1])
        if kind in COLLECTIVES:
            arrays = [a for a in instruction.shapes if a.dims or len(instruction.shapes) == 1]
            if instruction.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
                arrays = arrays[-1:] if kind == "all-gather" else arrays[:1]  # operands come with the result
            size = sum(math.prod(a.dims) for a in arrays)
            found.append(Collective(kind, sum(a.nbytes for a in arrays), size, times))
        elif instruction.opcode == "fusion":
            for called in instruction.called:
                for inner in module[called].values():
                    if "all-reduce-scatter" in called and inner.opcode == "all-reduce":
                        channels.add(re.search(r"channel_id=(\d+)", inner.line)[1])
                        nbytes = sum(a.nbytes for a in instruction.shapes)
                        size = sum(math.prod(a.dims) for a in inner.shapes)
                        found.append(Collective("reduce-scatter", nbytes, size, times))
                    else:
                        look(module[called], inner, times)

    for computation, instruction, times in walk(module, entry):
        look(computation, instruction, times)
    return found
