"""Compiles a config's programs for a TPU slice without owning one, and says what they can reach there.

    python -m taming_jax.compile_ahead --config=imagenet_vq --topology=v5e:4x4
    python -m taming_jax.compile_ahead --config=imagenet_vq:v5e-16 --topology=v5e-16 --quick
    python -m taming_jax.compile_ahead --config=imagenet_transformer:v5e-256 --topology=v5e-256 \\
        --first_stage=imagenet_vq --first_stage.quantizer.codebook_size=16384

The program is the one that runs there (of --program=sample: all codes in one), made by TPUs' own compiler, which runs
on any Linux machine (the extra `aot`). It takes minutes. --quick takes a quarter of that: the compiler optimizes less,
so that its program moves more bytes than the real one. No compiler knows how well the floors below are reached; a
profile on the real thing does: --profile_step of `taming_jax.train`.
"""

from absl import flags

import taming_jax.aot  # noqa: F401, first: it sets what jax reads when it is imported
from taming_jax import cli
from taming_jax.aot import report
from taming_jax.aot.chips import SLICES
from taming_jax.aot.programs import PROGRAMS


def main() -> None:
    given = flags.FLAGS
    config, topology = cli.required_config(), cli.required("topology")
    report.run(config, topology, given.program, cli.stages(), given.num_classes, given.quick, cli.new_file("hlo"))


if __name__ == "__main__":
    cli.group("What is compiled, and for which slice")
    cli.define_config("either stage")
    flags.DEFINE_string("topology", None, f"Kind of chip and shape of the slice, v5e:4x4; or {', '.join(SLICES)}.")
    flags.DEFINE_enum(
        "program", "train", list(PROGRAMS), "The training step, or for a batch: sampling, decoding, or FID's Inception."
    )
    flags.DEFINE_bool("quick", False, "Compile in a quarter of the time, with fewer optimizations.")
    flags.DEFINE_string("hlo", None, "File for the compiled program's text, to look at.")
    cli.group("Without runs of a transformer's first stages")
    cli.define_stages()
    flags.DEFINE_integer("num_classes", 1000, "Of the data, for --first_stage.", lower_bound=1, upper_bound=2**24)
    cli.run(main)
