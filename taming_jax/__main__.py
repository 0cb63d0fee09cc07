"""Lists the commands, and runs them: `taming train ...` is `python -m taming_jax.train ...`."""

import ast
import importlib.util
import runpy
import sys
from pathlib import Path

from taming_jax.errors import fail, nearest
from taming_jax.stopping import end_at_once

COMMANDS = (
    *("train", "sample", "demo", "evaluate", "encode", "convert", "hub"),
    *("show_data", "compile_ahead", "report", "check"),
)


def summary(command: str) -> str:
    """The first line of a command's docstring. The file is parsed, not imported, since its imports take seconds."""
    source = Path(importlib.util.find_spec(f"taming_jax.{command}").origin)
    return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))).splitlines()[0]


def main() -> None:
    end_at_once()
    if sys.argv[1:2] == ["help"] and len(sys.argv) > 2:  # taming help train
        sys.argv[1:] = [sys.argv[2], "--help"]
    if len(sys.argv) < 2 or sys.argv[1] in ("help", "-h", "--help"):
        width = max(map(len, COMMANDS))
        print("taming COMMAND --flag=value ..., or python -m taming_jax.COMMAND; each has --help.\n")
        print("\n".join(f"  {command:<{width}}  {summary(command)}" for command in COMMANDS))
        return
    command = sys.argv.pop(1)
    if command not in COMMANDS:
        fail(f"{command!r} is no command{nearest(command, COMMANDS) or '; there are ' + ', '.join(COMMANDS)}")
    runpy.run_module(f"taming_jax.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
