"""What `--help` prints: what a command does, its examples, its flags in groups, and the fields of its config."""

import os
import re
import shutil
import sys
import textwrap

from absl import flags
from ml_collections import ConfigDict

from taming_jax.fields import COMMON, OF_TASK, flat
from taming_jax.meanings import meaning_of, read_meanings

NARROWEST, WIDEST, COLUMN = 60, 120, 30  # characters: of a line, and of the column of names
EXIT_CODES = (
    "0 done; 2 a mistake, one line says which; 75 SIGTERM, and 130 Ctrl-C: the same command goes on or begins again;"
    " others: a fault of the program, or of the machine."
)
VALUES = {"int": "N", "float": "X", "string": "...", "config object": "...", "comma separated list of strings": "A,B"}


def page(usage: str, doc: str, groups: dict[str, list[flags.Flag]], configs: dict[str, str]) -> str:
    """The text for a command.

    usage: how it is called. doc: its docstring: a line, examples, what else to know. groups: flags by title. configs:
    text by title that follows, see `fields_of`.
    """
    summary, *paragraphs = re.split(r"\n\s*\n", doc.strip())
    examples = [paragraph for paragraph in paragraphs if is_example(paragraph)]
    parts = [fill(usage), fill(summary)]
    parts += [fill(paragraph) for paragraph in paragraphs if not is_example(paragraph)]
    if examples:
        parts.append(titled("Examples", "\n".join(textwrap.indent(textwrap.dedent(e), "  ") for e in examples)))
    parts += [titled(title, "\n".join(map(describe, group))) for title, group in groups.items()]
    parts += [titled(title, text) for title, text in configs.items()]
    parts += [titled("Exit codes", textwrap.indent(fill(EXIT_CODES, width() - 2), "  "))]
    return "\n\n".join(parts)


def is_example(paragraph: str) -> bool:
    """Whether a paragraph of a docstring is of commands to type."""
    return paragraph.split()[:2] == ["python", "-m"]


def examples_of(doc: str) -> list[list[str]]:
    """The words of each command in a docstring's examples, from the module's name on."""
    paragraphs = filter(is_example, re.split(r"\n\s*\n", doc))
    lines = "\n".join(paragraphs).replace("\\\n", " ").splitlines()
    return [line.split()[2:] for line in lines if line.strip()]


def describe(flag: flags.Flag) -> str:
    """A flag: how it is written, what it means, and what it is by default."""
    if flag.boolean:
        written = f"--[no]{flag.name}"
    else:
        allowed = getattr(flag.parser, "enum_values", None)
        written = f"--{flag.name}={'|'.join(allowed) if allowed else VALUES.get(flag.flag_type(), '...')}"
    told = f" (default: {flag.default_as_str.strip(chr(39))})" if flag.default not in (None, False) else ""
    return row(written, f"{flag.help.rpartition('>: ')[2]}{told}")  # absl puts an enum's values before its help


def fields_of(name: str, config: ConfigDict) -> str:
    """The fields of a config, in the order of the table of fields, with their values and meanings."""
    meanings, values = read_meanings(name), flat(config)
    order = ["task", *COMMON, *OF_TASK.get(config.get("task"), {})]
    groups = [field.partition(".")[0] for field in order]

    def place(field: str) -> tuple[int, int]:
        group = field.partition(".")[0]
        return tuple(known.index(x) if x in known else len(known) for known, x in ((groups, group), (order, field)))

    names = [field for field, value in values.items() if not (isinstance(value, ConfigDict) and len(value))]
    names.sort(key=place)
    written = {field: "{}" if isinstance(values[field], ConfigDict) else str(values[field]) for field in names}
    return "\n".join(row(f"{field}={written[field]}", meaning_of(field, meanings)) for field in names)


def row(name: str, text: str) -> str:
    """A name in the left column and a text in the right one; a long name has a line of its own."""
    first = f"  {name:<{COLUMN}}"
    lines = textwrap.wrap(" ".join(text.split()), width() - COLUMN - 4, break_on_hyphens=False) or [""]
    if len(name) > COLUMN:
        return "\n".join([first, *(f"{'':<{COLUMN + 4}}{line}" for line in lines)]).rstrip()
    return "\n".join(f"{first if i == 0 else '':<{COLUMN + 4}}{line}".rstrip() for i, line in enumerate(lines))


def titled(title: str, text: str) -> str:
    """A text under its title, which is bold where somebody reads it on a terminal."""
    bold = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    return f"\033[1m{title}\033[0m\n{text}" if bold else f"{title}\n{text}"


def fill(text: str, columns: int | None = None) -> str:
    return textwrap.fill(" ".join(text.split()), columns or width(), break_on_hyphens=False, break_long_words=False)


def width() -> int:
    return min(max(shutil.get_terminal_size((WIDEST, 24)).columns, NARROWEST), WIDEST)
