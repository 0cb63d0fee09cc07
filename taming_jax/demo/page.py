"""The page's layout, and what its buttons do; all that needs no page is in the modules beside this one."""

import asyncio
import functools
import html
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import jax

from taming_jax import cli
from taming_jax.conditions.label import MOST_CLASSES
from taming_jax.conditions.layout import Layout, draw, read_scene
from taming_jax.console import duration
from taming_jax.demo import painted
from taming_jax.demo.asked import Choices, add_box, arguments, check_codes, command, find_choices, fitted, python
from taming_jax.demo.drawn import STAYS, UNBRUSHED, as_files, hex_colours
from taming_jax.errors import UserError, reason
from taming_jax.generator import Generator

WAITING = 16  # paintings in the queue
MOST_SAMPLES, MOST_CONDITIONS = 16, 8
CANVAS = 512  # pixels on a side of what one draws on
CSS = """
#painted img { image-rendering: pixelated; object-fit: contain; }
#status p { margin: 0; padding: 0.4em 0.6em; } #status p.error { color: #b00020; font-weight: 600; }
#status .wrap > .error, #status .clear-status { display: none; } /* gradio's mark on what was cancelled */
@media (max-width: 640px) { #painted .grid-container { grid-template-columns: repeat(2, 1fr); } }
"""
# An editor says nothing of an upload that failed.
JS = """() => window.addEventListener("unhandledrejection", event => {
    const why = String(event.reason), place = document.querySelector("#status p");
    const told = why.includes("413") ? "That file is larger than this page takes: see --max_upload."
        : why.includes("decoded") ? "That file is no picture that can be read." : null;
    if (told && place) { place.className = "error"; place.textContent = told; }
})"""


def build(
    runs: Mapping[str, Path], load: Callable[[Path], Generator], out: Path, given: Path, most_codes: int
) -> gr.Blocks:
    """The page for some runs, by their names.

    load: gives the generator of a run directory. out: the folder for what is saved. given: a folder for what visitors
    upload or draw, while the page is there. most_codes: of all images of a painting.
    """
    names, lock = list(runs), threading.Lock()
    with gr.Blocks(title="taming_jax", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        run = gr.Dropdown(names, value=names[0], label="Run", visible=len(names) > 1, elem_id="run")

        @gr.render(inputs=run, concurrency_limit=1)
        def show(name: str) -> None:
            try:
                generator = load(runs[name])
            except UserError as e:
                gr.HTML(sentence(str(e)), elem_id="status")
                return
            lay_out(generator, runs[name], out, given, most_codes, lock)

    return page.queue(max_size=WAITING)


def launch(page: gr.Blocks, host: str, port: int, max_upload: int, **how: Any) -> tuple:
    """Serves the page, with nothing from other hosts. max_upload: MB of a file. Raises OSError for a port in use."""
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return page.launch(
        server_name=host, server_port=port, share=False, quiet=True, footer_links=[], max_file_size=f"{max_upload}mb",
        ssr_mode=False, mcp_server=False, theme=theme, css=CSS, js=JS, **how,
    )  # fmt: skip


def sentence(text: str, kind: str = "error") -> str:
    """A message as the page shows it."""
    return f'<p class="{kind}">{html.escape(text)}</p>'


def lay_out(generator: Generator, workdir: Path, out: Path, given: Path, most_codes: int, lock: threading.Lock) -> None:
    """The controls of a run, and what was painted. lock: held while a row of codes is painted."""
    stage, choices = generator.stage, find_choices(generator.stage, generator.config, most_codes)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            gr.Markdown(f"### {workdir.name}, step {generator.step}")
            controls = condition_controls(choices, stage.cond)
            if choices.completes:
                with gr.Accordion("A picture of which a part stays", open=False):
                    controls |= part_controls()
            with gr.Accordion("How it is painted", open=True):
                controls |= drawing_controls(choices)
            for control in controls.values():
                control.interactive = True  # gradio cannot tell inside of `render`
        with gr.Column(scale=3, min_width=320):
            with gr.Row():
                button = functools.partial(gr.Button, min_width=120)
                paint, again = button("Paint", variant="primary"), button("Again")
                cancel, save = button("Cancel", variant="stop"), button("Save", interactive=False)
            status = gr.HTML(sentence("Choose, and paint.", "told"), elem_id="status")
            pictures = gr.Gallery(
                show_label=False, elem_id="painted", format="png", columns=4, height=560, object_fit="contain",
                interactive=False, buttons=["download", "fullscreen"],
            )  # fmt: skip
            with gr.Accordion("Repeat it", open=True):
                code = functools.partial(gr.Code, interactive=False, wrap_lines=True, show_line_numbers=False)
                line = code(language="shell", label="On the command line", elem_id="command", lines=2)
                three = code(language="python", label="In Python", elem_id="python", lines=3)
    last = gr.State(None)  # (what was asked for, its images), once they are whole
    seed = controls["seed"]

    def steps(values: dict[str, Any]) -> Iterator[dict]:
        try:
            asked = arguments(choices, as_files(values, choices, given))
            plan = painted.make_plan(generator, asked)
            check_codes(asked["num_samples"], plan, stage.first.patch, most_codes)
            gallery = painted.make_gallery(generator, workdir, asked, plan, out)
            count = asked["num_samples"] * len(gallery.rows["label"])
            check_codes(count, plan, stage.first.patch, most_codes)
            repeat = {line: command(workdir, asked, str(gallery.out)), three: python(workdir, asked)}
            told = f"Painting {count} image{'s' if count > 1 else ''}; the first of a size compiles its programs."
            yield {status: sentence(told, "told"), **repeat}
            began, (h, w) = time.monotonic(), plan.grid(stage.first.patch)
            for whole, done in painted.paint(generator, gallery, plan):
                told = f"{done:,} of {count * h * w:,} codes, {duration(time.monotonic() - began)}"
                yield {status: sentence(told, "told"), pictures: list(whole)}
            took = duration(time.monotonic() - began)
            told = f"Done: {count} image{'s' if count > 1 else ''} of {h}x{w} codes in {took}."
            yield {status: sentence(told, "done"), last: (asked, whole), save: gr.Button(interactive=True)}
        except BROKEN as e:
            yield {status: sentence(why(e, given))}

    async def do_paint(got: dict) -> AsyncIterator[dict]:
        yield {status: sentence("Waiting for its turn.", "told"), last: None, save: gr.Button(interactive=False)}
        painting = steps({name: got[control] for name, control in controls.items()})

        def step() -> dict | None:
            with lock:
                return next(painting, None)

        # "Cancel" ends this at once, so that one can paint again; the row of codes under way goes on to its end
        while (shown := await asyncio.to_thread(step)) is not None:
            yield shown

    def do_save(painting: tuple) -> dict:
        try:
            gallery, asked = painted.save(generator, workdir, *painting, out)
        except BROKEN as e:
            return {status: sentence(why(e, given))}
        told = sentence(f"Saved: {gallery.out}", "done")
        return {status: told, line: command(workdir, asked, str(gallery.out)), three: python(workdir, asked)}

    shown = [status, pictures, line, three, last, save]
    how = dict(outputs=shown, concurrency_limit=1, concurrency_id="painting", api_visibility="private")
    quick = dict(api_visibility="private", show_progress="hidden")
    first = paint.click(do_paint, set(controls.values()), show_progress_on=[status], **how)
    next_seed = again.click(lambda seed: int(seed or 0) + 1, seed, seed, **quick)
    second = next_seed.then(do_paint, set(controls.values()), show_progress_on=[status], **how)
    told = sentence("Cancelled. What is shown is not whole.", "told")
    cancel.click(lambda: told, None, status, cancels=[first, next_seed, second], queue=False, **quick)
    save.click(do_save, last, [status, line, three], concurrency_limit=1, **quick)
    if "picture" in controls and "height" in controls:

        def fit(picture: dict | None) -> list:
            background = (picture or {}).get("background")
            return [gr.skip()] * 2 if background is None else list(fitted(choices, *background.size[::-1]))

        controls["picture"].upload(fit, controls["picture"], [controls["height"], controls["width"]], **quick)


BROKEN = (UserError, OSError, MemoryError, jax.errors.JaxRuntimeError)


def why(error: Exception, given: Path) -> str:
    """What went wrong, as a sentence that does not name the folder of uploads; raises what is nobody's mistake."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return cli.OUT_OF_MEMORY
    if isinstance(error, jax.errors.JaxRuntimeError):
        raise error
    return reason(error).replace(f"{given}/", "")


def condition_controls(choices: Choices, cond: Any) -> dict[str, gr.components.Component]:
    """Controls for the condition that a run has."""
    controls = {}
    if choices.condition == "classes" and choices.class_names:
        controls["classes"] = gr.Dropdown(
            [(name, label) for label, name in enumerate(choices.class_names)], value=[0], multiselect=True,
            max_choices=MOST_CLASSES, label="Classes", info=f"None: all, or {MOST_CLASSES} spread evenly.",
            elem_id="classes",
        )  # fmt: skip
    if choices.condition == "caption":
        controls["caption"] = gr.Textbox(label="Caption", info="Each line is one.", lines=2, elem_id="caption")
    if choices.condition == "condition":
        what = {"segmentation": "map of labels", "line": "line art", "depth": "map of depths"}
        name = what.get(choices.kind, "picture")
        with gr.Tab(f"Upload a {name}" if name != "line art" else "Upload line art"):
            controls["upload"] = gr.File(file_types=["image"], label="As a file", elem_id="upload")
        with gr.Tab("Draw"):
            colours = hex_colours(choices)
            brush = gr.Brush(
                colors=colours, default_color=colours[-1], color_mode="fixed" if colours[1:] else "defaults"
            )
            controls["drawing"] = gr.ImageEditor(
                type="pil", label="In colours of labels" if choices.labels else "On white", brush=brush, format="png",
                sources=("upload", "clipboard"), layers=gr.LayerOptions(disabled=True), transforms=(),
                canvas_size=(CANVAS, CANVAS), elem_id="drawing",
            )  # fmt: skip
    if choices.condition == "layout":
        controls |= scene_controls(cond)
    if choices.held_out:
        controls["num_conditions"] = gr.Slider(
            1, MOST_CONDITIONS, value=1, step=1, label="Held-out images", elem_id="num_conditions",
            info="Where nothing else is given, conditions are those of so many.",
        )  # fmt: skip
    return controls


def scene_controls(cond: Layout) -> dict[str, gr.components.Component]:
    """Boxes by two clicks each, and as the text that a file holds."""
    names = cond.class_names or ("0",)
    kind = gr.Dropdown(list(names), value=names[0], label="Kind of the next box", elem_id="kind", interactive=True)
    blank = draw({"boxes": [], "categories": []}, cond.class_names, (CANVAS, CANVAS))
    board = gr.Image(
        blank, label="Click two corners of each box", interactive=False, format="png", elem_id="board",
        buttons=[], height=360,
    )  # fmt: skip
    hint = gr.HTML(sentence("Click the first corner.", "told"), elem_id="hint")
    clear = gr.Button("Clear", size="sm")
    scene = gr.Textbox(label="The scene, as its file holds it", lines=3, elem_id="scene")
    corner = gr.State(None)

    def click(text: str, name: str, first: tuple | None, event: gr.SelectData) -> tuple:
        place = event.index[0] / CANVAS, event.index[1] / CANVAS
        if first is None:
            return text, place, sentence("Click the corner across.", "told")
        return add_box(text, name, first, place), None, sentence("Click the first corner.", "told")

    def show(text: str) -> tuple:
        if not text.strip():
            return blank, gr.skip()
        try:
            found = read_scene(json.loads(text), cond.layout, cond.class_names)
        except ValueError:
            return gr.skip(), sentence("The scene is no JSON.")
        except UserError as e:
            return gr.skip(), sentence(str(e))
        return draw(found, cond.class_names, (CANVAS, CANVAS)), gr.skip()

    quick = dict(api_visibility="private", show_progress="hidden")
    board.select(click, [scene, kind, corner], [scene, corner, hint], **quick)
    scene.change(show, scene, [board, hint], **quick)
    clear.click(lambda: ("", None), None, [scene, corner], **quick)
    return {"scene": scene}


def part_controls() -> dict[str, gr.components.Component]:
    """A picture, and which part of it stays."""
    return {
        "picture": gr.ImageEditor(
            type="pil", label="The picture", format="png", sources=("upload", "clipboard"),
            brush=gr.Brush(colors=["#e6283c"], color_mode="fixed"), layers=gr.LayerOptions(disabled=True),
            transforms=(), canvas_size=(CANVAS, CANVAS), elem_id="picture",
        ),
        "stays": gr.Radio(
            list(STAYS), value=UNBRUSHED, label="What stays", info="Brush over a part, or choose a side.",
            elem_id="stays",
        ),
        "keep_pixels": gr.Checkbox(True, label="It stays pixel for pixel"),
    }  # fmt: skip


def drawing_controls(choices: Choices) -> dict[str, gr.components.Component]:
    """How codes are drawn, how many, and for which size."""
    usual, slider = choices.sampling, functools.partial(gr.Slider, step=0.01)
    controls = {
        "num_samples": gr.Slider(1, MOST_SAMPLES, value=4, step=1, label="Images of each", elem_id="num_samples"),
        "seed": gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed"),
        "temperature": slider(0.05, max(2, usual.temperature), value=usual.temperature, label="Temperature",
                              info="Above 1 is wilder, below 1 is tamer."),
        "top_k": gr.Slider(1, choices.num_ids, value=usual.top_k, step=1, label="Top-k"),
        "top_p": slider(0.01, 1, value=usual.top_p, label="Top-p"),
    }  # fmt: skip
    if choices.guides:
        controls["guidance"] = slider(
            min(0, usual.guidance), max(10, usual.guidance), value=usual.guidance, label="Guidance",
            info="Above 1, the condition weighs more.",
        )  # fmt: skip
    if choices.most_passes:
        controls["passes"] = gr.Slider(
            1, choices.most_passes, value=usual.passes, step=1, label="Passes", elem_id="passes",
            info="Each writes some of the codes.",
        )  # fmt: skip
        controls["choice_temperature"] = slider(
            0, max(20, usual.choice_temperature), value=usual.choice_temperature, label="Choice temperature",
            info="How freely a pass chooses which codes stay.",
        )  # fmt: skip
    if choices.most > choices.least:
        for name, side in zip(("height", "width"), choices.size, strict=True):
            controls[name] = gr.Slider(
                choices.least, choices.most, value=side, step=choices.step, label=name.capitalize(), elem_id=name
            )
    if choices.longest > 1:
        controls["stride"] = gr.Slider(
            1, choices.longest, value=1, step=1, label="Stride", info="Of the window, in larger images; 1 is exact."
        )
    return controls
