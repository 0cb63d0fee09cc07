"""Curves as SVG, drawn here; `script.js` adds the values under the pointer."""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from taming_jax.report.markup import Markup, tag, text

WIDTH, HEIGHT = 400, 210  # units of the drawing, about pixels
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 22  # margins, for the numbers
MOST = 240  # points of a curve that are drawn
COLORS = 8  # in style.css
LOGARITHMIC = 30  # the ratio of values from which their axis is logarithmic

Points = Sequence[tuple[float, float]]


class Curve(NamedTuple):
    """Points by rising x, finite. color: 0 to COLORS - 1. group: what it belongs to, for the switches of an index."""

    name: str
    points: Points
    color: int
    group: int = 0


def thin(points: Points, most: int = MOST) -> Points:
    """At most about `most` points: of each stretch the lowest and the highest, and the first and the last of all."""
    if len(points) <= most:
        return points
    kept, stretches = {0, len(points) - 1}, most // 2
    for i in range(stretches):
        part = range(i * len(points) // stretches, (i + 1) * len(points) // stretches)
        kept |= {min(part, key=lambda j: points[j][1]), max(part, key=lambda j: points[j][1])}
    return [points[j] for j in sorted(kept)]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, or where there are fewer than two of them, 1, 2 and 5 times these."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5)):
        found = [m * 10.0**p for p in powers for m in steps if low <= m * 10.0**p <= high]
        if len(found) > 1:
            break
    return found[:: -(-len(found) // 6)]


def short(value: float) -> str:
    """A number for an axis: 0.05, 1500, 20k, 3e-06."""
    if abs(value) >= 1e4 and abs(value) < 1e9:
        unit, name = (1e6, "M") if abs(value) >= 1e6 else (1e3, "k")
        return f"{value / unit:.4g}{name}"
    return f"{0 if abs(value) < 1e-15 else value:.4g}"


def draw(title: str, curves: Sequence[Curve], x: str = "step", note: str = "", last: float = 0) -> Markup:
    """A figure of curves over common axes, with a legend that says their last values.

    curves: one or more, each with a point or more. x: what is across, from 0 to `last` or further. note: beside the
    title.
    """
    curves = [curve._replace(points=thin(curve.points)) for curve in curves]
    xs = [point[0] for curve in curves for point in curve.points]
    ys = [point[1] for curve in curves for point in curve.points]
    x_high, low, high = max(*xs, last, 1e-9), min(ys), max(ys)
    logarithmic = low > 0 and high / low >= LOGARITHMIC
    if not logarithmic:
        flat = high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-30)
        margin = (abs(high) * 0.1 if abs(high) > 1e-30 else 1.0) if flat else (high - low) * 0.06
        low, high = 0.0 if 0 <= low < margin else low - margin, high + margin
    scale = math.log if logarithmic else float

    def across(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value / x_high)

    def down(value: float) -> float:
        share = (scale(value) - scale(low)) / (scale(high) - scale(low))
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    parts = []
    for y in log_ticks(low, high) if logarithmic else ticks(low, high, 4):
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{down(y):.1f}", y2=f"{down(y):.1f}", class_="grid"))
        parts.append(tag("text", text(short(y)), x=LEFT - 6, y=f"{down(y) + 4:.1f}", text_anchor="end"))
    whole = [value for value in ticks(0, x_high, 4) if value <= x_high]
    for value in whole:
        at = across(value)
        anchor = "end" if at > WIDTH - RIGHT - 14 else "middle"
        parts.append(tag("text", text(short(value)), x=f"{at:.1f}", y=HEIGHT - 5, text_anchor=anchor))
    for curve in curves:
        places = [f"{across(a):.1f},{down(b):.1f}" for a, b in curve.points]
        lines = [tag("polyline", points=" ".join(places))] if len(places) > 1 else []
        if len(places) <= 24:
            lines += [tag("circle", cx=p.split(",")[0], cy=p.split(",")[1], r=2.6) for p in places]
        parts.append(tag("g", *lines, class_=f"curve c{curve.color}", data_group=curve.group))
    parts.append(tag("line", class_="cursor", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM))
    drawing = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    legend = [
        tag(
            "li",
            tag("span", text(curve.name), class_="name"),
            tag("output", text(f"{curve.points[-1][1]:.4g}")),
            class_=f"c{curve.color}",
            data_group=curve.group,
        )
        for curve in curves
    ]
    points = [[[float(f"{a:.8g}"), float(f"{b:.5g}")] for a, b in curve.points] for curve in curves]
    data = json.dumps(dict(x=x, high=x_high, curves=points), separators=(",", ":"))
    words = ", ".join(filter(None, (note, "logarithmic" if logarithmic else "")))
    head = tag("h3", text(title), *([Markup(" "), tag("small", text(words))] if words else []))
    caption = tag("figcaption", head, tag("ul", *legend), tag("p", Markup("&nbsp;"), class_="where"))
    return tag("figure", caption, drawing, class_="chart", data_chart=data)
