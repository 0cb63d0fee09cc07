"""A config's programs: traced on shapes alone, and compiled for a slice."""

import re
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from taming_jax import sharding
from taming_jax.aot import hlo
from taming_jax.backend import compiler_options
from taming_jax.data.features import FEATURES
from taming_jax.errors import ArgumentError, UserError, with_extra
from taming_jax.first_stage import make_first_stage
from taming_jax.loop import trace_step
from taming_jax.quality.inception import Inception
from taming_jax.sampling.draw import make_sampling
from taming_jax.second_stage import make_second_stage
from taming_jax.state import Task, TrainState
from taming_jax.tasks import make_task


class Compiled(NamedTuple):
    """A program for a slice, and what it costs a chip each time that it runs."""

    seconds: float  # of compiling
    memory: dict[str, int]  # bytes by kind
    flops: int  # of the matrix units
    xla_bytes: float  # as XLA counts, with the on-chip memory and loops once
    hbm_bytes: int
    collectives: list[hlo.Collective]


def batch_shapes(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """A training batch of a completed config, as shapes."""
    b, size = config.batch_size, (config.batch_size, config.data.size, config.data.size)
    stage = make_second_stage(config) if config.task == "transformer" else None
    shapes = {"label": ((b,), np.int32)}
    if stage is not None and config.codes:
        side = stage.first.side
        shapes = {"codes": ((b, side, side), np.int32), "cond": ((b, stage.cond.length), np.int32)}
    else:
        for name in config.data.features:
            channels, dtype = FEATURES[name].channels, FEATURES[name].dtype
            if channels is None:
                shapes[name] = (b, stage.cond.feature_length), dtype
            else:
                shapes[name] = (*size, channels) if channels else size, dtype
    where = NamedSharding(mesh, sharding.BATCH)
    return {name: jax.ShapeDtypeStruct(*shapes[name], sharding=where) for name in sorted(shapes)}


def state_shapes(config: ConfigDict, task: Task) -> TrainState:
    """The whole state of training; a transformer's first stages need no run directory."""
    if config.task == "transformer":
        frozen = make_second_stage(config).frozen_shapes()
    else:
        frozen = jax.eval_shape(task.load_frozen)
    return jax.eval_shape(task.init, jax.random.key(0)).replace(frozen=frozen)


def trace_train(config: ConfigDict, mesh: Mesh) -> jax.stages.Traced:
    """Traces the training step of the last phase."""
    task, key = make_task(config), jax.random.key(config.seed)
    state = sharding.with_shardings(state_shapes(config, task), mesh)
    return trace_step(task, key, task.phase(config.steps), state, batch_shapes(config, mesh))


def trace_decode(config: ConfigDict, mesh: Mesh) -> jax.stages.Traced:
    """Traces decoding: ids to a batch of images as large as in training."""
    stage = make_first_stage(config if config.task == "vqgan" else config.first_stage.config)
    nets = sharding.with_shardings({"gen": stage.parameter_shapes()}, mesh)
    where, shape = NamedSharding(mesh, sharding.BATCH), (config.batch_size, stage.side, stage.side)
    ids = jax.ShapeDtypeStruct(shape, np.int32, sharding=where)
    return jax.jit(lambda nets, ids: stage.decode(nets["gen"], ids)).trace(nets, ids)


def trace_sample(config: ConfigDict, mesh: Mesh) -> jax.stages.Traced:
    """Traces sampling: conditions to a batch of images as large as in training, with the cache."""
    if config.task != "transformer":
        raise ArgumentError(f"program=sample is for transformers, the config is for {config.task!r}")
    where, stage, b = NamedSharding(mesh, sharding.BATCH), make_second_stage(config), config.batch_size
    sampling = make_sampling(config.sample, stage.drop)
    params = jax.eval_shape(lambda key: stage.decode_params(stage.init(key)), jax.random.key(0))
    nets = sharding.with_shardings({"gpt": params, "gen": stage.frozen_shapes()["gen"]}, mesh)
    c = jax.ShapeDtypeStruct((b, stage.cond.length), np.int32, sharding=where)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), b))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=where)

    def sample(nets, c, keys):
        return stage.sample(nets["gpt"], nets["gen"], c, keys, sampling)

    return jax.jit(sample).trace(nets, c, keys)


def trace_inception(config: ConfigDict, mesh: Mesh) -> jax.stages.Traced:
    """Traces what an evaluation asks of every image: FID's Inception, in float32."""
    net, side = Inception(), config.data.size
    where, shape = NamedSharding(mesh, sharding.BATCH), (config.batch_size, side, side, 3)
    seen = jax.ShapeDtypeStruct(shape, np.uint8, sharding=where)
    weights = sharding.with_shardings(jax.eval_shape(net.init, jax.random.key(0), seen), mesh)
    return jax.jit(net.apply).trace(weights, seen)


PROGRAMS = {"train": trace_train, "sample": trace_sample, "decode": trace_decode, "inception": trace_inception}


def compile_program(config: ConfigDict, mesh: Mesh, program: str, text_file: str | Path | None = None) -> Compiled:
    """Compiles a program as it would run on the slice, and writes the result's text if a file is named.

    Raises UserError if the program does not fit (it says by how much, and what would help) or its text cannot be read.
    """
    began = time.monotonic()
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            compiled = PROGRAMS[program](config, mesh).lower().compile(compiler_options(False, "tpu"))
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
    """The compiler's message about memory as one line; its other errors as they are."""
    found = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm. Exceeded hbm capacity by ([\d.]+\w)", message)
    short = re.search(r"HLO temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message)
    if not found and not short:
        return UserError(f"the compiler gave up: {' '.join(message.split())[:300]}")
    used, available = (found or short).groups()[:2]
    by = f", by {found[3]}" if found else ""
    helps = [f"a smaller batch_size than {config.batch_size}"]
    if program == "train":
        helps += [f"accumulate={2 * config.accumulate}"]
        if config.task == "transformer":
            better = {"none": ("dots", "full"), "dots": ("full",), "full": ()}[config.gpt.remat]
            helps += [f"gpt.remat={name!r}" for name in better]
        elif not config.model.remat:
            helps.append("model.remat=True")
    helps += ["mesh.fsdp above 1"] if config.mesh.fsdp == 1 else []
    return UserError(f"does not fit: {used} of {available} a chip{by}. What helps: {', '.join(helps)}")
