"""What memory a compiled program takes, beside what there is."""

import math
from pathlib import Path
from typing import Any

import jax
import psutil

from taming_jax.errors import UserError

GIB = 2**30
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of version 2, and of 1


def describe(compiled: jax.stages.Compiled) -> str:
    """'it takes 3.2 GiB on each of 8 devices, which have 15.8 GiB'.

    Raises UserError where a CPU's devices together have less: the operating system would kill the process without a
    word. Accelerators refuse by themselves.
    """
    found = compiled.memory_analysis()
    if found is None:
        return "its memory is not known"
    needed = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    needed += found.temp_size_in_bytes + found.generated_code_size_in_bytes
    devices = jax.local_devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        return f"it takes {needed / GIB:.1f} GiB on each of {len(devices)} devices, which have {limit / GIB:.1f} GiB"
    needed, there = needed * len(devices), host_memory()
    words = f"it takes {needed / GIB:.1f} GiB, of {there / GIB:.1f} GiB that the machine has"
    if needed > there:
        raise UserError(
            f"{words}: lower batch_size, raise accumulate (parts of a batch one after another), or take a smaller"
            f" model or data.size"
        )
    return words


def check_state(shapes: Any, shardings: Any) -> None:
    """Raises UserError where a state of these shapes does not fit into what a CPU's devices have, before it is made.

    A compiled step tells more, but only once there is a state.
    """
    parts = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, shapes, shardings)
    needed = sum(jax.tree.leaves(parts)) * len(jax.local_devices())
    if jax.local_devices()[0].platform == "cpu" and needed > host_memory():
        raise UserError(
            f"the weights and what the optimizer keeps take {needed / GIB:.1f} GiB, of {host_memory() / GIB:.1f} GiB"
            " that the machine has: take a smaller model"
        )


def host_memory() -> int:
    """Bytes that this process may use: the machine's, or its container's."""
    sizes = [psutil.virtual_memory().total]
    for file in CGROUPS:
        try:
            text = Path(file).read_text().strip()
        except OSError:
            continue
        sizes += [int(text)] if text.isdecimal() else []
    return min(sizes)
