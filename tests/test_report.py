"""Pages of runs: they say what the files say, stand alone, take no markup from strangers, and change nothing else."""

import base64
import io
import json
import re
import shlex
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from taming_jax import places, published
from taming_jax.config_files import find as find_config
from taming_jax.errors import UserError
from taming_jax.hub import address
from taming_jax.hub.runs import push
from taming_jax.images import Sheet
from taming_jax.quality import record
from taming_jax.report import base, chart, page, pictures
from taming_jax.report.__main__ import write
from taming_jax.report.chart import Curve
from taming_jax.report.events import read as read_event
from taming_jax.report.events import scan
from taming_jax.report.index import index_page
from taming_jax.report.markup import Markup, tag, text
from taming_jax.report.run import Run, find, flat_rows, learning_rates, read
from taming_jax.versions import versions_of
from taming_jax.writer import Writer, note_start, read_records, read_starts
from tests.tiny import change_stored, run

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


class Elements(HTMLParser):
    """The elements of a page: (name, attributes) in order, the texts, and what is open at the end."""

    def __init__(self, content: str):
        super().__init__()
        self.found, self.texts, self.open, self.crossed = [], [], [], []
        self.feed(content)

    def handle_starttag(self, name, attributes):
        self.found.append((name, dict(attributes)))
        self.open += [name] if name not in ("meta", "img", "input", "wbr") else []

    def handle_startendtag(self, name, attributes):
        self.found.append((name, dict(attributes)))

    def handle_endtag(self, name):
        self.crossed += [name] if self.open.pop() != name else []

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, name: str, **attributes: str) -> list[dict]:
        return [a for n, a in self.found if n == name and attributes.items() <= a.items()]


def parsed(content: str) -> Elements:
    """A page's elements, after what holds for any page: it is well-formed and stands alone."""
    elements = Elements(content)
    assert not elements.open and not elements.crossed
    assert len(elements.all("script")) == len(elements.all("style")) == 1
    assert not {name for name, _ in elements.found} & {"iframe", "object", "embed", "link", "form", "base"}
    for _, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset", "action")]
        assert attributes.get("src", "data:image/").startswith("data:image/")
    return elements


def copied(vq_run: Path, tmp_path: Path, name: str = "shapes") -> Path:
    return Path(shutil.copytree(vq_run, tmp_path / name, ignore=shutil.ignore_patterns("report.html")))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def write_all(*folders: Path, out: Path | None = None) -> None:
    write({folder.resolve(): read(folder) for folder in folders}, out)


def draw(writer: Writer, step: int, level: int, name: str = "samples") -> None:
    writer.sheet(step, name, Sheet(np.full((1, 1, 8, 8, 3), level, np.uint8)))


def levels(folder: Path) -> dict[int, int]:
    """The grey of the pictures that the event files of a folder have, by step."""
    (series,) = pictures.collect(folder, scan(folder / "events"))
    images = [Image.open(io.BytesIO(base64.b64decode(shot.uri.partition(",")[2]))) for shot in series.shots]
    return {shot.step: image.getpixel((9, 9))[0] for shot, image in zip(series.shots, images, strict=True)}


def test_all_pictures_of_a_run_are_read_back_without_those_that_it_took_back(tmp_path):
    with Writer(tmp_path) as writer:
        for step in range(1, 6):
            draw(writer, step, step)
    assert levels(tmp_path) == {1: 1, 2: 2, 3: 3, 4: 4, 5: 5}
    (first,) = (tmp_path / "events").iterdir()
    first.rename(first.with_name(first.name.replace("tfevents.", "tfevents.0")))  # begun in an earlier second
    with Writer(tmp_path, step=3) as writer:  # which goes on from step 3
        draw(writer, 4, 40)
    assert levels(tmp_path) == {1: 1, 2: 2, 3: 3, 4: 40}


def test_event_files_that_are_cut_off_or_damaged_lose_no_more_than_that(tmp_path):
    with Writer(tmp_path) as writer:
        for step in (1, 2, 3):
            draw(writer, step, step)
    (file,) = (tmp_path / "events").iterdir()
    whole, found = file.read_bytes(), scan(tmp_path / "events")
    assert not found.damaged and sorted(found.pictures["samples"]) == [1, 2, 3]
    third = found.pictures["samples"][3]
    file.write_bytes(whole[: third.start + third.length // 2])  # the run is writing it
    assert levels(tmp_path) == {1: 1, 2: 2} and not scan(tmp_path / "events").damaged
    file.write_bytes(whole[: third.start - 9] + b"?" + whole[third.start - 8 :])
    assert levels(tmp_path) == {1: 1, 2: 2} and scan(tmp_path / "events").damaged == [file]
    assert f"left out from there on: {file.name}" in page.run_page(read(tmp_path), None)


def test_a_page_has_what_the_run_has_written(vq_run, tmp_path):
    other = copied(vq_run, tmp_path)
    with Writer(other, step=4) as writer:  # a second picture
        draw(writer, 8, 0, "reconstructions")
    one = read(other)
    elements = parsed(page.run_page(one, None))
    words = "".join(elements.texts)
    log = read_records(vq_run / "metrics.jsonl")
    last = [r for r in log if r["split"] == "validation"][-1]
    assert f"{last['psnr']:.4g}" in words and f"{last['lpips']:.4g}" in words
    charts = [json.loads(figure["data-chart"]) for figure in elements.all("figure", **{"class": "chart"})]
    loss = [[r["step"], float(f"{r['loss']:.5g}")] for r in log if r["split"] == "train"]
    assert [loss] == charts[0]["curves"]
    rates = learning_rates(one.config)
    assert [[s, float(f"{r:.5g}")] for s, r in rates] in [curve for c in charts for curve in c["curves"]]
    histograms = one.events.histograms["codes"]
    counts = np.sort(read_event(histograms[max(histograms)], "codes").histo.bucket)[::-1]
    ranked = charts[-1]["curves"][-1]
    assert ranked[0] == [1, float(f"{counts[0] / counts.sum():.5g}")] and ranked[-1][0] == (counts > 0).sum()
    shown = elements.all("img")
    steps = sorted(one.events.pictures["reconstructions"])
    assert steps == [4, 8] and [image["alt"] for image in shown] == ["step 4", "step 8"]
    assert ["hidden" in image for image in shown] == [True, False] and len(elements.all("input", type="range")) == 1
    with Image.open(vq_run / "reconstructions.png") as fourth:
        embedded = Image.open(io.BytesIO(base64.b64decode(shown[0]["src"].partition(",")[2])))
        np.testing.assert_array_equal(np.asarray(embedded), np.asarray(fourth))
    assert re.search(r"devices\d+ devices? \(data \d", words) and f"jax {jax.__version__}, " in words
    assert re.search(r"kind of device(, from step 0)?count \d+, kind cpu, processes 1", words)


def test_the_base_of_a_config_and_the_command_that_makes_it_again(vq_run, transformer_run, tmp_path, monkeypatch):
    nearest = ("openmoji_coordinates_transformer",)  # of the same base; openmoji_transformer adds more
    for folder, names in ((vq_run, ("openmoji_vq", "openmoji_l2_vq")), (transformer_run, nearest)):
        one = read(folder)
        found = base.find(one)
        assert found.name in names and len(found.changed) > 3
        (made_again,) = [line for title, line in base.commands(one, found) if title.startswith("The same training")]
        given = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=given)
        words = [word for word in shlex.split(made_again) if word.startswith("--config")]
        argv = ["train", f"--config={find_config(found.name)}", *words[1:]]
        monkeypatch.setattr(sys, "argv", argv)  # where the flags of a config's fields are looked for
        given(argv)
        assert words[0] == f"--config={found.name}" and base.changes(given.config, one.config) == []
    named = copied(vq_run, tmp_path, "openmoji_l2_vq")
    change_stored(named, lambda config: config.update(init_from="hf://user/name"))
    monkeypatch.setattr(address, "find", lambda place: pytest.fail(f"{place} would be downloaded"))
    assert base.find(read(named)).name == "openmoji_l2_vq"
    change_stored(named, lambda config: config.update(task="unheard of"))
    assert "unheard of" in read(named).trouble and "unheard of" in page.run_page(read(named), None)


def test_nothing_of_a_stranger_becomes_an_element(vq_run, tmp_path):
    other = copied(vq_run, tmp_path, f"run {EVIL.replace('/', '_')}")
    change_stored(other, lambda config: config["data"].update(class_names=[EVIL, "b", "c"]))
    lines = [{"step": 1, "split": split, EVIL: 1.0} for split in ("train", "validation", EVIL)]
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Writer(other, step=1) as writer:
        writer.sheet(1, 'a" onerror="alert(1)', Sheet(np.zeros((1, 1, 8, 8, 3), np.uint8)))
    record.write(other, EVIL, {EVIL: 1.0}, {EVIL: {"versions": EVIL}, "versions": {EVIL: EVIL}}, {EVIL: {EVIL: 1.0}})
    samples = tmp_path / "samples"
    samples.mkdir()
    (samples / "samples.json").write_text(json.dumps({"classes": EVIL, "workdir": EVIL, "step": EVIL, EVIL: [EVIL]}))
    shutil.copytree(other, again := tmp_path / "again <b>")
    write_all(other, samples, again)
    for file in (other / "report.html", samples / "report.html", tmp_path / "index.html"):
        elements = parsed(file.read_text())
        assert not {name for name, _ in elements.found} & {"b"} or file.name == "index.html"
        assert "alert(1)" in "".join(elements.texts)
    with pytest.raises(TypeError, match="no markup"):
        tag("p", "<b>")
    assert tag("p", text("<b>"), title='"') == '<p title="&quot;">&lt;b&gt;</p>' and isinstance(text(1), Markup)


def test_what_is_broken_is_left_out(vq_run, tmp_path):
    other = copied(vq_run, tmp_path)
    good = (other / "metrics.jsonl").read_bytes()
    odd = [
        {"step": 10**400, "split": "train", "loss": 1.0},
        {"step": 3, "split": None, "loss": 1},
        {"step": -1, "split": "a"},
    ]
    odd += [{"step": 9, "split": "train", "loss": x} for x in (True, "x", None, 10**400)]
    (other / "metrics.jsonl").write_bytes(good + "\n".join(map(json.dumps, odd)).encode() + b"\n{\n\xff" + b"[" * 9999)
    deep = {"a": 1}
    for _ in range(200):
        deep = {"b": deep}
    entries = [
        {"name": "it", "numbers": {"fid": "x", "sfid": 2.5}, "protocol": deep, "by_class": {"a": 3}},
        7,
        {"name": 1},
    ]
    (other / "evaluation.json").write_text(json.dumps(entries))
    with open(other / "metrics.jsonl", "ab") as log:
        log.write(b"\n" + json.dumps({"step": 4, "split": "much"} | {f"n{i}": i for i in range(80)}).encode() + b"\n")
    (other / "other.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (other / "parameters.txt").write_bytes(b"\xff\n")
    for file in (other / "checkpoints").rglob("_sharding"):
        file.write_text("{")
    shutil.rmtree(other / "events")
    starts = json.loads((other / "starts.json").read_text())
    (other / "starts.json").write_text(json.dumps([7, starts[0] | {"versions": "<b>"}]))
    words = "".join(parsed(page.run_page(read(other), None)).texts)
    assert "sfid" in words and "2.5" in words and words.count("the run does not store it") == 7
    assert re.search(r"\d+ more are in metrics.jsonl", words)
    assert read(other).curves()["train", "loss"] == read(vq_run).curves()["train", "loss"]
    assert [s.name for s in pictures.collect(other, scan(other / "events"))] == ["reconstructions"]
    for file in (other / "checkpoints").glob("*/config/metadata"):
        file.write_text("{")
    assert "is whole; there are [2, 4]" in "".join(parsed(page.run_page(read(other), None)).texts)
    (other / "samples.json").write_text("[" * 100_000)
    assert "cannot be read" in "".join(parsed(page.run_page(read(other), None)).texts)
    assert len(flat_rows(deep)) == 1 and flat_rows({"a": {"b": [1, {}]}, "c": {}}) == [("a.b", "[1, {}]"), ("c", "{}")]


def test_what_cannot_be_read_ends_no_report_of_others(vq_run, tmp_path):
    copied(vq_run, tmp_path, "good")
    odd = copied(vq_run, tmp_path, "odd")
    (odd / "metrics.jsonl").unlink()
    for name in ("metrics.jsonl", "events/events.out.tfevents.1.host"):
        (odd / name).mkdir()
    (odd / "starts.json").write_text("[{}]")
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / published.CONFIG).write_text('{"format": "taming_jax/2"}')
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / published.CONFIG).write_text('{"format": "another"}')
    push(vq_run, str(tmp_path / "published"))
    found = find(tmp_path)
    assert [folder.name for folder in found] == ["good", "later", "odd", "published"]
    assert read(found[3]).config.task == "vqgan" and read(found[3]).trouble == ""
    lines = " ".join(line for _, line in base.commands(read(found[3]), None))
    assert "taming hub pull" in lines and "stored:" not in lines and "taming evaluate" not in lines
    write_all(*found)
    assert read(found[0]).trouble == "" and "install a later one" in (tmp_path / "later/report.html").read_text()
    trouble = read(odd).trouble
    assert "metrics.jsonl cannot be read" in trouble and "starts.json is damaged" in trouble
    assert "from there on: events.out.tfevents.1.host" in (odd / "report.html").read_text()


def test_starts_that_are_damaged_stay_beside_the_new_ones(tmp_path):
    note_start(tmp_path, 0)
    first, file, aside = read_starts(tmp_path)[0], tmp_path / "starts.json", tmp_path / "starts.json.damaged"
    assert first[0]["versions"].items() >= versions_of(jax, np).items() and not aside.exists()
    assert versions_of(jax, np, shutil) == versions_of(jax, np)  # it has no version
    for content in (json.dumps([*first, {"step": 1}]), "{", "3"):
        before = aside.read_text() if aside.exists() else ""
        file.write_text(content)
        note_start(tmp_path, 2)
        starts, whole = read_starts(tmp_path)
        assert whole and [start["step"] for start in starts] == [0] * (content[0] == "[") + [2]
        assert aside.read_text() == f"{before}{content}\n"
    file.unlink()
    file.mkdir()
    with pytest.raises(IsADirectoryError):
        note_start(tmp_path, 3)


def test_figures_say_whose_and_of_which_step_they_are(vq_run, tmp_path):
    other = copied(vq_run, tmp_path)  # whose newest validation is of step 4
    for name, step, fid in (("samples", 1, 9.0), ("samples", 4, 7.0), ("reconstructions", 2, 5.0)):
        record.write(other, name, {"fid": fid, name: 1.0}, {"samples": {"run": {"step": step}}})
    told = page.key_figures(read(other))
    assert {"PSNR, dB", "samples"} <= set(told) and told["fid, samples"] == "7" and "fid" not in told
    assert told["fid, reconstructions at step 2"] == "5" and told["reconstructions at step 2"] == "1"


def test_files_of_others_stay(vq_run, tmp_path):
    one, two = copied(vq_run, tmp_path, "one"), copied(vq_run, tmp_path, "two")
    for place in (one / "report.html", tmp_path / "index.html"):
        place.write_text("mine")
        before = files_of(tmp_path)
        with pytest.raises(UserError, match=f"{place} is no page of this command, so it stays"):
            write_all(one, two)
        assert files_of(tmp_path) == before
        place.unlink()
    (one / "report.html.part").mkdir()
    with pytest.raises(UserError, match=r"report\.html cannot be written: .*--out=FOLDER writes elsewhere"):
        write_all(one)
    (one / "report.html.part").rmdir()
    (tmp_path / "victim").write_text("mine")
    (one / "report.html.part").symlink_to(tmp_path / "victim")
    for _ in range(2):  # its own pages it writes again
        write_all(one, two)
    assert (tmp_path / "victim").read_text() == "mine" and not (one / "report.html").is_symlink()
    with pytest.raises(UserError, match="no folder holds all of these runs"):
        write({Path("/one"): read(one), tmp_path: read(two)}, None)


def test_pages_elsewhere_find_each_other_and_leave_the_runs_alone(vq_run, tmp_path):
    first, second = copied(vq_run, tmp_path / "runs", "ä one"), copied(vq_run, tmp_path / "runs/ä one", "best")
    before, out = files_of(tmp_path / "runs"), tmp_path / "out"
    write_all(first, second, out=out)
    assert files_of(tmp_path / "runs") == before
    assert sorted(files_of(out)) == ["index.html", "ä one/best/report.html", "ä one/report.html"]
    for file in out.rglob("*.html"):
        links = [unquote(a["href"]) for a in parsed(file.read_text()).all("a")]
        assert links and all((file.parent / link).is_file() for link in links)


def test_a_run_that_is_claimed_is_reported_and_stays_claimed(vq_run, tmp_path):
    other = copied(vq_run, tmp_path)
    (other / "report.html").unlink(missing_ok=True)
    before = set(files_of(other))
    with places.claimed(other):
        claim = (other / places.CLAIM).read_bytes()
        write_all(other)
        assert (other / places.CLAIM).read_bytes().splitlines()[:2] == claim.splitlines()[:2]
    assert set(files_of(other)) - before == {"report.html"}


def test_runs_side_by_side(vq_run, transformer_run, tmp_path):
    one, two = copied(vq_run, tmp_path, "one"), copied(vq_run, tmp_path, "two")
    change_stored(two, lambda config: config.update(seed=5))
    log = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    log = [record | ({"psnr": 99.0} if record["split"] == "validation" else {}) for record in log]
    (two / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    runs = [read(transformer_run), read(one), read(two)]
    elements = parsed(index_page(runs, ["a", "b", "c"]))
    assert [a["href"] for a in elements.all("a")] == ["b", "c", "a"]  # first stages first
    shown = [json.loads(figure["data-chart"])["curves"] for figure in elements.all("figure", **{"class": "chart"})]
    assert shown and all(len(curves) == 2 for curves in shown)
    words = " ".join(elements.texts)
    assert (
        re.search(r"seed\s+0\s+5", words)
        and "First stages side by side" in words
        and "Second" not in words.split("side by side")[1]
    )
    content = index_page(runs, ["a", "b", "c"])
    assert "<b>99</b>" in content and content.count('type="checkbox"') == 2


def test_charts_of_any_numbers_stay_within_their_frame():
    rng = np.random.default_rng(0)
    spike = [(step, 1.0 + (step == 7777)) for step in range(20_000)]
    for points in (
        [(5, 1.0)], [(0, 0.0)], [(1, -3e38), (2, 3e38)], [(1, 1e-40), (2, 1e38)], [(1, 7.0), (2, 7.0 + 1e-15)],
        [(1, 5e-324), (2, 0.0)], [(1, -5.0), (2**53, -5.0)], spike, list(enumerate(rng.normal(size=500).tolist())),
    ):  # fmt: skip
        elements = Elements(chart.draw("t", [Curve("c", points, 0), Curve("d", points[:1], 1)]))
        found = [pair.split(",") for a in elements.all("polyline") for pair in a["points"].split()]
        found += [(a["cx"], a["cy"]) for a in elements.all("circle")]
        assert found and all(0 <= float(x) <= chart.WIDTH and 0 <= float(y) <= chart.HEIGHT for x, y in found)
        assert len(elements.all("text")) <= 20
        kept = chart.thin(points)
        assert len(kept) <= chart.MOST + 2 and kept[0] == points[0] and kept[-1] == points[-1]
        assert max(kept, key=lambda p: p[1])[1] == max(y for _, y in points)
    assert chart.ticks(0, 3000, 4) == [0, 1000, 2000, 3000] and chart.ticks(0.12, 0.31, 4) == pytest.approx(
        [0.15, 0.2, 0.25, 0.3]
    )
    assert chart.log_ticks(0.02, 30) == pytest.approx([0.1, 1, 10])


def test_pictures_are_bounded_in_number_and_size(tmp_path):
    assert pictures.choose([*range(0, 100, 10)], 4) == [0, 30, 60, 90] and pictures.choose([7], 4) == [7]
    chosen = pictures.choose([*range(1000)], 12)
    assert len(chosen) == 12 and chosen[0] == 0 and chosen[-1] == 999
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    png, gif = io.BytesIO(), io.BytesIO()
    noise.save(png, format="PNG")
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue")]
    frames[0].save(gif, format="GIF", save_all=True, append_images=frames[1:])
    whole = pictures.encode(png.getvalue(), 1 << 20, 3)
    assert base64.b64decode(whole.uri.removeprefix("data:image/png;base64,")) == png.getvalue() and whole.note == ""
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(png.getvalue() if i else b"none")
    series = pictures.collect(tmp_path, scan(tmp_path), most_names=3, budget=90_000)
    assert [s.name for s in series] == ["1", "2", "3"]
    assert sum(len(base64.b64decode(s.shots[0].uri.partition(",")[2])) for s in series) <= 90_000
    small = pictures.encode(png.getvalue(), 20_000, 3)
    assert small.uri.startswith("data:image/jpeg") and len(base64.b64decode(small.uri.partition(",")[2])) <= 20_000
    assert (small.width, small.height) == (400, 300) and "from 400x300" in small.note
    assert pictures.encode(gif.getvalue(), 1 << 20, None).uri.startswith("data:image/gif")
    last = pictures.encode(gif.getvalue(), len(gif.getvalue()) - 1, None)
    assert "last frame" in last.note
    blue = Image.open(io.BytesIO(base64.b64decode(last.uri.partition(",")[2]))).getpixel((5, 5))
    assert blue[2] > 200 and blue[0] < 50
    assert pictures.encode(b"<svg onload='alert(1)'/>", 1000, None) is None
    assert pictures.encode(png.getvalue()[:900], 1 << 20, None) is None


def test_samples_say_what_made_them(tmp_path):
    folder = tmp_path / "painted"
    (folder / "class_000").mkdir(parents=True)
    told = dict(
        workdir="runs/a b",
        step=7,
        first_stage="runs/a b/first_stage",
        seed=3,
        size=[64, 128],
        classes="cat,dog",
        image=None,
    )
    for other in (
        dict(workdir=str(folder.parent / "a"), first_stage=str(folder.parent / "a" / "first_stage")),
        dict(workdir="hf://user/name@v1", first_stage="/cache/hub/models--user--name/snapshots/0a/first_stage"),
    ):
        (folder / "samples.json").write_text(json.dumps(told | other))
        assert "first_stage" not in base.commands(read(folder), None)[0][1]
    (folder / "samples.json").write_text(json.dumps(told | dict(first_stage="runs/vq")))
    assert "--first_stage=runs/vq" in base.commands(read(folder), None)[0][1]
    (folder / "samples.json").write_text(json.dumps(told | dict(keep_pixels=False, num_samples=2)))
    Image.new("RGB", (8, 8)).save(folder / "samples.png")
    Image.new("RGB", (8, 8)).save(folder / "samples.gif")
    Image.new("RGB", (8, 8)).save(folder / "class_000" / "00000.gif")
    one = read(folder)
    line = shlex.split(base.commands(one, None)[0][1])
    assert line[:2] == ["taming", "sample"] and "--workdir=runs/a b" in line and f"--out={folder}_again" in line
    assert {"--seed=3", "--size=64x128", "--classes=cat,dog", "--nokeep_pixels", "--num_samples=2"} <= set(line)
    assert not [word for word in line if word.startswith(("--image", "--step", "--first_stage"))]
    assert [s.name for s in pictures.collect(folder, one.events)] == ["samples", "class_000/00000", "samples, animated"]
    assert "Painted by runs/a b at step 7." in page.run_page(one, None)


def test_folders_that_hold_runs(vq_run, tmp_path):
    one = copied(vq_run, tmp_path, "one")
    (tmp_path / "else").mkdir()
    assert find(tmp_path) == [one] and find(one) == [one]
    for place, message in (
        ("else", "is no run directory"),
        ("gone", "does not exist"),
        ("one/metrics.jsonl", "is a file"),
    ):
        with pytest.raises(UserError, match=message):
            find(tmp_path / place)
    assert isinstance(read(one), Run)


def test_the_command(vq_run, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")  # which a training has, and this machine has not
    one, two = copied(vq_run, tmp_path, "one"), copied(vq_run, tmp_path, "two")
    write_all(one, two)  # so that a glob has the index too
    done = run("report", *map(str, sorted(tmp_path.iterdir())), f"--out={tmp_path / 'out'}")
    assert done.returncode == 0 and f"all side by side: {tmp_path / 'out/index.html'}" in done.stdout, done.stderr
    assert done.stdout.count("psnr") == 2 and (tmp_path / "out/two/report.html").is_file()


@pytest.mark.slow
def test_the_pages_in_a_browser(vq_run, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed")
    one, told = copied(vq_run, tmp_path, "one"), []
    with Writer(one, step=4) as writer:
        draw(writer, 8, 0, "reconstructions")
    write_all(one, copied(vq_run, tmp_path, "two"))
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport=dict(width=390, height=800))
        tab.on("console", lambda message: told.append(message.text))
        tab.on("pageerror", lambda error: told.append(str(error)))
        tab.on("request", lambda r: told.append(r.url) if not r.url.startswith(("data:", "file:")) else None)

        def is_narrow() -> bool:
            return tab.evaluate("document.documentElement.scrollWidth <= innerWidth")

        tab.goto(f"file://{tmp_path / 'index.html'}")
        assert is_narrow() and tab.locator(".chart").first.locator("li:visible").count() == 2
        tab.locator(".switches input").first.uncheck()
        assert tab.locator(".chart").first.locator("li:visible").count() == 1
        tab.locator(".card").first.click()
        assert is_narrow() and tab.locator("h1").inner_text() == "one"
        assert tab.locator(".shots img:visible").get_attribute("alt") == "step 8"
        tab.locator(".shots input").fill("0")
        assert tab.locator(".shots img:visible").get_attribute("alt") == "step 4"
        losses = {r["step"]: r["loss"] for r in read_records(vq_run / "metrics.jsonl") if r["split"] == "train"}
        chart = tab.locator(".chart").first
        assert chart.locator("output").inner_text() == f"{losses[4]:.4g}"
        chart.scroll_into_view_if_needed()
        box = chart.locator("svg").bounding_box()
        tab.mouse.move(box["x"] + box["width"] * (46 + 344 * 2 / 4) / 400, box["y"] + 60)
        assert chart.locator(".where").inner_text() == "step 2"
        assert float(chart.locator("output").inner_text()) == pytest.approx(losses[2], rel=1e-3)
        browser.close()
    assert not told
