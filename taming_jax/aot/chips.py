"""What chips can do, and the slices that are made of them."""

from typing import NamedTuple

import jax
from jax.experimental import topologies

from taming_jax.errors import ArgumentError, UserError, with_extra


class Chip(NamedTuple):
    """What one chip can do, as its maker says (cloud.google.com/tpu/docs/system-architecture-tpu-vm)."""

    flops: float  # per second, in bfloat16
    bandwidth: float  # bytes of HBM per second
    interconnect: float  # bytes to and from other chips per second


CHIPS = {
    "v4": Chip(275e12, 1228e9, 300e9),
    "v5e": Chip(197e12, 819e9, 200e9),
    "v5p": Chip(459e12, 2765e9, 600e9),
    "v6e": Chip(918e12, 1640e9, 448e9),
}

SLICES = {  # by the names that the configs' tables use
    "v4-8": "v4:2x2x1",
    "v5e-16": "v5e:4x4",
    "v5e-256": "v5e:16x16",
    "v5p-64": "v5p:2x4x4",
    "v6e-256": "v6e:16x16",
}


def find_devices(topology: str) -> list[jax.Device]:
    """The devices of a slice, 'v5e:4x4' or one of SLICES, say. Raises UserError for other names, or without libtpu."""
    given, topology = topology, SLICES.get(topology, topology)
    kind = topology.partition(":")[0]
    options = {"chip_config_name": "megacore"} if kind == "v4" else {}  # else its two cores count as two devices
    try:
        if kind not in CHIPS:
            raise ValueError
        return topologies.get_topology_desc(topology, platform="tpu", **options).devices
    except (ValueError, jax.errors.JaxRuntimeError) as e:
        if "libtpu" in str(e):
            raise UserError(f"the compiler of TPUs is missing: {with_extra('aot')}") from e
        raise ArgumentError(
            f"topology={given}: no such slice; it is one of {', '.join(SLICES)}, or written like v5e:4x4"
        ) from e
