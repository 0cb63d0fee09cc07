"""Rules for values from outside: each names a type and a range, and refuses what is not of it in one line."""

import math
import numbers
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from taming_jax.errors import UserError, not_among, show
from taming_jax.hub import address

# (the value's name, the value, the kind of error to raise) -> None
Rule = Callable[[str, Any, type[UserError]], None]

INT32, INT64 = 2**31 - 1, 2**63 - 1
FLOAT32 = 3.4e38  # nearly the largest: what is above is infinite on a device
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def to_whole(word: str, below: int) -> int | None:
    """The number 0, 1, ... that a word writes in digits; None where it writes none, or one that is not below a bound.

    Python refuses to read thousands of digits, so that a word is looked at before.
    """
    digits = word.lstrip("0") or word[:1]
    if not word.isdecimal() or len(digits) > len(str(below)):
        return None
    return int(word[-len(digits) :]) if int(word[-len(digits) :]) < below else None


def whole(least: int = 0, most: int = INT32) -> Rule:
    """A whole number, from `least` to `most`."""

    def check(name: str, value: Any, kind: type[UserError] = UserError) -> None:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise kind(f"{name}={show(value)}: it is a whole number")
        if value < least:
            raise kind(f"{name}={show(value)}: it must be at least {least}")
        if value > most:
            raise kind(f"{name}={show(value)}: it must be at most {most}")

    return check


def real(
    least: float = -FLOAT32, most: float = FLOAT32, above: float | None = None, below: float | None = None
) -> Rule:
    """A finite number from `least` to `most`; `above` and `below` are bounds that it must not reach."""
    low = least if above is None else above
    high = most if below is None else below
    span = f"in {'[' if above is None else '('}{low:g}, {high:g}{']' if below is None else ')'}"
    if high == FLOAT32:
        span = f"at least {low:g}" if above is None else f"above {low:g}"
    if low == -FLOAT32:
        span = "finite"

    def check(name: str, value: Any, kind: type[UserError] = UserError) -> None:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise kind(f"{name}={show(value)}: it is a number")
        inside = value >= low if above is None else value > low
        inside = inside and (above != 0 or value >= 1 / FLOAT32) and (value <= high if below is None else value < high)
        if not inside:  # nor is what is no number
            finite = FLOAT32 < abs(value) < math.inf or 0 < value < 1 / FLOAT32
            raise kind(f"{name}={show(value)}: it must be {span}{', and fit into 32 bits' if finite else ''}")

    return check


def switch(name: str, value: Any, kind: type[UserError] = UserError) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise kind(f"{name}={show(value)}: it is True or False")


def text(name: str, value: Any, kind: type[UserError] = UserError) -> None:
    """Any text."""
    if not isinstance(value, str):
        raise kind(f"{name}={show(value)}: it is a text")


def line(name: str, value: Any, kind: type[UserError] = UserError) -> None:
    """A text on one line."""
    text(name, value, kind)
    if UNPRINTABLE.search(value):
        raise kind(f"{name}={show(value)}: it holds characters that cannot be printed")


def path(name: str, value: Any, kind: type[UserError] = UserError) -> None:
    """A file or a folder of this machine."""
    line(name, value, kind)
    if value.startswith("hf:"):
        raise kind(f"{name}={show(value)}: a run directory of this machine; taming hub pull --from={value} makes one")
    if re.match(r"\w+://", value):
        how = "download the file" if value.lower().startswith("http") else "mount the bucket, with gcsfuse say"
        raise kind(f"{name}={show(value)}: it is a path in this machine's file system; {how}")
    try:
        long = any(len(os.fsencode(part)) > 255 for part in value.split("/")) or len(value) > 4000
    except UnicodeEncodeError as e:
        raise kind(f"{name}={show(value)}: it holds characters that no file's name has") from e
    if long:
        raise kind(f"{name}={show(value)}: it is too long for a file's name")


def folder(name: str, value: Any, kind: type[UserError] = UserError) -> None:
    """A run directory, or another folder that is written to: its name is UTF-8, which orbax needs."""
    path(name, value, kind)
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise kind(f"{name}={show(value)}: its name is no UTF-8") from e


def run(name: str, value: Any, kind: type[UserError] = UserError) -> None:
    """A run directory, or the address of a published run."""
    line(name, value, kind)
    if address.is_hub(value):
        address.parse(value, kind)
    else:
        folder(name, value, kind)


def among(allowed: Iterable[str]) -> Rule:
    """One of a few words."""
    allowed = list(allowed)

    def check(name: str, value: Any, kind: type[UserError] = UserError) -> None:
        line(name, value, kind)
        if value not in allowed:
            raise not_among(name, value, allowed, kind)

    return check


def optional(rule: Rule) -> Rule:
    """None, or what another rule allows."""

    def check(name: str, value: Any, kind: type[UserError] = UserError) -> None:
        if value is not None:
            rule(name, value, kind)

    return check


def several(rule: Rule, least: int = 0, most: int = sys.maxsize) -> Rule:
    """A tuple or a list of what another rule allows, `least` to `most` of them."""
    count = f"{least} to {most}" if least < most < sys.maxsize else f"{'at least ' if least < most else ''}{least}"

    def check(name: str, value: Any, kind: type[UserError] = UserError) -> None:
        if not isinstance(value, (tuple, list)):
            raise kind(f"{name}={show(value)}: it is a list, such as (1, 2)")
        if not least <= len(value) <= most:
            raise kind(f"{name}={show(value)}: it holds {len(value)} values, they must be {count}")
        for number, part in enumerate(value):
            rule(f"{name}[{number}]", part, kind)

    return check
