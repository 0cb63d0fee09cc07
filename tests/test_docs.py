"""README.md, docs/ and launch/README.md: their commands and their Python run, their names and links are there."""

import ast
import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import is_config_flag
from PIL import Image

from configs import openmoji_transformer
from taming_jax import cli, completion, config_files, fields
from taming_jax.__main__ import COMMANDS
from taming_jax.models.quantize import QUANTIZERS
from tests.tiny import ROOT

PAGES = ["README.md", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md")), "launch/README.md"]
TEXTS = {page: (ROOT / page).read_text() for page in PAGES}
# What the shell and other programs do, which are not here or not ours.
FOREIGN = {"cd", "pip", "docker", "gcloud", "kubectl", "source"}
# Commands of ours whose flags and fields are read, and no more.
NOT_RUN = {
    r"train .*--coordinator_address": "waits for its other processes; tests/test_multihost.py has some",
    r"(train|report) .*(/bucket/|/kaggle/|/shared/)": "no such disk here",
    r"hub (push|pull) .*hf://": "there is no hub; tests/test_hub.py has folders",
    r"convert .*--ckpt": "nobody's checkpoint is here; tests/test_convert.py makes some",
    r"convert .*--to-": "needs PyTorch, or is of tests/test_export.py; `make test-parity`",
    r"compile_ahead": "compiles for minutes; tests/test_aot.py does so",
    r"demo": "serves until it is stopped; tests/test_demo.py does so",
    r"evaluate .*inception": "fetches its weights; tests/test_quality.py has random ones",
    r"sample .*--data_path=runs/": "needs a run conditioned on pictures; tests/test_conditions.py has one",
    r"sample .*runs/coco": "needs a run conditioned on maps; tests/test_conditions.py has one",
}
TINY = {
    "vqgan": """data.size=16 data.resize_factor=1.125 data.validation_share=0.2 data.workers=0 model.ch=32
        model.ch_mult=(1,1) model.num_res_blocks=1 model.attn_resolutions=() model.z_channels=32
        quantizer.codebook_size=32 quantizer.embed_dim=8 loss.perceptual_weight=0 disc.ndf=8 disc.n_layers=1
        disc.start=0""",
    "transformer": "gpt.num_layers=1 gpt.num_heads=2 gpt.embed_dim=32 gpt.n_unmasked=0",
}
SHORT = "batch_size=8 accumulate=1 steps=6 log_every=2 eval_every=6 checkpoint_every=6"
# What a page names, and what there is in its place.
IN_PLACE = {
    "/my/": "my/",
    "hf://user/": "runs/",
    "published/openmoji": "runs/openmoji_transformer",
    "=flags": "=cross",
    '"flags"': '"cross"',
    "207,282": "0,1",
    '"efficientnet", num_samples=2048': '"vgg", num_samples=16',
    "red heart": "one cross",
    "--guidance=1.5": "--guidance=1",  # the run here knows no examples without a class
    "sample(16, ": "sample(2, ",
    "sample(4, seed": "sample(1, seed",
    "size=(32, 32)": "size=(16, 24)",
    "--views=4": "--views=1",  # crops of the run here are not of chance
}

# What sentences leave open.
OPEN = {"CKPT": "--ckpt=a --config=b", "config=...": "config=custom_vq", "=...": "=x", "runs/*": "runs/a"}


class Block(NamedTuple):
    """A fenced block of a page: its language (none for commands), and what it holds."""

    page: str
    number: int
    language: str
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command."""
        lines = [line.lstrip("!") for line in self.text.replace("\\\n", " ").splitlines()]  # as in a notebook
        words = [shlex.split(part, comments=True) for line in lines for part in line.split(" && ")]
        return [command for command in words if command]


BLOCKS = [
    Block(page, number, *found.groups())
    for page, text in TEXTS.items()
    for number, found in enumerate(re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
]
SPANS = [(page, span) for page, text in TEXTS.items() for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)]


def ours(words: list[str]) -> list[str] | None:
    """Our command in a line, without what starts it: ['train', '--config=...', ...]; None in the others."""
    if words[0] == "taming" and len(words) > 1 and words[1] in COMMANDS:
        return words[1:]
    if words[:2] == ["python", "-m"] and words[2].startswith("taming_jax."):
        return [words[2].removeprefix("taming_jax."), *words[3:]]
    if "launch/slurm.sbatch" in words or words[:2] == ["docker", "run"]:
        return ["train", *words[words.index("launch/slurm.sbatch" if words[0] == "sbatch" else "taming_jax") + 1 :]]
    return ["train", *words[words.index("--") + 1 :]] if words[0] == "launch/tpu_pod.sh" else None


def spoken() -> list[list[str]]:
    """The commands in the middle of sentences and in tables, which may leave a value open."""
    found = []
    for _, span in SPANS:
        for open_, closed in OPEN.items():
            span = span.replace(open_, closed)
        if span.split()[0] in COMMANDS and "--" in span:
            span = f"taming {span}"
        if span.startswith(("taming ", "python -m taming_jax.")):
            command = ours(shlex.split(span))
            found += [command] if command is not None and len(command) > 1 else []
    return found


SHELL = [block for block in BLOCKS if block.language in ("", "sh")]
PYTHON = {page: [b for b in BLOCKS if b.page == page and b.language == "python"] for page in PAGES}
TYPED = sorted({tuple(c) for b in SHELL for words in b.commands if (c := ours(words))} | set(map(tuple, spoken())))


def why_not(command: list[str] | tuple[str, ...]) -> str | None:
    """Why a command is not run here; None for one that is."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, " ".join(command))), None)


def replaced(text: str) -> str:
    for named, there in IN_PLACE.items():
        text = text.replace(named, there)
    return text


def test_every_block_is_of_a_known_kind():
    for block in BLOCKS:
        assert block.language in ("", "sh", "python", "json", "text", "math"), block
        if block.language == "json":
            json.loads(block.text)
    targets = set(re.findall(r"^([.\w/-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in SHELL:
        for words in block.commands:
            if words[0] == "make":
                assert set(words[1:]) <= targets, block
            elif words[:2] != ["python", "-c"]:
                assert words[0] in FOREIGN or ours(words), (block.page, words)
    for page, span in SPANS:
        if made := re.match(r"make ([\w-]+)$", span):
            assert made[1] in targets, (page, span)
        if module := re.match(r"(?:\.venv-parity/bin/)?python -m ((?:benchmarks|docs|taming_jax)[\w.]*)", span):
            assert importlib.util.find_spec(module[1]), (page, span)
    assert all(any(why_not(c) == why for c in TYPED) for why in NOT_RUN.values()), "a reason that nothing has"


@pytest.fixture
def place(tmp_path, monkeypatch, picture_folder, annotated_folder) -> Path:
    """A folder with the pictures that the pages name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "images").symlink_to(picture_folder)
    (tmp_path / "my" / "data").symlink_to(annotated_folder)
    for name in ("1", "2", "drawing"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(f"{name}.png")
    return tmp_path


@pytest.fixture
def stand_in(place, vq_run, transformer_run) -> Callable[[str, str], None]:
    """Puts a run of a stage where a page has one, unless it is there."""
    made = {"vq": vq_run, "transformer": transformer_run}

    def stand_in(workdir: str, stage: str) -> None:
        if workdir.startswith("runs/") and not Path(workdir).exists():
            shutil.copytree(made[stage], workdir)

    return stand_in


@pytest.fixture
def provide(stand_in) -> Callable[[list[str]], None]:
    """Puts runs where a command reads them."""

    def provide(command: list[str]) -> None:
        given = dict(word[2:].partition("=")[::2] for word in command if word.startswith("--"))
        config, workdir = given.get("config", ""), given.get("workdir", "")
        stages = {"sample": "transformer", "demo": "transformer"}
        if command[0] != "train" and not (command[0] == "convert" and "ckpt" in given):
            stage = "transformer" if "transformer" in workdir else stages.get(command[0], "vq")
            stand_in(workdir, stage)
        for word in command[1:]:
            stand_in(word, "transformer" if "transformer" in word else "vq")
        for name in ("first_stage", "config.first_stage.workdir", "config.init_from"):
            stand_in(given.get(name, ""), "vq")
        kind, _, run = config.partition(":")
        if kind in ("stored", "finetune"):
            stand_in(run, "transformer" if "first_stage.workdir" in str(given) else "vq")

    return provide


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", TYPED, ids=" ".join)
def test_commands_are_understood(command, run_here, place, provide, monkeypatch):
    """Their flags and fields are there, and the values may be; what they read on a disk is not asked for."""
    module, *args = [replaced(word) for word in command]
    provide([module, *args])

    def read(main: Callable, operands: str = "") -> None:
        if cli.HELP & set(args):
            return cli.show_help("", main.__globals__["__doc__"], ["command", *args])
        words = cli.parse(["command", *args], bool(operands))
        assert bool(words) == bool(operands)
        for name in flags.FLAGS:
            if is_config_flag(flags.FLAGS[name]) and (config := flags.FLAGS[name].value) is not None:
                fields.check_fields(config)
                completion.check_parts(config)

    monkeypatch.setattr(cli, "run", read)
    run_here(f"taming_jax.{module}", *args)


def made_small(command: list[str]) -> list[str]:
    """A command with flags that let it end soon."""
    module, *args = [replaced(word) for word in command]
    given = dict(word[2:].partition("=")[::2] for word in args if word.startswith("--"))
    if module in ("train", "encode", "show_data"):
        own = given["config"].partition(":")[0] in ("stored", "finetune")
        config = config_files.load(given["config"])
        added = [*SHORT.split(), *([] if own else TINY[config.task].split())]
        if not own and "config.data.path" not in given and (config.task == "vqgan" or config.cond.name == "caption"):
            added += ["data.name=folder", "data.path=my/data"]
        return [module, *args, *(f"--config.{field}" for field in added)]
    if module == "sample":
        added = ["num_samples=2", "num_conditions=2", *(["size=16x24"] if "size" in given else [])]
        return [module, *args, *(f"--{flag}" for flag in added)]
    if module == "evaluate" and "features" in given:
        return [module, *args, "--features=vgg", *(["--num_samples=16"] if "num_samples" in given else [])]
    return [module, *args]


RUN = [b for b in SHELL if any((c := ours(words)) and not why_not(c) for words in b.commands)]
FAST = {b for b in RUN if {c[0] for words in b.commands if (c := ours(words))} <= {"check", "report"}}


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    "block",
    [pytest.param(b, marks=[] if b in FAST else pytest.mark.slow) for b in RUN],
    ids=lambda block: f"{block.page}-{block.number}",
)
def test_commands_run(block, run_here, place, provide, stand_in, monkeypatch):
    """Those of a block, one after the other, on small data and with small models."""
    monkeypatch.setattr(cli, "run", lambda main, operands="": main(*cli.parse(["command", *args], bool(operands))))
    for words in block.commands:
        if (command := ours(words)) and not why_not(command) and not cli.HELP & set(command):
            provide([replaced(word) for word in command])
            module, *args = made_small(command)
            if module in ("train", "encode"):
                config = config_files.load(next(a.partition("=")[2] for a in args if a.startswith("--config=")))
                for stage in completion.stages_of(config):
                    stand_in(config[stage].workdir, "vq")
            try:
                run_here(f"taming_jax.{module}", *args)
            except SystemExit as ended:  # as `check` does
                assert not ended.code


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in ("docs/quality.md", "docs/sampling.md") else [])
        for page in PAGES
        if PYTHON[page]
    ],
)
def test_python_runs(page, place, stand_in):
    """The blocks of a page, one after the other, with what a reader has already."""
    for stage in ("vq", "transformer"):
        stand_in(f"runs/openmoji_{stage}", stage)
    images = np.zeros((6, 16, 16, 3), np.uint8)
    Path("runs/flags").mkdir()
    np.savez("runs/flags/samples.npz", arr_0=images, arr_1=np.repeat([0, 1], 3))
    names = dict(c=openmoji_transformer.get_config(), ConfigDict=ConfigDict, score=lambda images, labels: labels)
    for block in PYTHON[page]:
        exec(compile(replaced(block.text), f"{page}, block {block.number}", "exec"), names)
    if page == "docs/quality.md":
        fields.check_fields(names["c"])


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_flags_and_fields_in_sentences_are_there(run_here, monkeypatch):
    """`--flag=value`, and `group.field=value` with a value that the field may have."""
    known = {}
    monkeypatch.setattr(cli, "run", lambda main, operands="": known.update({f.name: f for f in cli.own_flags()}))
    for command in COMMANDS:
        run_here(f"taming_jax.{command}")
    scripts = "".join(p.read_text() for p in (ROOT / "launch").glob("*.sh")) + TEXTS["launch/README.md"]
    rules = {
        name: rule for task in fields.OF_TASK for name, rule in (fields.OF_TASK[task] | fields.EXTRA[task]).items()
    }
    rules |= fields.COMMON | {f"quantizer.{n}": r for kind in QUANTIZERS.values() for n, r in kind.RULES.items()}
    groups = {group for name in rules for group in fields.parents(name)}
    for page, span in SPANS:
        own = span.startswith(("--", "taming ", "python -m taming_jax"))
        for name in re.findall(r"(?:^|\s)--(?:no)?([\w.-]+)", span) if own else ():
            field = name.removeprefix("config.")
            if field != name:
                assert field in rules or field in groups or field == "NAME", (page, span)
            else:
                assert {name, f"no{name}"} & {*known, "help", "helpfull"} or f"--{name}" in scripts, (page, span)
        found = re.fullmatch(
            r"((?:data|model|quantizer|loss|disc|optim|gpt|cond|sample|mesh)\.[a-z_.]+)(?:=(.+))?", span
        )
        if found and not found[1].endswith((".py", ".json", ".safetensors")):
            assert found[1] in rules or found[1] in groups, (page, span)
        if found and found[2] and found[1] in rules:
            try:
                value = ast.literal_eval(found[2])
            except (SyntaxError, ValueError):
                value = found[2]
            rules[found[1]](found[1], value)


def slug(heading: str) -> str:
    """The anchor that git hosts give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_links_hold_on_a_git_host(page):
    """Relative to the file; the site, which is built from the same places, is asked below."""
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.is_file(), f"{page}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", target.read_text(), flags=re.M | re.S), re.M)
            assert anchor in map(slug, headings), f"{page}: {link}"


def test_the_site_builds_and_asks_no_other_host(tmp_path):
    """Strictly: every page is in the menu, every link and every anchor holds."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    pages = sorted(tmp_path.rglob("*.html"))
    assert {page.relative_to(tmp_path).with_suffix(".md").as_posix() for page in pages} > set(PAGES) - {
        "README.md",
        "launch/README.md",
    }
    for page in pages:
        text = page.read_text()
        assert not re.findall(r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>", text), page
