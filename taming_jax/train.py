"""Trains a stage: a config and a run directory in; checkpoints, metrics and pictures out.

    python -m taming_jax.train --config=openmoji_vq --workdir=runs/openmoji_vq
    python -m taming_jax.train --config=openmoji_transformer --workdir=runs/openmoji_transformer
    python -m taming_jax.train --config=custom_small_vq --workdir=runs/mine --config.data.path=/my/images

Any field of the config can be set on the command line: --config.batch_size=8. The same command again resumes.
"""

from pathlib import Path

from absl import flags

from taming_jax import checkpoint, cli
from taming_jax.errors import UserError
from taming_jax.loop import PROFILED_STEPS, train


def main() -> None:
    cli.join_processes()
    config, workdir = cli.required_config(), cli.required_folder("workdir")
    check_weights(config.get("run"), workdir)
    train(config, workdir, flags.FLAGS.profile_step)


def check_weights(stored: str | None, workdir: Path) -> None:
    """Raises UserError where a run's config would begin again in another run directory, without the run's weights."""
    if stored is not None and not checkpoint.steps(workdir):
        raise UserError(
            f"--config is that of {stored}, without its weights, and {workdir} holds no run to go on with: copy the"
            f" run first (cp -r {stored} {workdir}), begin a new one with its weights (--config=finetune:{stored}), or"
            " begin anew with a config by its name or file"
        )


if __name__ == "__main__":
    cli.group("What is trained, and where it lies")
    cli.define_config("either stage")
    flags.DEFINE_string("workdir", None, "Run directory, made if needed; a run in it is resumed.")
    flags.DEFINE_integer("profile_step", None, f"Write a profile of {PROFILED_STEPS} steps from this one on.")
    cli.define_processes()
    cli.run(main)
