"""Verifies a run: its checkpoints and the copies of its first stages, array by array, against their checksums.

    python -m taming_jax.check runs/openmoji_transformer

Changes nothing. Exits with 1 where a checkpoint is damaged.
"""

import sys
from pathlib import Path

from absl import app

from taming_jax import checkpoint, completion
from taming_jax.console import say
from taming_jax.errors import UserError, fail

USAGE = "taming check RUN ..., run directories"


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


def main(argv: list[str]) -> None:
    if not argv[1:] or argv[1] in ("-h", "--help"):
        print(USAGE)
        sys.exit(not argv[1:])
    damaged = 0
    try:
        for given in map(Path, argv[1:]):
            damaged += len(check_run(given))
            for copy in completion.COPIES.values():
                if checkpoint.steps(given / copy):
                    damaged += len(check_run(given / copy))
    except UserError as e:
        fail(str(e))
    say("all is whole" if not damaged else f"{damaged} checkpoints are damaged")
    sys.exit(bool(damaged))


if __name__ == "__main__":
    app.run(main)
