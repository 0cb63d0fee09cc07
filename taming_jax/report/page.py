"""Pages in HTML, each one file that needs no other: of a run, and of several side by side."""

import base64
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from taming_jax import __version__, best, images
from taming_jax.console import duration
from taming_jax.errors import UserError, reason, show
from taming_jax.fields import flat
from taming_jax.quality import record as evaluations
from taming_jax.report import base, events, pictures
from taming_jax.report.chart import COLORS, Curve, draw
from taming_jax.report.markup import Markup, table, tag, text
from taming_jax.report.run import Run, devices, flat_rows, is_figure, learning_rates, parameters
from taming_jax.writer import LOG

GENERATOR = "taming_jax.report"  # by which our pages are known
HEAD = 1024  # bytes of a file in which that stands
SPLITS = {"train": "training", "validation": "held out", "config": "as the config says"}
MOST_CLASSES, MOST_PANELS = 2000, 64  # that are shown; the files have all


class Panel(NamedTuple):
    """A chart: its title, and which numbers are in it, by split and name."""

    title: str
    numbers: tuple[tuple[str, str], ...]


def both(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((split, name) for split in ("train", "validation") for name in names)


PANELS = (
    Panel("Loss", (("train", "loss"), ("validation", "nll"), ("validation", "masked_nll"))),
    Panel("Pixels", (("train", "l1_loss"), ("train", "l2_loss"), ("train", "bce_loss"), *both("l1", "l2"))),
    Panel("LPIPS", (("train", "p_loss"), ("validation", "lpips"))),
    Panel("PSNR in dB", both("psnr")),
    Panel("SSIM", both("ssim")),
    Panel("λ, the weight of the discriminator", (("train", "d_weight"),)),
    Panel("Logits of the discriminator", (("train", "logits_real"), ("train", "logits_fake"))),
    Panel("Adversarial losses", (("train", "g_loss"), ("train", "disc_loss"))),
    Panel("Loss of the quantizer", (("train", "quant_loss"),)),
    Panel("Share of the codes in use", both("code_use")),
    Panel("Perplexity of the codes", both("code_perplexity")),
    Panel("Learning rate", (("config", "learning_rate"),)),
    Panel("Steps per second", (("train", "steps_per_second"),)),
    Panel("Share of the time that waits for data", (("train", "data_wait"),)),
    Panel("Skipped steps", (("train", "skipped"),)),
)
LEFT_OUT = {"code_entropy", "images_per_second", "seconds"}  # which others tell in other units
NAMES = {
    "nll": "nats per code", "masked_nll": "nats per hidden code", "bits_per_pixel": "bits per pixel",
    "lpips": "LPIPS", "psnr": "PSNR, dB", "ssim": "SSIM",
    "l1": "L1", "l2": "L2", "code_use": "codes in use", "code_perplexity": "perplexity of the codes",
    "logits_real": "real images", "logits_fake": "reconstructions", "g_loss": "generator", "disc_loss": "discriminator",
    "l1_loss": "L1", "l2_loss": "L2", "bce_loss": "cross-entropy", "p_loss": "LPIPS",
    "vector_loss": "distance of guessed vectors, of codes read and written",
}  # fmt: skip


def name_of(number: str) -> str:
    return NAMES.get(number, number)


def curve_name(split: str, name: str, panel: Panel) -> str:
    """What a legend calls a number: its split, and its own name where the title does not say it."""
    own = name_of(name) if len({name_of(n) for _, n in panel.numbers}) > 1 and name != "loss" else ""
    return ", ".join(filter(None, (own, SPLITS.get(split, split))))


def panels_of(known: Iterable[tuple[str, str]]) -> list[Panel]:
    """The charts for numbers by split and name: those of PANELS, then one for each of the rest."""
    known = [key for key in known if key[1] not in LEFT_OUT]
    found = [Panel(title, tuple(key for key in numbers if key in known)) for title, numbers in PANELS]
    placed = {key for panel in found for key in panel.numbers}
    rest = [Panel(name_of(name), ((split, name),)) for split, name in known if (split, name) not in placed]
    return [panel for panel in [*found, *rest] if panel.numbers]


def numbers_of(run: Run) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """The curves of a run, with its learning rate, without steps skipped where none was."""
    found = run.curves()
    if run.config is not None:
        found["config", "learning_rate"] = learning_rates(run.config)
    if not any(value for _, value in found.get(("train", "skipped"), [])):
        found.pop(("train", "skipped"), None)
    return found


def run_page(run: Run, index: str | None) -> str:
    """The page of a run. index: where the index is, as a link from this page."""
    shown = pictures.collect(run.folder, run.events)
    back = [tag("p", tag("a", text("All runs"), href=index), class_="kicker")] if index else []
    parts = [
        *back,
        tag("p", text(kind_of(run)), class_="kicker"),
        tag("h1", text(run.name)),
        tag("p", text(summary(run)), class_="deck"),
        *([tag("p", text(run.trouble), class_="warning")] if run.trouble else []),
        *[tag("p", text(f"Damaged, and left out from there on: {file}"), class_="warning") for file in damaged(run)],
        *[shots(series) for series in shown[:1]],
        figures(key_figures(run)),
        *([tag("div", *[shots(series) for series in shown[1:]], class_="more")] if shown[1:] else []),
        *curves(run),
        *codes(run),
        *evaluated(run),
        *configured(run),
        *([section("What made them", table(flat_rows(run.made_by)))] if run.made_by else []),
        *environment(run),
    ]
    return whole(run.name, parts)


def kind_of(run: Run) -> str:
    """'First stage', or what else a folder holds."""
    if run.made_by is not None:
        return "Samples"
    if run.config is None:
        return "Run"
    return {"vqgan": "First stage: VQGAN", "transformer": "Second stage: transformer"}[run.config.task]


def summary(run: Run) -> str:
    """A sentence or two below the title."""
    if run.made_by is not None:
        return f"Painted by {run.made_by.get('workdir', '?')} at step {run.made_by.get('step', '?')}."
    words = []
    if run.config is not None:
        c = run.config
        data, step = c.data.path or c.data.name, max(run.step, last_step(run.curves()))
        words.append(f"{step} of {c.steps} steps of {c.batch_size} images of {c.data.size} pixels, from {data}.")
    if trained := run.trained():
        words.append(f"Training took {duration(sum(record['seconds'] for record in trained))}.")
    if (run.folder / best.FOLDER).is_dir() and run.config is not None and run.config.checkpoint_best:
        words.append(f"The best checkpoint by {run.config.checkpoint_best} is in {best.FOLDER}/.")
    return " ".join(words) or "Nothing is logged yet."


def damaged(run: Run) -> list[str]:
    return sorted({file.name for file in run.events.damaged})


def key_figures(run: Run) -> dict[str, str]:
    """The newest numbers of held-out images, and of each that judges by networks, by what they are called.

    Where two judge by one number, each has its name; what is of an earlier step than others has its step.
    """
    held_out = {key: points for key, points in run.curves().items() if key[0] == "validation"}
    found = [("", last_step(held_out) or None, {n: v for n, v in run.last().items() if n not in LEFT_OUT})]
    judged = {e["name"]: e for e in run.evaluations}
    found += [(name, evaluations.step_of(e), e["numbers"]) for name, e in judged.items()]
    newest = max((step for _, step, _ in found if step is not None), default=None)
    all_names, order, told = [name for *_, numbers in found for name in numbers], list(NAMES), {}
    for name in sorted(dict.fromkeys(all_names), key=lambda name: order.index(name) if name in order else len(order)):
        for judge, step, numbers in found:
            if is_figure(name, value := numbers.get(name)):
                own = f", {judge}" if judge and all_names.count(name) > 1 else ""
                at = f" at step {step}" if step not in (None, newest) else ""
                told[name_of(name) + own + at] = f"{100 * value:.3g}%" if name == "code_use" else f"{value:.4g}"
    return told


def figures(numbers: Mapping[str, str], most: int = 24) -> Markup:
    pairs = [tag("div", tag("dt", text(n)), tag("dd", text(v))) for n, v in list(numbers.items())[:most]]
    return tag("dl", *pairs, class_="figures") if pairs else Markup()


def shots(series: pictures.Series) -> Markup:
    """The pictures of a name, with a slider over their steps."""
    shown = [
        tag("img", src=s.uri, alt=label(s), width=s.width, height=s.height, hidden=i < len(series.shots) - 1)
        for i, s in enumerate(series.shots)
    ]
    last, count = series.shots[-1], len(series.shots)
    caption = [tag("h3", text(series.name.replace("_", " ").capitalize())), tag("output", text(label(last)))]
    if count > 1:
        about = f"{series.name}: which step"
        caption.append(tag("input", type="range", min=0, max=count - 1, value=count - 1, step=1, aria_label=about))
    if count > 1 and count < series.steps:
        caption.append(tag("small", text(f"{count} of {series.steps} steps")))
    return tag("figure", tag("div", *shown, class_="frame"), tag("figcaption", *caption), class_="shots")


def label(shot: pictures.Shot) -> str:
    return ", ".join(filter(None, ("" if shot.step is None else f"step {shot.step}", shot.note)))


def section(title: str, *content: Markup, note: str = "") -> Markup:
    return tag("section", tag("h2", text(title)), *([tag("p", text(note), class_="soft")] if note else []), *content)


def curves(run: Run) -> list[Markup]:
    numbers, drawn = numbers_of(run), []
    last, panels = last_step(numbers), panels_of(numbers)
    for panel in panels[:MOST_PANELS]:
        lines = [Curve(curve_name(*key, panel), numbers[key], i % COLORS) for i, key in enumerate(panel.numbers)]
        drawn.append(draw(panel.title, lines, last=last))
    more = f"{len(panels) - MOST_PANELS} more are in {LOG}." if len(panels) > MOST_PANELS else ""
    return [section("Curves", tag("div", *drawn, class_="charts"), note=more)] if drawn else []


def last_step(*numbers: Mapping[tuple[str, str], Sequence[tuple[int, float]]]) -> int:
    return max((points[-1][0] for found in numbers for points in found.values()), default=0)


def codes(run: Run) -> list[Markup]:
    """How often each code was chosen for the held-out images, at the first evaluation and at the last."""
    places = run.events.histograms.get("codes", {})
    lines, words = [], []
    for color, step in enumerate(sorted({min(places, default=0), max(places, default=0)} & set(places))):
        value = events.read(places[step], "codes")
        counts = np.sort(np.asarray(value.histo.bucket if value is not None else (), np.float64))[::-1]
        if not len(counts) or not np.isfinite(counts).all() or not counts.sum() > 0:
            continue
        shares = counts / counts.sum()
        # The most used first; what was never chosen has no place on a logarithmic axis.
        points = [(rank + 1, share) for rank, share in enumerate(shares.tolist()) if share > 0]
        lines.append(Curve(f"step {step}", points, color))
        never, half = int((counts == 0).sum()), int(np.searchsorted(shares.cumsum(), 0.5)) + 1
        words.append(
            f"At step {step}, {never} of {len(counts)} codes were never chosen, the {half} most frequent make up half"
            f" of what was chosen, and the first of them {shares[0]:.1%}."
        )
    if not lines:
        return []
    chart = draw("Share of all choices, by rank of the code", lines, x="rank")
    return [section("Codes", tag("div", chart, class_="charts"), note=" ".join(words))]


def evaluated(run: Run) -> list[Markup]:
    """What networks have judged, each with its protocol: the newest of each name in full, the others to unfold."""
    parts, seen = [], set()
    for entry in reversed(run.evaluations):
        numbers = {name: f"{v:.4g}" for name, v in entry["numbers"].items() if is_figure(name, v)}
        protocol = table(flat_rows(entry["protocol"]))
        if entry["name"] in seen:
            words = ", ".join(f"{name} {v}" for name, v in numbers.items())
            parts.append(tag("details", tag("summary", text(f"Earlier{judged_at(entry)}: {words}")), protocol))
            continue
        seen.add(entry["name"])
        parts += [tag("h3", text(f"{entry['name']}{judged_at(entry)}")), figures(numbers)]
        parts.append(tag("details", tag("summary", text("The protocol")), protocol))
        of_classes = entry.get("by_class")
        if isinstance(of_classes, dict):
            told = {name: it for name, it in list(of_classes.items())[:MOST_CLASSES] if isinstance(it, dict)}
            head = list(dict.fromkeys(number for it in told.values() for number in it))
            rows = [(name, *(show(it[number]) if number in it else "" for number in head)) for name, it in told.items()]
            parts.append(tag("details", tag("summary", text("By class")), table(rows, ("class", *head))))
    return [section("Judged by networks", *parts)] if parts else []


def judged_at(entry: dict) -> str:
    """' at step 300' for an evaluation of a run that says it."""
    step = evaluations.step_of(entry)
    return "" if step is None else f" at step {step}"


def configured(run: Run) -> list[Markup]:
    """The config beside its base, all of its fields, and the commands."""
    parts, found = [], None
    if run.config is not None:
        found = base.find(run)
        if found is None:
            note = "The run does not store the name of its config, and no config of its kind can be found here."
        else:
            where = "that has the run directory's name" if found.name == run.name else "with the fewest other values"
            note = f"The run does not store the name of its config. {found.name} is the one {where}; "
            count = len(found.changed)
            note += f"{count} field{'s' * (count != 1)} differ{'s' * (count == 1)}." if count else "no field differs."
            if found.changed:
                rows = [(name, show_field(a), show_field(b)) for name, a, b in found.changed]
                parts.append(table(rows, ("field", found.name, "this run")))
        fields = [(n, show_field(v)) for n, v in flat(run.config).items() if not isinstance(v, ConfigDict)]
        parts.append(tag("details", tag("summary", text(f"All {len(fields)} fields")), table(fields)))
        parts = [section("Config", *parts, note=note)]
    lines = [part for what, words in base.commands(run, found) for part in (tag("h3", text(what)), command(words))]
    return [*parts, section("To repeat it", *lines)]


def command(line: str) -> Markup:
    """A command that breaks between its words, not within a flag."""
    return tag("pre", Markup(" ".join(tag("span", text(word)) for word in line.split(" "))))


def show_field(value: object) -> str:
    """A field's value, with more of it than messages show."""
    written = "not there" if value is None else str(value) if isinstance(value, str) else repr(value)
    return written if len(written) <= 300 else f"{written[:300]}..."


def environment(run: Run) -> list[Markup]:
    """Where and with what a run was made, as far as its files say it."""
    if run.made_by is not None:
        return []
    unknown, rows = "the run does not store it", []
    times, hosts = run.events.times, {file.name.split(".")[4] for file in run.events.files if file.name.count(".") > 4}
    rows.append(("first event", when(times[0]) if times else unknown))
    rows.append(("last event", when(times[-1]) if times else unknown))
    rows.append(("host", ", ".join(sorted(hosts)) or unknown))
    rows.append(("devices", (run.step is not None and devices(run.folder, run.step)) or unknown))
    starts = {json.dumps([start["devices"], start["versions"]]): start for start in run.starts} or {"": None}
    for start in starts.values():  # the last of equal ones
        since = f", from step {start['step']}" if len(starts) > 1 else ""
        rows.append(("kind of device" + since, listed_fields(start["devices"]) if start else unknown))
        rows.append(("versions, in training" + since, listed_fields(start["versions"]) if start else unknown))
    for entry in run.evaluations[-1:]:
        versions = entry["protocol"].get("versions")
        if isinstance(versions, dict):
            rows.append((f"versions, in {entry['name']}", listed_fields(versions)))
    rows.append(("parameters", parameters(run.folder) or unknown))
    if run.config is not None:
        rows += [("computed in", run.config.dtype), ("seed", run.config.seed)]
    return [section("Environment", table(rows))]


def listed_fields(fields: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in fields.items())


def when(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "a time that is none"


def whole(title: str, parts: Sequence[Markup]) -> str:
    """A complete page. Its policy lets nothing in but its own style, script and embedded pictures."""
    style, script = asset("style.css"), asset("script.js")
    words = f"Written by taming_jax {__version__} on {when(time.time())}, from the files of the run directories."
    footer = tag("footer", text(words))
    return Template(asset("page.html")).substitute(
        generator=GENERATOR,
        title=text(title),
        style=style,
        style_hash=digest(style),
        script=script,
        script_hash=digest(script),
        body="\n".join([*parts, footer]),
    )


@functools.cache
def asset(name: str) -> str:
    return resources.files("taming_jax.report").joinpath(name).read_text(encoding="utf-8")


def digest(content: str) -> str:
    """What a page's policy calls an inline style or script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def is_ours(file: Path) -> bool:
    """Whether a file is a page that a report has written."""
    try:
        with open(file, "rb") as stream:
            return f'content="{GENERATOR}"'.encode() in stream.read(HEAD)
    except OSError:
        return False


def check_ours(file: Path) -> None:
    """Raises UserError where a file is there that no report has written."""
    if os.path.lexists(file) and not is_ours(file):
        raise UserError(f"{file} is no page of this command, so it stays; move it, or --out=FOLDER writes elsewhere")


def write(file: Path, content: str) -> None:
    """Writes a page as a whole. Raises UserError where that cannot be done."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        images.write_whole(file, lambda part: part.write_text(content, encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{file} cannot be written: {e.strerror or reason(e)}; --out=FOLDER writes elsewhere") from e
