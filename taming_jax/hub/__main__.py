"""Publishes a run on the Hugging Face Hub or in a folder, and makes a run directory of a published run.

    python -m taming_jax.hub push --workdir=runs/openmoji_vq --to=hf://user/openmoji_vq
    python -m taming_jax.hub push --workdir=runs/openmoji_transformer --to=published/openmoji --dtype=bfloat16
    python -m taming_jax.hub pull --from=hf://user/openmoji_vq@main --workdir=runs/pulled

Published are the weights that are used, as safetensors, averages where there are some; the config; a model card with
the run's pictures and numbers; and a transformer's first stages. Optimizers and the discriminator stay here. Addresses
and such folders are read as run directories are: by sample --workdir, config.first_stage.workdir and
--config=finetune:hf://user/name, and by Python. Nothing is unpickled, and checksums are compared.
"""

from absl import flags

from taming_jax import cli
from taming_jax.errors import ArgumentError, not_among
from taming_jax.hub import runs
from taming_jax.published import FLOATS

OF_PUSH = ("to", "dtype", "license", "private", "update")


def main(*words: str) -> None:
    given, (command, *more) = flags.FLAGS, words
    if command not in ("push", "pull"):
        raise not_among("hub", command, ("push", "pull"))
    if more:
        raise ArgumentError(f"to: {command} takes flags alone, not {more[0]!r}")
    workdir = cli.required_folder("workdir")
    for name in ("from",) if command == "push" else OF_PUSH:
        if given[name].present:
            raise ArgumentError(f"{name}: it does not go with {command}")
    if command == "push":
        to = cli.required_run("to")
        runs.push(workdir, to, given.dtype, given.license, given.private, given.update)
    else:
        runs.pull(cli.required_run("from"), workdir)


if __name__ == "__main__":
    cli.group("The run directory")
    flags.DEFINE_string("workdir", None, "Run directory: read by push, made by pull.")
    cli.group("push")
    flags.DEFINE_string("to", None, "Address on the hub, hf://user/name, or a new folder.")
    flags.DEFINE_enum("dtype", "float32", list(FLOATS), "Of the weights; bfloat16 is half as large, and rounded.")
    flags.DEFINE_string(
        "license", None, "Of the model, by the hub's short name, such as mit; default: as its data ask."
    )
    flags.DEFINE_bool("private", False, "A new repository on the hub is private.")
    flags.DEFINE_bool("update", False, "Add a version to a repository that is there; those before stay.")
    cli.group("pull")
    flags.DEFINE_string("from", None, "Address, hf://user/name or hf://user/name@revision, or a published folder.")
    cli.run(main, operands="push|pull")
