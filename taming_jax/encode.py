"""Writes a transformer's data set as codes, once: training on them does not run the first stage.

    python -m taming_jax.encode --config=openmoji_transformer --out=runs/openmoji_codes
    python -m taming_jax.encode --config=custom_transformer --workdir=runs/mine --out=runs/my_codes --views=4
    python -m taming_jax.train --config=openmoji_transformer --workdir=runs/openmoji_transformer \\
        --config.codes=runs/openmoji_codes

The last one trains on the codes. The same command goes on where it was stopped. Several hosts share the work
(--distributed, as in training).
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from absl import flags

from taming_jax import cli, completion, places, published, stopping
from taming_jax.encoded import encode
from taming_jax.errors import UserError
from taming_jax.fields import check_fields


def main() -> None:
    cli.join_processes()
    given, config = flags.FLAGS, cli.required_config()
    check_fields(config)
    if config.task != "transformer":
        raise UserError(f"--config is for task {config.task!r}: give a transformer's, which says what the condition is")
    config.first_stage.workdir = str(cli.run_folder("workdir") or config.first_stage.workdir)
    config = completion.complete(config)
    first_stage, name = Path(config.first_stage.workdir), f"{config.cond.name}_views{given.views}"
    if given.out is None and published.is_published(first_stage):
        raise UserError("--out is missing: codes do not go into the folder of a published run")
    out = cli.folder("out") or first_stage / "codes" / name
    with places.claimed(out), ending_at_once():
        encode(config, out, given.views, given.batch_size)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Within, a signal ends the command at once: files are written whole, so there is nothing to save."""
    if jax.process_count() > 1:  # jax itself would only note the signal, and a plain exit would wait for the others
        signal.signal(signal.SIGTERM, lambda *_: os._exit(stopping.PREEMPTED))
        yield
    else:
        with stopping.listen() as stop, stop.nothing_to_lose():
            yield


if __name__ == "__main__":
    cli.group("What is encoded, and where the codes go")
    cli.define_config("a transformer")
    flags.DEFINE_string("workdir", None, "Run directory or address of the first stage, in place of the config's.")
    flags.DEFINE_string(
        "out", None, "Folder for the codes; default: codes/<condition>_views<views>/ in that directory."
    )
    flags.DEFINE_integer(
        "views",
        1,
        "Random crops and flips of each image, if data.random_crop or data.flip.",
        lower_bound=1,
        upper_bound=10_000,
    )
    flags.DEFINE_integer("batch_size", 16, "Images that each device encodes at once.", lower_bound=1, upper_bound=2**12)
    cli.define_processes()
    cli.run(main)
