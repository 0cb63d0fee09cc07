"""The page over several runs: their pictures, and those of a stage side by side."""

import os
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from taming_jax import best
from taming_jax.fields import flat
from taming_jax.report import pictures
from taming_jax.report.chart import COLORS, Curve, draw
from taming_jax.report.markup import Markup, table, tag, text
from taming_jax.report.page import (
    LEFT_OUT,
    MOST_PANELS,
    curve_name,
    figures,
    key_figures,
    kind_of,
    last_step,
    name_of,
    numbers_of,
    panels_of,
    section,
    show_field,
    summary,
    whole,
)
from taming_jax.report.run import Run

COVER = 120_000  # bytes of a run's picture
MOST_COMPARED = COLORS  # runs in one chart


def index_page(runs: Sequence[Run], links: Sequence[str]) -> str:
    """The index over several runs: their pictures, and those of a kind side by side. links: to their pages."""
    order = ["vqgan", "transformer", None]
    pairs = sorted(zip(runs, links, strict=True), key=lambda p: (p[0].made_by is not None, order.index(task_of(p[0]))))
    runs, links = zip(*pairs, strict=True)
    names = names_of(runs)
    parts = [
        tag("p", text("Runs"), class_="kicker"),
        tag("h1", text(common_name(runs))),
        tag("div", *[card(*pair) for pair in zip(runs, names, links, strict=True)], class_="cards"),
    ]
    for task, title in (("vqgan", "First stages"), ("transformer", "Second stages")):
        alike = [(run, name) for run, name in zip(runs, names, strict=True) if task_of(run) == task]
        parts += compare(f"{title} side by side", alike) if len(alike) > 1 else []
    return whole("Runs", parts)


def task_of(run: Run) -> str | None:
    return run.config.task if run.config is not None else None


def names_of(runs: Sequence[Run]) -> list[str]:
    """What to call runs: by their folders, with what is above where two are called the same."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for name, run in zip(names, runs, strict=True)]


def common_name(runs: Sequence[Run]) -> str:
    return Path(os.path.commonpath([run.folder.resolve().parent for run in runs])).name or "Runs"


def card(run: Run, name: str, link: str) -> Markup:
    found = pictures.collect(run.folder, run.events, most_names=1, most_steps=1, budget=COVER)
    cover = [tag("img", src=s.shots[-1].uri, alt=f"{s.name} of {name}") for s in found]
    inside = [
        tag("p", text(kind_of(run)), class_="kicker"),
        tag("h3", text(name)),
        tag("small", text(summary(run))),
        figures(key_figures(run), most=6),
    ]
    return tag(
        "a",
        *[tag("div", *cover, class_="cover")] * bool(cover),
        tag("div", *inside, class_="inside"),
        href=link,
        class_="card",
    )


def compare(title: str, alike: Sequence[tuple[Run, str]]) -> list[Markup]:
    """Runs of one task: a chart for each number that two of them have, their last numbers, and where configs differ."""
    note = f"The first {MOST_COMPARED} of {len(alike)} runs." if len(alike) > MOST_COMPARED else ""
    alike = alike[:MOST_COMPARED]
    boxes = [
        tag("label", tag("input", type="checkbox", value=i, checked=True), tag("span", text(name)), class_=f"c{i}")
        for i, (_, name) in enumerate(alike)
    ]
    numbers = [numbers_of(run) for run, _ in alike]
    charts = []
    for panel in panels_of(dict.fromkeys(key for found in numbers for key in found))[:MOST_PANELS]:
        for key in panel.numbers:
            lines = [
                Curve(name, found[key], i, i)
                for i, ((_, name), found) in enumerate(zip(alike, numbers, strict=True))
                if key in found
            ]
            if len(lines) > 1:
                charts.append(draw(panel.title, lines, note=curve_name(*key, panel), last=last_step(*numbers)))
    head = ("", *(name for _, name in alike))
    parts = [tag("div", *boxes, class_="switches"), tag("div", *charts, class_="charts")]
    if rows := last_numbers([run for run, _ in alike]):
        parts += [tag("h3", text("The newest numbers of held-out images")), table(rows, head)]
    fields = [flat(run.config) for run, _ in alike]
    written = {
        name: [show_field(f[name]) if name in f else "not there" for f in fields]
        for name in sorted({name for f in fields for name in f})
        if not any(isinstance(f.get(name), ConfigDict) for f in fields)
    }
    rows = [(name, *values) for name, values in written.items() if len(set(values)) > 1]
    parts += [tag("h3", text("Where their configs differ")), table(rows, head)] if rows else []
    return [section(title, *parts, note=note)]


def last_numbers(runs: Sequence[Run]) -> list[tuple]:
    """A row for each number of the last evaluations; the best value is bold."""
    last = [run.last() for run in runs]
    rows = []
    for name in dict.fromkeys(name for found in last for name in found if name not in LEFT_OUT):
        values = [found.get(name) for found in last]
        known = [value for value in values if value is not None]
        top = next(v for v in known if not any(best.is_better(name, other, v) for other in known))
        cells = ["" if v is None else f"{v:.4g}" for v in values]
        rows.append(
            (name_of(name), *(tag("b", text(c)) if v == top else c for c, v in zip(cells, values, strict=True)))
        )
    return rows
