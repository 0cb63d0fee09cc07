"""Hooks of MkDocs: the site is made of the repository as it lies, so that links hold there and on a git host alike."""

from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
SHOWN = (
    "README.md",
    "CHANGELOG.md",
    "docs/*.md",
    "docs/*.png",
    "docs/*.gif",
    "docs/*.svg",
    "launch/README.md",
    "launch/*.ipynb",
)


def on_config(config: MkDocsConfig) -> None:
    """Blocks of ```math, which git hosts draw too, become MathML, which browsers draw without a script."""
    fence = {"name": "math", "class": "math", "format": draw_math}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}


def draw_math(source: str, *_: object, **__: object) -> str:
    """A formula in a box that scrolls by itself on a narrow screen."""
    return f'<div style="overflow-x: auto">{convert(source, display="block")}</div>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages by their places in the repository, not below docs/."""
    ours = [path.relative_to(ROOT).as_posix() for pattern in SHOWN for path in sorted(ROOT.glob(pattern))]
    others = [file for file in files if file.src_dir != config.docs_dir]
    return Files([*others, *(File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in ours)])
