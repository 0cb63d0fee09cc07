"""Verifies a run: its checkpoints and the copies of its first stages, array by array, against their checksums.

    python -m taming_jax.check runs/openmoji_transformer
    python -m taming_jax.check runs/openmoji_vq runs/openmoji_vq/best

Changes nothing. Exits with 1 where a checkpoint or a copy is damaged.
"""

import sys
from pathlib import Path

from taming_jax import best, checkpoint, cli, completion
from taming_jax.console import say
from taming_jax.first_stage import make_first_stage
from taming_jax.hub import address


def check_run(workdir: Path) -> list[int]:
    """Says of each checkpoint of a run whether it is whole; -> the steps of those that are not. Raises UserError."""
    damaged = []
    for step in checkpoint.required_steps(workdir):
        try:
            arrays, summed = checkpoint.verify(workdir, step)
        except checkpoint.Damaged as e:
            damaged.append(step)
            say(str(e))
            continue
        how = "as they were written" if summed else "can be read; it is from before there were checksums"
        say(f"{workdir}, step {step}: {arrays} arrays {how}")
    return damaged


def check_copies(workdir: Path) -> list[str]:
    """Says of a run's copies of its first stages whether they are whole and its own; -> those that are not."""
    bad = []
    config, _ = completion.load_config(workdir)
    for name, copy in completion.COPIES.items():
        stage, place = config.get(name), workdir / copy
        if stage is None or not stage.workdir or not stage.digest:
            continue
        if not checkpoint.steps(place):
            say(f"{workdir} has lost its copy of the first stage that it was trained on, {place}")
            bad.append(copy)
        elif check_run(place):
            bad.append(copy)
        elif not completion.is_copy(place, stage.step, make_first_stage(stage.config).parameter_shapes(), stage.digest):
            say(f"{place} is not the first stage that {workdir} was trained on")
            bad.append(copy)
    return bad


def main(*runs: str) -> None:
    damaged = 0
    for given in map(address.find, runs):
        bad = check_run(given)
        whole = len(bad) < len(checkpoint.steps(given))
        damaged += len(bad) + len(check_copies(given) if whole else ())
        if (given / best.FOLDER).is_dir():
            damaged += len(check_run(given / best.FOLDER))
    say("all is whole" if not damaged else f"{damaged} checkpoints or copies are damaged")
    sys.exit(bool(damaged))


if __name__ == "__main__":
    cli.run(main, operands="RUN")
