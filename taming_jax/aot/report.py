"""Reports what a compiled program can reach on a slice."""

import math
import re
from collections import defaultdict
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from taming_jax import completion, sharding
from taming_jax.aot import hlo
from taming_jax.aot.chips import CHIPS, find_devices
from taming_jax.aot.flops import model_flops
from taming_jax.aot.programs import compile_program, state_shapes
from taming_jax.console import duration, say
from taming_jax.tasks import make_task

EVALUATED = 50_000  # samples that an FID is usually of


def parameter_sizes(config: ConfigDict) -> set[int]:
    """The number of elements of every parameter, whole and, if it is stacked for a scan, for one layer."""
    state = state_shapes(config, make_task(config))
    leaves = [leaf.shape for leaf in jax.tree.leaves((state.params, state.frozen))]
    return {math.prod(shape) for shape in leaves} | {math.prod(shape[1:]) for shape in leaves}


def is_needed(collective: hlo.Collective, sizes: set[int]) -> bool:
    """Whether sharded training has to move this: parameters, their gradients, or statistics."""
    kinds = ("all-reduce", "all-gather", "reduce-scatter")
    return collective.kind in kinds and (collective.size in sizes or collective.kind != "all-gather")


def report(
    config: ConfigDict, mesh: Mesh, topology: str, program: str, text_file: str | Path | None = None
) -> list[str]:
    """Compiles a program; gives the results as lines. `text_file` and errors are as in `compile_program`."""
    chips, chip, gib = mesh.size, CHIPS[re.split("[:-]", topology)[0]], 2**30
    made = compile_program(config, mesh, program, text_file)
    own = model_flops(config, mesh, program) / chips
    floors = {"matrix units": made.flops / chip.flops, "HBM": made.hbm_bytes / chip.bandwidth}
    moved = sum(c.nbytes * c.times for c in made.collectives)
    slowest = max(floors, key=floors.get)
    seconds = floors[slowest]
    kinds = ", ".join(f"{name} {size / gib:.2f}" for name, size in made.memory.items())
    rate = config.batch_size / seconds
    lines = [
        f"compiled in {made.seconds:.0f} s; fits: {sum(made.memory.values()) / gib:.2f} GiB a chip ({kinds})",
        f"a chip does {made.flops / 1e12:.3g} TFLOP (the model's own: {own / 1e12:.3g}) and moves"
        f" {made.hbm_bytes / 1e9:.3g} GB of HBM (XLA's own count, on-chip memory included and loops once:"
        f" {made.xla_bytes / 1e9:.3g} GB)",
        "floors: " + ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in floors.items()) + f"; bound by {slowest}",
        f"at best {rate / chips:.1f} images/s/chip, {rate:.0f} in all; roofline MFU {own / chip.flops / seconds:.0%}",
        f"collectives move {moved / 1e6:.0f} MB a chip: {1e3 * moved / chip.interconnect:.1f} ms of its interconnect",
    ]
    sizes, table = parameter_sizes(config), defaultdict(lambda: [0, 0])
    for c in made.collectives:
        entry = table[is_needed(c, sizes), c.kind]
        entry[0] += c.times
        entry[1] += c.nbytes * c.times
    for needed in (True, False):
        row = [f"{n} {kind} ({size / 1e6:.1f} MB)" for (ok, kind), (n, size) in sorted(table.items()) if ok == needed]
        lines.append(f"{'needed' if needed else 'not needed'}: {', '.join(row) or 'none'}")
    if program == "train":
        hours = config.steps * seconds / 3600
        lines.append(f"{config.steps} steps take at least {hours:.1f} hours, {hours * chips:.0f} chip-hours")
    else:
        lines.append(f"{EVALUATED} images, as for an FID, take at least {duration(EVALUATED / rate)}")
    return lines


def complete(config: ConfigDict, stages: dict[str, ConfigDict], num_classes: int) -> ConfigDict:
    """Completes a config as training would; a first stage without a run comes from its config in `stages`."""
    stages = {name: stage.copy_and_resolve_references() for name, stage in stages.items()}
    if "first_stage" in stages:
        stages["first_stage"].data.class_names = tuple(map(str, range(num_classes)))
    return completion.complete_ahead(config, stages)


def run(
    config: ConfigDict,
    topology: str,
    program: str,
    stages: dict[str, ConfigDict],
    num_classes: int,
    quick: bool = False,
    text_file: str | Path | None = None,
) -> None:
    """Completes a config, compiles its program for a slice, and prints the results.

    stages, num_classes: see `complete`. quick: the compiler searches less. text_file, errors: see `compile_program`.
    """
    if quick:
        if hasattr(jax.config, "jax_exec_time_optimization_effort"):
            jax.config.update("jax_exec_time_optimization_effort", -1.0)
        else:  # jax 0.12 has levels in its place
            jax.config.update("jax_optimization_level", "O1")
    config = complete(config, stages, num_classes)
    mesh = sharding.make_mesh(config.mesh, find_devices(topology))
    mesh = mesh if program == "train" else sharding.to_sample(mesh)
    sharding.check_batch(config.batch_size, mesh, config.accumulate)
    shape = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    dtype = "float32" if program == "inception" else config.dtype
    how = f"{dtype}, compiled quickly: more bytes than there will be" if quick else dtype
    say(f"{program} on {topology}: {mesh.size} chips, mesh {shape}, batch {config.batch_size}, {how}")
    for line in report(config, mesh, topology, program, text_file):
        say(line)
