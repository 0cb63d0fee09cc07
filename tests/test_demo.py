"""The page on which one paints: what it offers, and that its command and its Python repeat what it has painted."""

import dataclasses
import json
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taming_jax.completion import complete_ahead
from taming_jax.demo import painted
from taming_jax.demo.asked import (
    Choices,
    add_box,
    arguments,
    check_codes,
    class_word,
    command,
    find_choices,
    fitted,
    python,
)
from taming_jax.demo.drawn import BRUSHED, UNBRUSHED, as_files, colours
from taming_jax.demo.painted import find_runs, make_gallery, make_plan, save
from taming_jax.errors import ArgumentError, UserError
from taming_jax.sampling.animation import PAPER
from taming_jax.sampling.draw import Sampling
from taming_jax.second_stage import make_second_stage
from tests.tiny import changed, free_port, run, tiny_transformer, tiny_vq

SHAPES = ("circle", "cross", "square")
CHOICES = Choices(
    condition="classes", kind=None, labels=0, label_shift=0, held_out=False, class_names=SHAPES, completes=True,
    guides=True, size=(16, 16), step=2, least=16, most=128, longest=4, most_passes=0, num_ids=32,
    sampling=Sampling(0.8, 32, 0.9, 1.0),
)  # fmt: skip
KINDS = {
    "classes": (dict(cond__drop=0.1), dict(class_names=SHAPES, condition="classes", guides=True, longest=4, most=64)),
    "fronts": (
        dict(gpt__context__kind="wavefront", gpt__context__reach=(3, 3)),
        dict(condition="classes", guides=False, longest=1, least=2, most=64),
    ),
    "passes": (dict(gpt__context__kind="masked"), dict(condition="classes", longest=1, most=16, most_passes=64)),
    "a spiral": (
        dict(cond__name="none", order="spiral_out"),
        dict(condition=None, class_names=(), longest=1, least=16, most=16, held_out=False),
    ),
    "whole images": (
        dict(cond__name="coordinates", cond__down=2, cond__levels=16),
        dict(condition=None, size=(18, 18), most=64),
    ),
    "maps": (
        dict(cond__name="image", cond__workdir="/nowhere/maps"),
        dict(condition="condition", kind="segmentation", labels=4, label_shift=1, held_out=True, class_names=()),
    ),
    "scenes": (dict(cond__name="objects"), dict(condition="layout", class_names=SHAPES, held_out=True)),
    "captions": (dict(cond__name="caption", cond__vocabulary=("a", "heart")), dict(condition="caption")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_offers_what_it_can_use(kind):
    fields, expected = KINDS[kind]
    vocabulary = fields.get("cond__vocabulary", ())
    config = changed(
        tiny_transformer(Path("/nowhere/vq")), **{n: v for n, v in fields.items() if n != "cond__vocabulary"}
    )
    stages = {"first_stage": tiny_vq(Path("/nowhere/pictures"))}
    if kind == "maps":
        seen = changed(tiny_vq(Path("/nowhere/pictures")), input="segmentation", model__out_ch=4, data__label_shift=1)
        stages["cond"] = changed(seen, disc__weight=0.0, loss__pixel="bce")
    config = changed(complete_ahead(config, stages), data__class_names=SHAPES)
    if vocabulary:
        config.cond.vocabulary = vocabulary
    offered = find_choices(make_second_stage(config), config, most_codes=1024)
    assert {name: getattr(offered, name) for name in expected} == expected
    assert offered.completes and offered.num_ids == offered.sampling.top_k == 32


def test_values_become_what_differs_from_the_usual():
    usual = dict(
        num_samples=4, seed=0, classes=[1], temperature=0.8, top_k=32, top_p=0.9, guidance=1, height=16, width=16
    )
    assert arguments(CHOICES, usual) == dict(classes=["cross"], num_samples=4, seed=0)
    other = dict(classes=[], temperature=1, top_k=5, guidance=3, height=20, width=32, stride=2, caption="")
    assert arguments(CHOICES, usual | other) == dict(
        num_samples=4, seed=0, temperature=1.0, top_k=5, guidance=3.0, size="20x32", stride=2
    )
    assert "stride" not in arguments(CHOICES, usual | dict(stride=2))  # no window moves
    passes = arguments(CHOICES, usual | dict(passes=8.0, choice_temperature=4.5))  # the latter is the usual one
    assert passes.pop("passes") == 8 and passes == arguments(CHOICES, usual)
    part = dict(image="a.png", keep="top", keep_pixels=False)
    asked = arguments(CHOICES, usual | part)
    assert asked["size"] == "16x16" and asked["keep_pixels"] is False  # or the picture's own size would be painted
    held_out = dataclasses.replace(CHOICES, condition="caption", held_out=True)
    assert arguments(held_out, dict(num_samples=1, seed=2, caption=" \n"))["num_conditions"] == 1
    assert arguments(held_out, dict(num_samples=1, seed=2, caption="a\n b ")) == dict(
        caption=["a", "b"], num_samples=1, seed=2
    )
    with pytest.raises(ArgumentError, match="seed is empty"):
        arguments(CHOICES, usual | dict(seed=None))


def test_text_repeats_what_was_asked_for():
    asked = dict(caption=["a heart, red", 'say "hi"'], num_samples=2, seed=7, image="my file.png", keep="top")
    asked |= dict(keep_pixels=False, temperature=0.5)
    line = command(Path("runs/it's"), asked, "runs/painted/x")
    words = shlex.split(line)
    assert words[:4] == ["taming", "sample", "--workdir=runs/it's", "--out=runs/painted/x"]
    assert words[4:] == [
        '--caption="a heart, red","say ""hi"""', "--num_samples=2", "--seed=7", "--image=my file.png", "--keep=top",
        "--nokeep_pixels", "--temperature=0.5",
    ]  # fmt: skip
    first, second, third = python(Path("runs/it's"), asked).splitlines()
    assert (first, second) == ("import taming_jax", """generator = taming_jax.Generator.load("runs/it's")""")
    rest = "caption=['a heart, red', 'say \"hi\"'], seed=7, image='my file.png', keep='top', keep_pixels=False"
    assert third == f"images = generator.sample(2, {rest}, temperature=0.5)"


def test_a_class_is_named_so_that_the_flag_finds_it():
    assert class_word(1, SHAPES) == "cross" and class_word(0, ()) == "0"
    assert class_word(0, ("a, b", "c")) == "a, b"
    assert class_word(1, ("a", " a")) == "1"  # a flag loses blanks
    assert class_word(1, ("a", "a")) == "1"
    with pytest.raises(ArgumentError, match="rename"):
        class_word(1, ("1", "1"))


def test_a_picture_is_fitted_to_the_size_of_training():
    assert fitted(CHOICES, 20, 33) == (16, 26) and fitted(CHOICES, 8, 16) == (16, 32)
    assert fitted(CHOICES, 4000, 10) == (128, 16)  # as far as sizes go
    large = dataclasses.replace(CHOICES, size=(18, 18), step=4)
    assert fitted(large, 100, 100) == (16, 16)


def test_too_many_codes_are_refused(generator):
    plan = generator.plan(size="64x64")
    check_codes(4, plan, 2, 4096)
    with pytest.raises(UserError, match="5 images of 32x32 codes are 5120 codes; this page paints 4096 at once"):
        check_codes(5, plan, 2, 4096)


def test_clicks_make_a_scene():
    text = add_box("", "cross", (0.9, 0.25), (0.5, 1.5))
    assert json.loads(add_box(text, "circle", (0, 0), (0.1234567, 1))) == [
        {"category": "cross", "box": [0.5, 0.25, 0.9, 1]},
        {"category": "circle", "box": [0, 0, 0.123, 1]},
    ]


def editor(color: tuple[int, ...] | None, *strokes: tuple[tuple[int, ...], tuple[int, ...]]) -> dict:
    """What an editor gives: a background in a colour, and a layer with rectangles (box, colour)."""
    layer = Image.new("RGBA", (20, 16))
    for box, stroke in strokes:
        layer.paste(stroke, box)
    return {"background": color and Image.new("RGBA", (20, 16), color), "layers": [layer]}


def test_what_is_brushed_becomes_a_mask(tmp_path):
    picture = editor((9, 8, 7, 255), ((0, 0, 20, 8), (230, 40, 60, 255)))
    for stays, upper in ((UNBRUSHED, 0), (BRUSHED, 255)):
        values = as_files(dict(picture=picture, stays=stays), CHOICES, tmp_path)
        with Image.open(values["image"]) as image, Image.open(values["keep"]) as keep:
            assert image.getpixel((3, 3)) == (9, 8, 7) and image.size == keep.size == (20, 16)
            assert [keep.getpixel((3, y)) for y in (7, 8)] == [upper, 255 - upper]
    assert as_files(dict(picture=picture, stays="left"), CHOICES, tmp_path)["keep"] == "left"
    assert "image" not in as_files(dict(picture=editor(None), stays="left"), CHOICES, tmp_path)
    with pytest.raises(ArgumentError, match="nothing is brushed; brush over what shall be painted anew"):
        as_files(dict(picture=editor((9, 8, 7, 255)), stays=UNBRUSHED), CHOICES, tmp_path)


def test_a_drawing_in_the_colours_of_labels_is_a_map(tmp_path):
    maps = dataclasses.replace(CHOICES, condition="condition", kind="segmentation", labels=4, label_shift=1)
    two = tuple(int(c) for c in colours(4)[2])
    drawn = editor(None, ((0, 0, 10, 16), (*two, 255)), ((10, 0, 12, 16), (*two, 40)))  # and a stroke's faint edge
    file = as_files(dict(drawing=drawn), maps, tmp_path)["condition"]
    with Image.open(file) as made:
        assert made.mode == "L" and [made.getpixel((x, 5)) for x in (9, 11, 15)] == [1, 255, 255]  # no label: 255
    lines = dataclasses.replace(CHOICES, condition="condition", kind="line")
    with Image.open(as_files(dict(drawing=drawn), lines, tmp_path)["condition"]) as made:
        assert made.mode == "L" and made.getpixel((15, 5)) == 255
    assert "condition" not in as_files(dict(drawing=editor(None)), lines, tmp_path)


def test_runs_are_found(transformer_run, vq_run, tmp_path):
    assert find_runs(transformer_run) == {transformer_run.name: transformer_run}
    (tmp_path / "b").symlink_to(transformer_run)
    (tmp_path / "a").symlink_to(vq_run)
    (tmp_path / "damaged/checkpoints").mkdir(parents=True)
    assert list(find_runs(tmp_path)) == ["b"]
    (tmp_path / "empty").mkdir()
    for folder, message in (("empty", "holds no run of a transformer"), ("nothing", "does not exist")):
        with pytest.raises(UserError, match=message):
            find_runs(tmp_path / folder)


def test_what_the_page_paints_is_what_its_command_and_its_python_paint(generator, transformer_run, tmp_path):
    """Classes, and a picture of which a part stays: growing, saved, and found again by the command."""
    given = tmp_path / "given"
    given.mkdir()
    picture = editor((200, 90, 10, 255), ((0, 8, 20, 16), (230, 40, 60, 255)))
    values = dict(picture=picture, stays=UNBRUSHED, classes=[2, 0], num_samples=2, seed=3, top_k=5, height=16, width=16)
    choices = find_choices(generator.stage, generator.config, 4096)
    asked = arguments(choices, as_files(values, choices, given))
    plan = make_plan(generator, asked)
    gallery = make_gallery(generator, transformer_run, asked, plan, tmp_path / "painted")
    steps = list(painted.paint(generator, gallery, plan))
    images, done = steps[-1]
    assert images.shape == (4, 16, 16, 3) and done == 4 * 64 and [d for _, d in steps] == sorted(d for _, d in steps)
    for seen in (steps[0][0], images):
        assert (seen[:, :8] == (200, 90, 10)).all()
    assert len(steps) > 1 and (steps[0][0][:, 8:] == PAPER).all() and not (images == PAPER).all((1, 2, 3)).any()

    saved, told = save(generator, transformer_run, asked, images, tmp_path / "painted")
    assert saved.out == gallery.out and told["image"] == str(saved.out / "given" / Path(asked["image"]).name)
    shutil.rmtree(given)  # with the page
    with Image.open(saved.out / "class_002/00001.png") as file:
        np.testing.assert_array_equal(np.asarray(file), images[1])
        assert file.text["seed"] == "3" and file.text["class"] == "square" and file.text["top_k"] == "5"
    again, _ = save(generator, transformer_run, told, images, tmp_path / "painted")
    assert again.out == saved.out

    words = shlex.split(command(transformer_run, told, str(saved.out)))
    found = run(*words[1:])
    assert found.returncode == 0 and "already painted" in found.stdout, found.stderr
    known = {}
    exec(python(transformer_run, told), known)
    np.testing.assert_allclose(known["images"].astype(int), images, atol=1)


def test_a_port_in_use_and_a_missing_package_are_one_line(transformer_run):
    code = "import runpy, sys; sys.modules['gradio'] = None; sys.argv[0] = 'demo'; runpy.run_module('taming_jax.demo', run_name='__main__', alter_sys=True)"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code, f"--workdir={transformer_run}"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: the page needs gradio: pip install"), done.stderr
    from taming_jax.demo.__main__ import check_port

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ArgumentError, match=f"port={port} of 127.0.0.1 is in use"):
            check_port("127.0.0.1", port)
    with pytest.raises(ArgumentError, match=r"host=nowhere\.invalid: it is no address"):
        check_port("nowhere.invalid", 7860)


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


@pytest.fixture
def page(generator, transformer_run, tmp_path):
    """The page of a run and of a broken one, in a browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("gradio", reason="gradio is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    from taming_jax.demo.page import build, launch

    def load(workdir: Path):
        if workdir.name == "broken":
            raise UserError("the first stage of <broken> is not there")
        return generator

    (tmp_path / "given").mkdir()
    runs = {"shapes": transformer_run, "broken": tmp_path / "broken"}
    blocks = build(runs, load, tmp_path / "painted", tmp_path / "given", most_codes=4096)
    port = free_port()
    launch(blocks, "127.0.0.1", port, max_upload=1, prevent_thread_lock=True)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        tab = browser.new_page(viewport=dict(width=1280, height=1000))
        tab.set_default_timeout(300_000)
        foreign = []
        tab.on("request", lambda r: foreign.append(r.url) if r.url.startswith("http") else None)
        tab.goto(f"http://127.0.0.1:{port}")
        yield tab
        browser.close()
    blocks.close()
    assert {url.split("/")[2] for url in foreign} == {f"127.0.0.1:{port}"}


@pytest.mark.slow
def test_one_paints_in_a_browser(page, tmp_path):
    from playwright.sync_api import expect

    expect.set_options(timeout=300_000)
    status, press = page.locator("#status"), lambda name: page.get_by_role("button", name=name, exact=True).click()
    expect(status).to_contain_text("Choose, and paint.")
    press("Paint")
    expect(status).to_contain_text("Done: 4 images of 8x8 codes")
    expect(page.locator("#painted img").first).to_be_visible()
    expect(page.locator("#command")).to_contain_text("--classes=circle --num_samples=4 --seed=0")
    press("Again")
    expect(page.locator("#command")).to_contain_text("--seed=1")
    expect(status).to_contain_text("Done: 4 images of 8x8 codes")

    for side in ("height", "width"):
        page.locator(f"#{side} input[type=number]").fill("128")
    page.locator("#seed input").fill("2")
    press("Paint")
    expect(status).to_contain_text("4 images of 64x64 codes are 16384 codes; this page paints 4096 at once")
    page.locator("#num_samples input[type=number]").fill("1")
    page.locator("#seed input").fill("3")
    press("Paint")
    expect(status).to_contain_text("Painting 1 image;")
    press("Cancel")
    expect(status).to_contain_text("Cancelled.")

    photo = tmp_path / "photo.png"
    Image.new("RGB", (16, 16), (200, 90, 10)).save(photo)
    page.get_by_text("A picture of which a part stays").click()
    page.wait_for_function("document.querySelector('#picture canvas')?.width > 0")
    page.locator("#picture input[type=file]").first.set_input_files(photo)
    expect(page.locator("#width input[type=number]")).to_have_value("16")
    page.locator("#stays").get_by_text("top", exact=True).click()
    press("Paint")
    expect(status).to_contain_text("Done: 1 image of 8x8 codes")
    press("Save")
    expect(status).to_contain_text("Saved:")
    (file,) = (tmp_path / "painted").glob("*-seed3-*/class_000/00000.png")
    with Image.open(file) as painted_half:
        assert (np.asarray(painted_half)[:8] == (200, 90, 10)).all()

    page.locator("#run input").click()
    page.get_by_role("option", name="broken").click()
    expect(status).to_have_text("the first stage of <broken> is not there")
