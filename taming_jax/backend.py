"""What depends on the platform: which one a program is traced for, and the options of its compiler."""

import functools
import os
from pathlib import Path

import jax
from jax.errors import JaxRuntimeError


def platform() -> str:
    """The platform that a program is traced for, 'cpu', 'gpu' or 'tpu': the mesh's, even if it has no devices yet."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def compiler_options(learns_convolutions: bool, platform: str | None = None) -> dict[str, str] | None:
    """The options for `jax.jit`, on the named platform, or else on the one that jax finds.

    CPUs use no YNN fusions where convolutions learn: these make a weight gradient up to 5 times slower, and products
    faster (jaxlib 0.10.2). TPUs split no products around a ring: under FSDP, each ring would replace a reduce-scatter
    by many permutations. What a version of jaxlib does not know is left out.
    """
    platform = platform or jax.default_backend()
    if platform == "cpu" and learns_convolutions:
        option, value = "xla_cpu_experimental_ynn_fusion_type", ""
    elif platform == "tpu":
        option, value = "xla_jf_spmd_threshold_for_windowed_einsum_mib", "1000000"
    else:
        return None
    return known(option, value) if platform == jax.default_backend() else {option: value}


@functools.cache
def known(option: str, value: str) -> dict[str, str] | None:
    """An option for the compiler that is here, None where it has none of that name."""
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except JaxRuntimeError as e:
        if "No such compile option" in str(e):
            return None
        raise
    return {option: value}


def quiet_libtpu() -> None:
    """Answers what libtpu (of jax[tpu], or the extra `aot`) asks for where there is no TPU: it complains for six lines.

    Call it before anything asks for devices. Where a TPU's devices are there, or others have answered, nothing changes.
    """
    if not any([*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]):
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
