"""What depends on the platform: which one a program is traced for, and the options of its compiler."""

import jax


def platform() -> str:
    """The platform that a program is traced for, 'cpu', 'gpu' or 'tpu': the mesh's, even if it has no devices yet."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty else mesh.abstract_device.platform


def compiler_options(learns_convolutions: bool, platform: str | None = None) -> dict[str, str] | None:
    """The options for `jax.jit`, on the named platform, or else on the one that jax finds.

    CPUs use no YNN fusions where convolutions learn: these make a weight gradient up to 5 times slower, and products
    faster (jaxlib 0.10.2; an unknown option would be an error, hence the ceiling in requirements.txt). TPUs split no
    products around a ring: under FSDP, each ring would replace a reduce-scatter by many permutations.
    """
    platform = platform or jax.default_backend()
    if platform == "cpu" and learns_convolutions:
        return {"xla_cpu_experimental_ynn_fusion_type": ""}
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"} if platform == "tpu" else None
