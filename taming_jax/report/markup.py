"""HTML that is put together from elements, so that a text of a stranger's cannot become one."""

import html
import re
from collections.abc import Iterable, Sequence

from taming_jax.errors import printable

EMPTY = {"img", "input", "line", "circle", "polyline", "meta"}  # elements that have no content


class Markup(str):
    """A text that is HTML already. All others go through `text`, or are values of attributes, before they are."""


def text(value: object) -> Markup:
    """Any value as it is read; what a terminal could not show becomes '?'."""
    return Markup(html.escape(printable(str(value))))


def tag(name: str, *content: Markup, **attributes: object) -> Markup:
    """An element. Attributes are escaped; class_ is class, data_x is data-x; True has no value, None is left out.

    Raises TypeError for content that was not made here.
    """
    if wrong := [part for part in content if not isinstance(part, Markup)]:
        raise TypeError(f"no markup: {wrong[0]!r}")
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-") if not key.startswith("viewBox") else key
        if value is not None and value is not False:
            words.append(key if value is True else f'{key}="{text(value)}"')
    if name in EMPTY:  # the slash is for SVG, where elements would nest without it
        return Markup(f"<{' '.join(words)} />")
    return Markup(f"<{' '.join(words)}>{''.join(content)}</{name}>")


def table(rows: Iterable[Sequence[object]], head: Sequence[object] = ()) -> Markup:
    """A table of texts; a cell may be Markup. The first column names its row; names break at dots and underscores."""

    def cell(kind: str, value: object) -> Markup:
        written = value if isinstance(value, Markup) else text(value)
        return tag(kind, Markup(re.sub(r"([._])", r"\1<wbr>", written)) if kind == "th" else written)

    lines = [tag("tr", *(cell("th", value) for value in head))] if head else []
    lines += [tag("tr", cell("th", first), *(cell("td", value) for value in rest)) for first, *rest in rows]
    return tag("div", tag("table", *lines), class_="wide")
