"""What depends on the kind of device: for which one a program is traced, and the options of its compiler."""

import jax


def platform() -> str:
    """For which a program is traced: 'cpu', 'gpu' or 'tpu'; the mesh's, which may be ahead of its devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def compiler_options(learns_convolutions: bool, platform: str | None = None) -> dict[str, str] | None:
    """For `jax.jit`, on the platform that is there or that is named.

    On CPUs, where convolutions learn, no YNN fusions: they make a weight gradient up to 5 times slower, and products
    faster (jaxlib 0.10.2; an unknown option would be an error, hence the ceiling in requirements.txt). On TPUs, no
    products that travel around a ring: under FSDP each would replace a reduce-scatter by many permutations.
    """
    platform = platform or jax.default_backend()
    if platform == "cpu" and learns_convolutions:
        return {"xla_cpu_experimental_ynn_fusion_type": ""}
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"} if platform == "tpu" else None
