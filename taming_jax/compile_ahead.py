"""Compiles a config's programs for a TPU slice that nobody has to own, and says what they can reach there.

    python -m taming_jax.compile_ahead --config=configs/imagenet_vq.py --topology=v5e:4x4
    python -m taming_jax.compile_ahead --config=configs/imagenet_transformer.py:v5e-256 --topology=v5e-256 \\
        --first_stage=configs/imagenet_vq.py --first_stage.quantizer.codebook_size=16384

The program is the one that runs there, made by TPUs' own compiler, which runs on any Linux machine (the extra
`aot`). It takes minutes, --quick a fourth of them: the compiler looks for less, so that more bytes are moved than
there will be. What no compiler knows (how well the floors below are reached) is left to a profile on the real thing:
--profile_step of `taming_jax.train`.
"""

import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# libtpu looks for a TPU and talks about it unless it is told that there is none; before anything asks jax for devices.
os.environ |= dict(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-16",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_WORKER_ID="0",
    TPU_MIN_LOG_LEVEL="3",
    TPU_STDERR_LOG_LEVEL="3",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)

import jax
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict, config_flags

from taming_jax import cli, hlo, sharding, tasks
from taming_jax.data import layouts
from taming_jax.errors import UserError, with_extra
from taming_jax.metrics import say
from taming_jax.state import Task, TrainState
from taming_jax.tasks import conditioners, prior, vqgan
from taming_jax.train import trace_step


class Chip(NamedTuple):
    """What one chip can do, as its maker says (cloud.google.com/tpu/docs/system-architecture-tpu-vm)."""

    flops: float  # bfloat16, a second
    bandwidth: float  # bytes of HBM, a second
    interconnect: float  # bytes to and from other chips, a second


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


class Compiled(NamedTuple):
    """A program for a slice, and what it costs a chip each time that it runs."""

    seconds: float  # of compiling
    memory: dict[str, int]  # bytes by kind
    flops: int  # of the matrix units
    xla_bytes: float  # as XLA counts, with the on-chip memory and loops once
    hbm_bytes: int
    collectives: list[hlo.Collective]


def find_devices(topology: str) -> list[jax.Device]:
    """The devices of a slice such as 'v5e:4x4' or one of SLICES. Raises UserError where there is none, or no libtpu."""
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
        raise UserError(
            f"--topology={given}: no such slice; it is one of {', '.join(SLICES)}, or written like v5e:4x4"
        ) from e


def batch_shapes(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """A training batch of a completed config, as shapes."""
    size, where = (config.batch_size, config.data.size, config.data.size), NamedSharding(mesh, sharding.BATCH)
    if config.get("codes"):
        side, length = vqgan.side(config.first_stage.config), conditioners.make(config).length
        found = {"codes": (size[0], side, side), "cond": (size[0], length)}
        return {name: jax.ShapeDtypeStruct(shape, np.int32, sharding=where) for name, shape in found.items()}
    shapes = {
        "image": ((*size, 3), np.uint8),
        "other": ((*size, 3), np.uint8),
        "low": ((*size, 3), np.uint8),
        "line": ((*size, 1), np.uint8),
        "depth": ((*size, 1), np.float32),
        "segmentation": (size, np.uint8),
        "coord": (size, np.float32),
        "label": (size[:1], np.int32),
    }
    if "objects" in config.data.features:
        shapes["objects"] = ((size[0], layouts.length(config.data.layout)), np.int32)
    needed = {"label", *config.data.features}
    return {name: jax.ShapeDtypeStruct(*shapes[name], sharding=where) for name in sorted(needed)}


def state_shapes(config: ConfigDict, task: Task) -> TrainState:
    """The whole state of training; a transformer's first stages need no run directory."""
    frozen = prior.frozen_shapes(config) if config.task == "prior" else jax.eval_shape(task.load_frozen)
    return jax.eval_shape(task.init, jax.random.key(0)).replace(frozen=frozen)


def trace_train(config: ConfigDict, mesh: Mesh) -> jax.stages.Traced:
    """The last phase's training step."""
    task, key = tasks.find(config.task).make(config), jax.random.key(config.seed)
    state = sharding.with_shardings(state_shapes(config, task), mesh)
    return trace_step(task, key, task.phase(config.steps), state, batch_shapes(config, mesh))


def trace_decode(config: ConfigDict, mesh: Mesh) -> jax.stages.Traced:
    """Codes to images, a batch of them as large as in training."""
    stage = config if config.task == "vqgan" else config.first_stage.config
    model, where = vqgan.make_model(stage), NamedSharding(mesh, sharding.BATCH)
    nets = sharding.with_shardings({"gen": vqgan.parameter_shapes(stage)}, mesh)
    ids = jax.ShapeDtypeStruct((config.batch_size, *[vqgan.side(stage)] * 2), np.int32, sharding=where)

    def decode(nets, ids):
        return model.apply({"params": sharding.gather(nets["gen"])}, ids, method="decode_ids")

    return jax.jit(decode).trace(nets, ids)


def trace_sample(config: ConfigDict, mesh: Mesh) -> jax.stages.Traced:
    """Conditions to images, a batch of them as large as in training, with the cache."""
    if config.task != "prior":
        raise UserError(f"--program=sample is for transformers (task 'prior'), the config is for {config.task!r}")
    where, cond = NamedSharding(mesh, sharding.BATCH), conditioners.make(config)
    gpt = jax.eval_shape(prior.make(config).init, jax.random.key(0)).params["gpt"]
    params = jax.eval_shape(lambda gpt: prior.decode_params(config, gpt), gpt)
    nets = sharding.with_shardings({"gpt": params, "gen": prior.frozen_shapes(config)["gen"]}, mesh)
    b = config.batch_size
    c = jax.ShapeDtypeStruct((b, cond.length), np.int32, sharding=where)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), b))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=where)

    def sample(nets, c, keys):
        return prior.sample(config, nets["gpt"], nets["gen"], c, keys)

    return jax.jit(sample).trace(nets, c, keys)


PROGRAMS = {"train": trace_train, "sample": trace_sample, "decode": trace_decode}


def compile_program(config: ConfigDict, mesh: Mesh, program: str, text_file: str | None = None) -> Compiled:
    """Compiles it as it would run there, and writes the result's text if a file is named.

    Raises UserError where it does not fit, by how much, and what would help; and where its text cannot be read.
    """
    began = time.monotonic()
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            compiled = PROGRAMS[program](config, mesh).lower().compile(cli.compiler_options(False, "tpu"))
    except jax.errors.JaxRuntimeError as e:
        raise out_of_memory(str(e), config, program) from e
    seconds = time.monotonic() - began
    stats = compiled.memory_analysis()
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as e:  # seen for v5p with libtpu 0.0.52 and jaxlib 0.10.2
        size = (stats.argument_size_in_bytes + stats.temp_size_in_bytes) / 2**30
        raise UserError(
            f"it compiles and fits, with {size:.2f} GiB a chip for arguments and temporaries; but jax cannot read what"
            f" this libtpu has made, so there are no floors; for the one that belongs to it: {with_extra('aot')}"
        ) from e
    if text_file is not None:
        Path(text_file).write_text(text)
    module, entry = hlo.parse(text)
    memory = dict(
        arguments=stats.argument_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        output=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
    )
    return Compiled(
        seconds,
        memory,
        hlo.matrix_flops(module, entry),
        compiled.cost_analysis()["bytes accessed"],
        hlo.hbm_bytes(module, entry),
        hlo.collectives(module, entry),
    )


def out_of_memory(message: str, config: ConfigDict, program: str) -> UserError:
    """The compiler's words about memory as one line; other errors of its own as they are."""
    found = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm. Exceeded hbm capacity by ([\d.]+\w)", message)
    short = re.search(r"HLO temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message)
    if not found and not short:
        return UserError(f"the compiler gave up: {' '.join(message.split())[:300]}")
    used, available = (found or short).groups()[:2]
    by = f", by {found[3]}" if found else ""
    helps = [f"a smaller batch_size than {config.batch_size}"]
    if program == "train":
        helps += [f"accumulate={2 * config.accumulate}"]
        if config.task == "prior":
            better = {"none": ("dots", "full"), "dots": ("full",), "full": ()}[config.gpt.remat]
            helps += [f"gpt.remat={name!r}" for name in better]
        elif not config.model.remat:
            helps.append("model.remat=True")
    helps += ["mesh.fsdp above 1"] if config.mesh.fsdp == 1 else []
    return UserError(f"does not fit: {used} of {available} a chip{by}. What helps: {', '.join(helps)}")


def model_flops(config: ConfigDict, mesh: Mesh, program: str) -> int:
    """Floating-point operations of the model's own products and convolutions, all chips together, nothing twice."""
    plain = config.copy_and_resolve_references()
    if plain.task == "prior":
        plain.gpt.remat = "none"
    else:
        plain.model.remat = False
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        jaxpr = PROGRAMS[program](plain, mesh).jaxpr.jaxpr
    return count_flops(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])  # without what nothing uses


def count_flops(jaxpr: core.Jaxpr) -> int:
    """Of its products and convolutions, two for each multiplication; loops by their lengths where they have one."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(out) * math.prod(left[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            features = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(out) * math.prod(kernel) // features // math.prod(params["lhs_dilation"])
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(count_flops(inner) for inner in inner_jaxprs(params))
    return total


def inner_jaxprs(params: dict) -> Iterator[core.Jaxpr]:
    """The programs inside an equation."""
    for value in params.values():
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(inner, core.ClosedJaxpr):
                yield inner.jaxpr
            elif isinstance(inner, core.Jaxpr):
                yield inner


def parameter_sizes(config: ConfigDict) -> set[int]:
    """Elements of every parameter, whole and, where it is stacked for a scan, of one layer's."""
    state = state_shapes(config, tasks.find(config.task).make(config))
    leaves = [leaf.shape for leaf in jax.tree.leaves((state.params, state.frozen))]
    return {math.prod(shape) for shape in leaves} | {math.prod(shape[1:]) for shape in leaves}


def is_needed(collective: hlo.Collective, sizes: set[int]) -> bool:
    """Whether sharded training has to move this: parameters, their gradients, or statistics."""
    kinds = ("all-reduce", "all-gather", "reduce-scatter")
    return collective.kind in kinds and (collective.size in sizes or collective.kind != "all-gather")


def report(config: ConfigDict, mesh: Mesh, topology: str, program: str, text_file: str | None = None) -> list[str]:
    """Compiles, and says what came of it, in lines. text_file, raises: as `compile_program`."""
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
    return lines


def complete(config: ConfigDict, stages: dict[str, ConfigDict], num_classes: int) -> ConfigDict:
    """The config as training would complete it; first stages from their configs where there are no runs of them yet."""
    stages = {name: stage.copy_and_resolve_references() for name, stage in stages.items()}
    if "first_stage" in stages:
        stages["first_stage"].data.class_names = tuple(map(str, range(num_classes)))
    return tasks.complete_ahead(config, stages)


def main() -> None:
    given = flags.FLAGS
    config, topology = cli.required_config(), cli.required("topology")
    if given.quick:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    mesh = sharding.make_mesh(config.mesh, find_devices(topology))
    mesh = mesh if given.program == "train" else sharding.to_sample(mesh)
    sharding.check_batch(config.batch_size, mesh, config.accumulate)
    config = complete(config, cli.stages(), given.num_classes)
    shape = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    quickly = jax.config.jax_exec_time_optimization_effort < 0
    how = f"{config.dtype}, compiled quickly: more bytes than there will be" if quickly else config.dtype
    say(f"{given.program} on {topology}: {mesh.size} chips, mesh {shape}, batch {config.batch_size}, {how}")
    for line in report(config, mesh, topology, given.program, given.hlo):
        say(line)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Config file, as of taming_jax.train.", lock_config=True)
    cli.define_stages()
    flags.DEFINE_string("topology", None, f"Kind of chip and shape of the slice, v5e:4x4; or {', '.join(SLICES)}.")
    flags.DEFINE_enum("program", "train", list(PROGRAMS), "The training step, or sampling or decoding a batch.")
    flags.DEFINE_bool("quick", False, "The compiler looks for less, in a fourth of the time.")
    flags.DEFINE_string("hlo", None, "File for the compiled program's text, to look at.")
    flags.DEFINE_integer("num_classes", 1000, "Of the data, for --first_stage.", lower_bound=1)
    cli.run(main)
