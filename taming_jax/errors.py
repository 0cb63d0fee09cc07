"""The one exception for a user's mistake: its message is one line that says what to do."""

import difflib
import numbers
import sys
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """A mistake that the user can correct. Commands print the message and exit with 2, without a stack trace."""


class ArgumentError(UserError):
    """A wrong argument. The message begins with the argument's name; a command puts -- before it to name the flag."""


def fail(message: str) -> None:
    """Ends a command: the message as one line, and exit code 2."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


def printable(text: str) -> str:
    """A text that any terminal shows on one line: what is no character of UTF-8, or moves the cursor, becomes '?'."""
    return "".join(c if c.isprintable() else "?" for c in text)


def with_extra(extra: str) -> str:
    """How to install an optional part of the package."""
    return f"pip install 'taming_jax[{extra}]', or in the repository's folder pip install -e '.[{extra}]'"


def not_among(name: str, value: str, allowed: Iterable[str], kind: type[UserError] = UserError) -> UserError:
    """The error for a word that is not one of a few."""
    allowed = list(allowed)
    return kind(f"{name}={value!r}: allowed are {', '.join(map(repr, allowed))}{nearest(value, allowed)}")


def check_count(**counts: Any) -> None:
    """Raises ArgumentError for a number of things that is no whole number, 1 or more; None is not checked."""
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1):
            raise ArgumentError(f"{name}={value!r}: it must be at least 1")


def nearest(word: str, allowed: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest allowed word, or ''."""
    close = difflib.get_close_matches(word, list(allowed), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
