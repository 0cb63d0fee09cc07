"""Whatever comes from outside, the answer is right or one line: some 12,000 inputs that nobody thought of."""

import functools
import importlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from configs import common
from taming_jax import completion, config_files, encoded, request, writer
from taming_jax.conditions.caption import Caption
from taming_jax.conditions.label import parse_classes
from taming_jax.conditions.layout import read_scene
from taming_jax.convert.checkpoints import from_checkpoint
from taming_jax.data.annotations import read_annotations
from taming_jax.data.features import FEATURES
from taming_jax.data.files import open_picture, refusing
from taming_jax.errors import UserError
from taming_jax.fields import flat
from taming_jax.report import page
from taming_jax.report.lines import lines as report_lines
from taming_jax.report.run import read as read_run
from tests import tiny

pytestmark = pytest.mark.slow


def cases(count: int) -> settings:
    """The same inputs each time, each with 30 seconds at most."""
    return settings(
        max_examples=count, deadline=30_000, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@contextmanager
def one_line() -> Iterator[None]:
    """Within, a UserError of one line is a right answer; any other exception fails the test."""
    try:
        yield
    except UserError as e:
        assert len(str(e).splitlines()) == 1 and len(str(e)) < 600, str(e)


NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([-1, 0, 1, 2, 8, 16, 2**31, 2**32, 2**63, 2**64, 1e-320, 1e300]),
    st.none().map(lambda _: 10**5000),  # which hypothesis itself could not print
)
ODD = st.sampled_from(
    ["", "a\0b", "a\nb", "\udc80", "\ud800", "9" * 5000, "a" * 5000, "nan", "1e3", "gs://b/x", "~", "/"]
)
WORDS = st.one_of(st.text(st.characters(), max_size=20), ODD)
SIMPLE = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
WILD = st.one_of(SIMPLE, st.lists(SIMPLE, max_size=4), st.lists(SIMPLE, max_size=4).map(tuple), st.just({"a": 1}))
JSON = st.recursive(
    SIMPLE, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=10
)

BASES = (
    *("openmoji_vq", "openmoji_gumbel_vq", "openmoji_fsq_vq", "openmoji_low_vq", "openmoji_segmentation_vq"),
    *("openmoji_transformer", "openmoji_scenes_transformer", "openmoji_captions_transformer"),
)


@functools.cache
def base(name: str) -> tuple[ConfigDict, tuple[str, ...]]:
    config = importlib.import_module(f"configs.{name}").get_config()
    return config, tuple(flat(config))


def put(config: ConfigDict, field: str, value: object) -> None:
    *groups, last = field.split(".")
    for group in groups:
        config = config.get(group)
        if not isinstance(config, ConfigDict):  # another value has come in its place
            return
    if last in config:
        del config[last]
    config[last] = value


@cases(3000)
@given(st.data())
def test_configs(data):
    name = data.draw(st.sampled_from(BASES))
    config, fields = base(name)
    config = config.copy_and_resolve_references().unlock()
    for field in data.draw(st.lists(st.sampled_from(fields), min_size=1, max_size=2)):
        put(config, field, data.draw(WILD))
    first = {"first_stage": base("openmoji_vq")[0]} if name.endswith("transformer") else {}
    with one_line():
        completion.complete_ahead(config, first)


@cases(500)
@given(WORDS)
def test_names_of_configs(name):
    with one_line():
        config_files.load(name)


SIZES = st.one_of(WILD, st.tuples(NUMBERS, NUMBERS), st.tuples(NUMBERS, NUMBERS).map(lambda s: "x".join(map(brief, s))))


def brief(number: float) -> str:
    return "9" * 5000 if abs(number) > 10**4000 else str(number)


@cases(2500)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            **{
                name: st.one_of(NUMBERS, WILD)
                for name in ("seed", "stride", "tile", "temperature", "top_k", "top_p", "guidance", "guidance_power")
            },
            **{name: WILD for name in ("image", "keep", "method")},
            "size": SIZES,
        },
    ),
    st.one_of(st.none(), WILD),
    st.one_of(st.none(), WORDS),
    NUMBERS,
)
def test_requests(generator, asked, classes, data_path, count):
    with one_line():
        plan = generator.plan(**asked)
        request.make_rows(generator.stage, generator.config, plan.size, {"classes": classes}, data_path, count)


@cases(1000)
@given(WILD, st.lists(WORDS, max_size=5).map(tuple))
def test_classes(asked, names):
    with one_line():
        assert all(0 <= label < max(1, len(names)) for label in parse_classes(asked, names))


def dumped(content: object) -> bytes:
    """JSON with NaN; what Python does not write becomes a number of thousands of digits."""
    try:
        return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except ValueError:
        return b"[" + b"9" * 5000 + b"]"


LAYOUT = ConfigDict(common.get_cond("objects").layout)
OBJECTS = st.lists(
    st.fixed_dictionaries(
        {
            "box": st.one_of(JSON, st.lists(st.floats(0, 1), min_size=4, max_size=4)),
            "category": st.one_of(JSON, st.just("a")),
        },
        optional={"group": JSON},
    ),
    max_size=3,
)


@cases(1500)
@given(st.one_of(JSON.filter(lambda x: not isinstance(x, str)), OBJECTS, st.lists(JSON, max_size=3)))
def test_layouts(content):
    with one_line():
        found = read_scene(content, LAYOUT, ("a", "B", "b"))
        assert found["boxes"].shape == (len(content), 4) and np.isfinite(found["boxes"]).all()


@cases(500)
@given(st.one_of(st.binary(max_size=200), JSON.map(dumped)))
def test_layout_files(folder, content):
    file = folder / "scene.json"
    file.write_bytes(content)
    with one_line():
        read_scene(file, LAYOUT, ("a", "B", "b"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@cases(500)
@given(WILD)
def test_captions(asked):
    cond = Caption(length=4, vocab_size=4, vocabulary=("a", "cat"))
    with one_line():
        assert cond.rows((16, 16), asked)["caption"].shape[1] == 4


def pictures() -> list[bytes]:
    """Small files of many formats, modes and of EXIF."""
    found, rng = [], np.random.default_rng(0)
    for mode in ("RGB", "L", "P", "RGBA", "I;16", "1", "F", "CMYK", "LA"):
        picture = Image.fromarray(rng.integers(0, 255, (9, 7, 3), np.uint8)).convert("L" if mode == "I;16" else mode)
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16)) if mode == "I;16" else picture
        for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
            file, exif = io.BytesIO(), Image.Exif()
            exif[274] = 6
            try:
                picture.save(file, kind, **({} if kind == "BMP" else {"exif": exif}))
            except (OSError, ValueError, KeyError):  # no such mode in that format
                continue
            found.append(file.getvalue())
    return found


CHANGES = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6)


@cases(2500)
@given(
    st.one_of(st.binary(max_size=100), st.sampled_from(pictures())),
    CHANGES,
    st.integers(0, 1000),
    st.sampled_from([name for name, feature in FEATURES.items() if feature.ending == ".png" and feature.folder]),
)
def test_pictures(folder, content, changes, length, kind):
    content = bytearray(content[: length or None] if length < 300 else content)
    for at, value in changes:
        if at < len(content):
            content[at] = value
    file = folder / "picture.png"
    file.write_bytes(content)
    with one_line(), refusing("image"):
        assert open_picture(file, kind).ndim in (2, 3)


IMAGES = st.fixed_dictionaries({}, optional={"id": JSON, "file_name": JSON, "width": JSON, "height": JSON})
BOXES = st.fixed_dictionaries(
    {}, optional={"image_id": JSON, "category_id": JSON, "bbox": st.one_of(JSON, st.lists(NUMBERS, max_size=5))}
)
COCO = st.fixed_dictionaries(
    {},
    optional={
        "images": st.one_of(JSON, st.lists(IMAGES, max_size=2)),
        "annotations": st.one_of(JSON, st.lists(BOXES, max_size=3)),
        "categories": st.one_of(JSON, st.lists(st.fixed_dictionaries({"id": JSON, "name": JSON}), max_size=2)),
    },
)


@cases(1000)
@given(st.one_of(st.binary(max_size=100), st.one_of(COCO, JSON).map(dumped)))
def test_annotations(folder, content):
    folder /= "objects"
    folder.mkdir(exist_ok=True)
    (folder / "some.json").write_bytes(content)
    with one_line():
        read_annotations(folder, LAYOUT)


@cases(300)
@given(
    st.one_of(
        st.text(max_size=200),
        st.lists(
            st.sampled_from(["ImageID", ",", "\n", "LabelName", "XMin", "0.5", "/m/01", "nan", "IsGroupOf", "1", '"'])
        ).map("".join),
    )
)
def test_tables_of_annotations(folder, content):
    folder /= "tables"
    folder.mkdir(exist_ok=True)
    (folder / "x-annotations-bbox.csv").write_bytes(content.encode("utf-8", "surrogatepass"))
    (folder / "class-descriptions-boxable.csv").write_text("/m/01,thing\n")
    with one_line():
        read_annotations(folder, LAYOUT)


MODEL = st.fixed_dictionaries(
    {},
    optional={
        "target": JSON,
        "params": st.one_of(
            JSON,
            st.dictionaries(
                st.sampled_from(["ddconfig", "embed_dim", "n_embed", "lossconfig", "transformer_config"]), JSON
            ),
        ),
    },
)


@cases(500)
@given(st.one_of(st.binary(max_size=100), st.fixed_dictionaries({"model": st.one_of(MODEL, JSON)}).map(dumped)))
def test_settings_of_checkpoints(folder, content):
    (folder / "model.yaml").write_bytes(content)
    with one_line():
        from_checkpoint(folder / "none.ckpt", folder / "model.yaml", folder / "run")


@functools.cache
def stored(name: str) -> tuple[dict, tuple[str, ...]]:
    """A complete config as JSON holds it, and its fields with those of its first stage."""
    config, _ = base(name)
    first = {"first_stage": base("openmoji_vq")[0]} if name.endswith("transformer") else {}
    complete = completion.complete_ahead(config.copy_and_resolve_references(), first)
    inner = [f"first_stage.config.{field}" for field in base("openmoji_vq")[1] if first]
    return json.loads(complete.to_json()), (*flat(complete), *inner, *("first_stage.config" for _ in first), "more", "")


@cases(800)
@given(st.data())
def test_stored_configs(folder, data):
    config, fields = stored(data.draw(st.sampled_from(BASES)))
    for field in data.draw(st.lists(st.sampled_from(fields), min_size=1, max_size=2)):
        with suppress(AttributeError, TypeError):  # another value has come in a group's place
            config = tiny.put(config, field, data.draw(st.one_of(st.just(...), JSON)))
    file = folder / "run" / "checkpoints" / "0" / "config" / "metadata"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(dumped(config) if config is not ... else b"")
    with one_line():
        found, _ = completion.load_config(folder / "run")
        completion.net_shapes(found)


CODES = {
    **dict(records=4, records_per_file=1024, views=2, seed=0, row=[["codes", "|u1", [2, 2]], ["cond", "|u1", [1]]]),
    "made_of": {
        "first_stage": {"step": 4, "codebook": "0", "digest": "0"},
        "cond": {"name": "caption", "vocabulary": ["a"]},
        "data": {name.removeprefix("data."): x for name, x in completion.LATER.items() if name.startswith("data.")},
    },
}
OF_CODES = (*CODES, *(f"made_of.{name}" for name in CODES["made_of"]), "made_of.cond.name", "made_of.cond.vocabulary")


@cases(1500)
@given(st.sampled_from((*OF_CODES, "made_of.first_stage.digest", "more", "")), st.one_of(st.just(...), JSON))
def test_statements_of_codes(folder, field, value):
    folder /= "codes"
    folder.mkdir(exist_ok=True)
    (folder / "codes.json").write_bytes(dumped(tiny.put(CODES, field, value)) if field or value is not ... else b"")
    with one_line():
        encoded.prepare(folder, CODES)
    with one_line():
        assert len(encoded.files(folder, encoded.required_statement(folder))) <= encoded.MOST


RECORDS = st.fixed_dictionaries({}, optional={"step": st.one_of(JSON, st.integers(0, 9)), "split": JSON, "loss": JSON})


@cases(1000)
@given(st.lists(st.one_of(st.binary(max_size=20), st.one_of(RECORDS, JSON).map(dumped)), max_size=5))
def test_logs(folder, lines):
    log = folder / "log" / writer.LOG
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(b"\n".join(lines))
    report_lines(read_run(log.parent))
    whole = writer.read_records(log)
    writer.forget_after(log, 5)
    found = writer.read_records(log)
    kept = {writer.key_of(record) for record in whole if record["step"] <= 5}
    assert len(found) == len(kept) and kept == {writer.key_of(record) for record in found}


@cases(100)
@given(st.lists(RECORDS, max_size=5))
def test_pages_of_logs(folder, records):
    log = folder / "pages" / writer.LOG
    log.parent.mkdir(exist_ok=True)
    log.write_bytes(b"\n".join(map(dumped, records)))
    assert page.run_page(read_run(log.parent), None).count("<script>") == 1
