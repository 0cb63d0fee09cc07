"""Opens a page in the browser on which one paints with a run of the second stage.

    python -m taming_jax.demo --workdir=runs/openmoji_transformer
    python -m taming_jax.demo --workdir=runs --port=8000
    python -m taming_jax.demo --workdir=runs/openmoji_transformer --out=runs/painted --max_codes=65536

The second shows all transformers of a folder, to choose from; the third admits larger images. The page has the controls
that the run can use: classes, a picture or a drawing, a caption, the boxes of a scene; a picture of which a part stays.
It shows the command and the Python that paint the same, and saves what was painted. Needs the extra `demo`.
"""

import errno
import functools
import importlib.util
import os
import signal
import socket
import tempfile
from pathlib import Path

from absl import flags

from taming_jax import cli
from taming_jax.console import say
from taming_jax.demo.painted import find_runs
from taming_jax.errors import ArgumentError, UserError, with_extra
from taming_jax.generator import Generator

KEPT_RUNS = 2  # that stay loaded, with their programs
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main() -> None:
    given = flags.FLAGS
    if importlib.util.find_spec("gradio") is None:
        raise UserError(f"the page needs gradio: {with_extra('demo')}")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at the import
    workdir = cli.required_folder("workdir")
    runs = find_runs(workdir)
    check_port(given.host, given.port)
    load = functools.lru_cache(KEPT_RUNS)(functools.partial(Generator.load, first_stage=cli.folder("first_stage")))
    if len(runs) == 1:
        load(workdir)  # what is wrong with it is told here
    from taming_jax.demo import page

    out = cli.folder("out") or workdir.parent / "painted"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, without the temporary folder
    with tempfile.TemporaryDirectory(prefix="taming_demo_") as folder:
        blocks = page.build(runs, load, out, Path(folder), given.max_codes)
        page.launch(blocks, given.host, given.port, given.max_upload, prevent_thread_lock=True)
        say(f"{', '.join(runs)}: http://{given.host}:{given.port} (Ctrl-C ends it)")
        if given.host not in LOOPBACK:
            say(f"careful: everybody who reaches {given.host} can paint, and save to {out}")
        blocks.block_thread()


def check_port(host: str, port: int) -> None:
    """Raises ArgumentError where nothing can listen there."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as e:
        if e.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ArgumentError(f"port={port} of {host} is in use, or not allowed: name another") from e
        raise ArgumentError(f"host={host}: it is no address of this machine") from e


if __name__ == "__main__":
    cli.group("The run, and where images go")
    flags.DEFINE_string("workdir", None, "Run directory of a transformer, or a folder of run directories.")
    flags.DEFINE_string("first_stage", None, "Run directory of the first stage, if that was moved.")
    flags.DEFINE_string("out", None, "Folder for what is saved; default: 'painted' beside the run.")
    cli.group("Who may open the page, and what may be asked there")
    flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 lets other machines in.")
    flags.DEFINE_integer("port", 7860, "Port to listen at.", lower_bound=1, upper_bound=65535)
    flags.DEFINE_integer("max_upload", 20, "MB of a file that is uploaded, at most.", lower_bound=1)
    flags.DEFINE_integer("max_codes", 16384, "Codes of all images that are painted at once, at most.", lower_bound=1)
    cli.run(main)
