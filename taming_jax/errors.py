"""The one exception for a user's mistake: its message is one line that says what to do."""

import difflib
import numbers
import sys
from collections.abc import Iterable
from typing import Any

LONGEST = 1000  # characters of a message on the terminal
SHOWN = 60  # of a wrong value
LISTED = 300  # of the right ones


class UserError(Exception):
    """A mistake that the user can correct. Commands print the message and exit with 2, without a stack trace."""


class ArgumentError(UserError):
    """A wrong argument. The message begins with the argument's name; a command puts -- before it to name the flag."""


def fail(message: str) -> None:
    """Ends a command: the message as one line, and exit code 2."""
    print(f"error: {printable(' '.join(message.split()))[:LONGEST]}", file=sys.stderr, flush=True)
    sys.exit(2)


def write_line(text: str) -> None:
    """Prints a line whose end is part of it: threads that write at the same time do not run into one another."""
    print(text + "\n", end="", flush=True)


def printable(text: str) -> str:
    """A text that any terminal shows on one line: what is no character of UTF-8, or moves the cursor, becomes '?'."""
    return "".join(c if c.isprintable() else "?" for c in text)


def reason(error: BaseException) -> str:
    """What went wrong, on one line; with the kind of error where the message alone tells programmers at most."""
    text = printable(" ".join(str(error).split()))[:300]
    if text and isinstance(error, (OSError, ValueError, SyntaxError, UserError)):
        return text
    kind = type(error)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"{name}: {text}" if text else name


def show(value: Any) -> str:
    """A value as text on one line, cut off where it is long."""
    try:
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            value = int(value) if isinstance(value, numbers.Integral) else float(value)
        text = f"{value:g}" if isinstance(value, float) else repr(value)
    except ValueError:  # Python writes out no integers of thousands of digits
        return "a number of thousands of digits"
    return shorten(printable(text))


def shorten(text: str) -> str:
    """A text, cut off where it is long."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def with_extra(extra: str) -> str:
    """How to install an optional part of the package."""
    return f"pip install 'taming_jax[{extra}]', or in the repository's folder pip install -e '.[{extra}]'"


def not_among(name: str, value: str, allowed: Iterable[str], kind: type[UserError] = UserError) -> UserError:
    """The error for a word that is not one of a few."""
    allowed = list(allowed)
    words = ", ".join(map(repr, allowed))
    words = words if len(words) <= LISTED else f"{words[:LISTED]}..."
    return kind(f"{name}={show(value)}: allowed are {words}{nearest(value, allowed)}")


def check_count(**counts: Any) -> None:
    """Raises ArgumentError for a number of things that is no whole number, 1 or more; None is not checked."""
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1):
            raise ArgumentError(f"{name}={show(value)}: it must be at least 1")


def nearest(word: str, allowed: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest allowed word, or ''."""
    close = difflib.get_close_matches(word[:SHOWN], list(allowed), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
