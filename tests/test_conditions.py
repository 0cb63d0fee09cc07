"""What a transformer is conditioned on: classes, pictures, scenes, coordinates, or nothing."""

import json
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from configs import common
from taming_jax import completion, data, request, sharding
from taming_jax.aot.programs import batch_shapes
from taming_jax.conditions import layout as layouts
from taming_jax.conditions.caption import Caption
from taming_jax.conditions.label import find_class, parse_classes
from taming_jax.data.transforms import decode, fit
from taming_jax.errors import ArgumentError, UserError
from taming_jax.loop import train
from taming_jax.second_stage import make_second_stage
from taming_jax.tasks import transformer
from tests.tiny import changed, records, run, tiny_transformer

VARIANTS = {
    "unconditional, spiral, corrupted, remapped": dict(
        cond__name="none", order="spiral_out", pkeep=0.9, first_stage__used=tuple(range(4, 30)), cond__sos=3
    ),
    "on another picture's codes": dict(cond__name="image", gpt__n_unmasked=64),
    "on captions, guided": dict(cond__name="caption", cond__max_words=5, cond__drop=0.2, sample__guidance=2.0),
    "on objects": dict(
        cond__name="objects", cond__layout__min_objects=1, cond__layout__max_objects=2, cond__layout__num_tokens=64
    ),
    "on objects, painted on the codes of a wavefront": dict(
        cond__name="objects",
        cond__drop=0.2,
        cond__layout__kind="grid",
        cond__layout__encode_crop=False,
        cond__layout__min_objects=1,
        cond__layout__max_objects=2,
        cond__layout__num_tokens=64,
        gpt__context__kind="wavefront",
        sample__guidance=2.0,
    ),
    "on coordinates, with a canvas": dict(
        cond__name="coordinates", cond__down=2, cond__levels=16, cond__drop=0.2, sample__guidance=2.0, canvas=(16, 20)
    ),
}


DEAR = {
    "canvas",
    "objects",
    "objects,",
    "codes",
    "captions,",
    "spiral,",
}  # of the variants; tests/test_data_sets.py trains on a picture's codes too


def wandb_records(workdir: Path) -> list:
    """What an offline run of Weights & Biases has written: records of its protocol in a LevelDB log."""
    (file,) = (workdir / "wandb").glob("offline-run-*/*.wandb")
    content, place, parts, records = file.read_bytes(), 7, b"", []  # after the file's own header
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])  # after a checksum
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(parts))
            parts = b""
    return records


def check_followed(workdir: Path) -> None:
    """Scalars, grids, animation and config of a run are with Weights & Biases, and the animation in the events."""
    written = wandb_records(workdir)
    config = {update.key: json.loads(update.value_json) for r in written for update in r.run.config.update}
    assert config["task"] == "transformer" and config["gpt"]["num_layers"] == 2
    logged = {}
    for record in written:
        for item in record.history.item:
            logged["/".join(item.nested_key)] = json.loads(item.value_json)
    assert logged["validation/nll"] == pytest.approx(records(workdir, "validation")[-1]["nll"], rel=1e-6)
    assert logged["samples/_type"] == "image-file" and logged["painting/_type"] == "video-file"
    (media,) = (workdir / "wandb").glob(f"offline-run-*/files/{logged['painting/path']}")
    assert media.read_bytes() == (workdir / "painting.gif").read_bytes()
    events = EventAccumulator(str(workdir / "events"))
    events.Reload()
    assert events.Images("painting")[-1].encoded_image_string == media.read_bytes()


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=pytest.mark.slow) if DEAR & set(name.split()) else name for name in VARIANTS],
)
def test_every_condition_trains_and_samples(variant, vq_run, picture_folder, annotated_folder, tmp_path, monkeypatch):
    config = changed(tiny_transformer(vq_run), **VARIANTS[variant])
    if config.cond.name in ("objects", "caption"):
        config.data.path = str(annotated_folder)
    if config.cond.name == "image":
        config.cond.workdir = str(vq_run)
    config.update(steps=2, eval_every=2)
    if any(config.canvas):
        monkeypatch.setenv("WANDB_MODE", "offline")
        config.tracker = "tensorboard,wandb:tests"
    result = train(config, tmp_path / "run")
    assert 0 < result["nll"] < 2 * np.log(32)
    if any(config.canvas):
        check_followed(tmp_path / "run")
    args = f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}", "--num_samples=2", "--batch_size=8"
    done = run("sample", *args)
    assert done.returncode == 0, done.stderr
    rows = 8 if config.cond.name in ("image", "objects", "caption") else 1
    pictures = sorted((tmp_path / "out").glob("c*_*/0*.png"))
    assert len(pictures) == 2 * rows
    with Image.open(pictures[-1]) as picture:  # coordinates are those of a whole picture
        assert picture.size == ((18, 18) if config.cond.name == "coordinates" else (16, 16))
    if config.cond.name == "image":
        files = sorted((picture_folder / "cross").glob("*.png"))[:2]
        asked = f"--condition={files[0]},{files[1]}", "--size=16x24", f"--out={tmp_path / 'asked'}"
        done = run("sample", *args[:1], *args[2:], *asked)
        assert done.returncode == 0, done.stderr
        with Image.open(tmp_path / "asked/condition_001/condition.png") as seen, Image.open(files[1]) as file:
            file = Image.fromarray(fit({"image": decode(file), "label": 0}, (16, 24))["image"])
            assert seen.size == (24, 16) and seen.tobytes() == file.tobytes()
        assert len(list((tmp_path / "asked").glob("condition_*/0*.png"))) == 4
        painted = f"--data_path={tmp_path / 'asked'}", "--num_conditions=9", "--num_samples=1"
        done = run("sample", args[0], f"--out={tmp_path / 'again'}", *painted)
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / "again").glob("condition_*/0*.png"))) == 4  # of the samples alone
    if config.cond.name == "caption":
        stored, _ = completion.load_config(tmp_path / "run")
        assert set(stored.cond.vocabulary) == {"a", "one", "nr", ",", ".", *"0123", "circle", "cross", "square"}
        asked = f"--out={tmp_path / 'asked'}", '--caption=one Cross,"a circle, nr. 9"'
        done = run("sample", args[0], *args[2:], *asked)
        assert done.returncode == 0, done.stderr
        with Image.open(tmp_path / "asked/caption_001/00000.png") as picture:
            assert picture.text["caption"] == "a circle , nr ."  # as much as it reads
        refused = run("sample", args[0], f"--out={tmp_path / 'none'}", "--caption=triangles")
        assert refused.returncode == 2 and "--caption='triangles': the transformer has learned none" in refused.stderr
    if config.cond.name == "objects":
        scene = [{"category": "circle", "box": [0, 0.2, 0.5, 1]}, {"category": 1, "box": [0.5, 0, 1, 1]}]
        (tmp_path / "scene.json").write_text(json.dumps(scene))
        done = run("sample", args[0], *args[2:], f"--out={tmp_path / 'asked'}", f"--layout={tmp_path / 'scene.json'}")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "asked/condition_000/condition.png").exists()
        for name, of in (("wide", [f"--layout={tmp_path / 'scene.json'}"]), ("held", ["--num_conditions=2"])):
            done = run("sample", args[0], *args[2:], *of, f"--out={tmp_path / name}", "--size=16x24")
            assert done.returncode == 0, done.stderr
            for file in ("00001", "condition"):
                with Image.open(tmp_path / name / f"condition_000/{file}.png") as picture:
                    assert picture.size == (24, 16)
        done = run("evaluate", args[0], f"--data_path={annotated_folder}")
        assert done.returncode == 0, done.stderr


def test_another_picture_is_a_condition(vq_run, annotated_folder, tmp_path):
    """The codes before an image's are those of the picture in others/."""
    (tmp_path / "of_others").symlink_to(vq_run)

    def load_as_of_others(workdir: Path, step: int | None):
        found, step = completion.load_config(workdir, step)
        return (changed(found, input="other") if workdir.name == "of_others" else found), step

    config = changed(tiny_transformer(vq_run), cond__name="image", cond__workdir=str(tmp_path / "of_others"))
    config.data.update(path=str(annotated_folder), flip=False)
    config = completion.complete(config, None, load_as_of_others)
    assert set(config.data.features) == {"image", "other"}
    source = data.open_source(config.data, "train")
    records = [data.make_augment(config.data).centered(source[i]) for i in range(4)]
    batch = {name: np.stack([record[name] for record in records]) for name in records[0]}
    frozen, stage = transformer.make_task(config).load_frozen(), make_second_stage(config)
    c, codes = stage.read(frozen, batch)
    first, net = stage.first, frozen["gen"]
    np.testing.assert_array_equal(codes, first.encode(net, batch))
    negative = first.encode(net, {"image": -first.to_input(batch)})
    assert (c.reshape(codes.shape) == negative).mean() > 0.9 > (c.reshape(codes.shape) == codes).mean()
    shown = stage.cond.pictures(batch, (16, 16))
    np.testing.assert_allclose(shown, batch["other"] / 127.5 - 1, atol=1e-6)


def test_scenes_of_a_larger_picture_are_read_at_each_place_of_the_window(vq_run, annotated_folder, tmp_path):
    """From a file and from held-out pictures: of 8x12 codes, the first of five windows of 8x8 sees the left."""
    config = changed(tiny_transformer(vq_run), cond__name="objects", data__path=str(annotated_folder))
    config.cond.layout.update(min_objects=1, max_objects=2, num_tokens=64, encode_crop=False)
    config = completion.complete(config)
    config.data.class_names = ("circle", "cross", "square")
    (tmp_path / "scene.json").write_text('[{"category": "cross", "box": [0.7, 0.1, 0.9, 0.5]}]')
    stage, file = make_second_stage(config), str(tmp_path / "scene.json")
    asked = request.make_rows(stage, config, (16, 24), {"layout": [file]})
    scene = layouts.read_scene(tmp_path / "scene.json", config.cond.layout, config.data.class_names)
    last = layouts.to_ids(scene, config.cond.layout, 3, crop=(1 / 3, 0, 2 / 3, 1))
    assert asked["windows"].shape == (1, 1, 5, 6) and (asked["windows"][0, 0, 0] == 63).all()
    np.testing.assert_array_equal(asked["windows"][0, 0, 4], last)
    held_out = request.held_out(stage, config, 2, (16, 24))
    assert held_out["windows"].shape == (2, 1, 5, 6) and held_out["image"].shape == (2, 16, 24, 3)
    assert "windows" not in request.held_out(stage, config, 2, (16, 16))


@pytest.mark.parametrize("kind", ["window", "wavefront"])
@pytest.mark.parametrize("use_group", [False, True])
def test_boxes_are_painted_on_the_codes_at_any_size(kind, use_group, vq_run, annotated_folder):
    """In training and for larger images, for a window and a wavefront; the last id is the last class's."""
    config = changed(tiny_transformer(vq_run), cond__name="objects", data__path=str(annotated_folder))
    config.cond.layout.update(kind="grid", min_objects=1, max_objects=2, num_tokens=65, encode_crop=False)
    config.cond.layout.use_group, config.gpt.context.kind = use_group, kind
    config = completion.complete_from_data(completion.complete(config), Classes())
    stage = make_second_stage(config)
    batch = batch_shapes(config, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    assert jax.eval_shape(lambda batch: stage.cond.ids({}, batch), batch).shape == (config.batch_size, 64)
    corner = [{"category": "square", "box": [0, 0, 3 / 7, 3 / 7], "group": use_group}]
    for size, seen in (((16, 16), (4, 4)), ((16, 32), (4, 7)), ((32, 16), (7, 4))):
        grid = size[0] // 2, size[1] // 2
        rows = request.make_rows(stage, config, size, {"layout": corner})
        found = np.asarray(stage.condition({}, rows, grid)).reshape(grid)
        assert (found[: seen[0], : seen[1]] > 0).all() and (found > 0).sum() == np.prod(seen)
        assert found.max() == stage.cond.vocab_size - 1


def test_a_scene_s_transformer_begins_at_the_corners_of_boxes(vq_run, annotated_folder):
    """Of 8x8 places, a code's position is most like the id of the one that it asks for."""
    config = changed(
        tiny_transformer(vq_run), cond__name="objects", cond__aligned=True, data__path=str(annotated_folder)
    )
    config.cond.layout.update(min_objects=1, max_objects=2, num_tokens=65, encode_crop=False)
    config.gpt.embed_dim = 128
    params = jax.jit(transformer.make_task(completion.complete(config)).init)(jax.random.key(0)).params["gpt"]
    ids, codes = params["token_embedding"][:65], params["position_embedding"][6:]
    assert codes.shape == (63, 128)
    assert (np.argmax(codes @ ids.T, 1) == np.arange(1, 64)).mean() > 0.8  # ids have chance in them, too


def caption_of(**fields) -> Caption:
    return Caption(**(dict(length=4, vocab_size=6, vocabulary=("red", "heart", ",", "cat")) | fields))


def test_captions_by_hand():
    caption = caption_of()
    assert caption.to_ids("Red,HEART").tolist() == [2, 4, 3, 0]
    assert caption.to_ids("a red cat in a heart").tolist() == [1, 2, 5, 1]  # what is more than it reads is left out
    assert caption.to_ids("").tolist() == [0] * 4
    record = {"caption": "red cat\nheart\n"}
    assert caption.see(record, (0, 0, 1, 1), False)["caption"].tolist() == [2, 5, 0, 0]
    drawn = {caption.shuffle(record, np.random.default_rng(i))["caption"] for i in range(20)}
    assert drawn == {"red cat", "heart"}
    rows = caption.rows((16, 16), caption=["red heart", "a cat"])
    assert caption.names(rows) == ("red heart", "? cat") and rows["label"].tolist() == [0, 1]
    np.testing.assert_array_equal(caption.ids({}, rows), [[2, 3, 0, 0], [1, 5, 0, 0]])
    with pytest.raises(UserError, match=r"caption='hart': .* none of its words \(did you mean 'heart'\?\)"):
        caption.rows((16, 16), caption="hart")


def test_the_commonest_words_are_learned(annotated_folder):
    config = ConfigDict(dict(cond=dict(max_vocabulary=5, vocabulary=())))
    data_config = common.get_data("folder", size=16)
    data_config.update(path=str(annotated_folder), features=("image", "caption"), validation_share=0.2)
    Caption.learn(config, data.open_source(data_config, "train"))
    assert set(config.cond.vocabulary) == {"a", "one", "nr", ",", "."}
    lost = annotated_folder / "captions" / "cross" / "3.txt"
    text = lost.read_text()
    lost.unlink()
    try:
        with pytest.raises(UserError, match=r"'caption' cannot be read: .*cross/3\.txt"):
            Caption.learn(config, data.open_source(data_config, "train"))
    finally:
        lost.write_text(text)


def test_conditions_lie_as_an_image_that_fills_no_whole_codes(vq_run, annotated_folder):
    """Of 19x27 pixels on 20x28: maps are extended, boxes are shares of what was asked for."""
    config = changed(tiny_transformer(vq_run), cond__name="objects", data__path=str(annotated_folder))
    config.cond.layout.update(min_objects=1, max_objects=2, num_tokens=64, encode_crop=False)
    stage = make_second_stage(completion.complete_from_data(completion.complete(config), Classes()))
    cond = request.condition_of(stage, (20, 28), (10, 14))  # a half of each side
    scene = [{"category": "cross", "box": [0.0, 0.0, 1.0, 1.0]}]
    ids = cond.rows((10, 14), layout=scene)["objects"][0]
    back = layouts.from_ids(ids, cond.layout, 3)
    np.testing.assert_allclose(back["boxes"], [[0, 0, 0.5, 0.5]], atol=1 / 7)
    rows = {"line": np.arange(6.0).reshape(1, 2, 3, 1), "label": np.zeros(1, np.int32)}
    wider = request.extend(rows, (2, 3), (2, 4))["line"]
    np.testing.assert_array_equal(wider[0, :, :, 0], [[0, 1, 2, 2], [3, 4, 5, 5]])


class Classes:
    """A source that has classes and nothing else."""

    class_names = ("circle", "cross", "square")


def test_a_class_is_found_as_it_is_written_or_else_in_any_case():
    names = ("A", "B", "a", "b", "Ab", "3", "C")
    found = {"A": 0, "a": 2, "b": 3, "ab": 4, "AB": 4, "c": 6, "3": 5, "4": 4, "0": 0}
    assert {word: find_class("classes", word, names) for word in found} == found
    for word in ("7", "-1", "d", "", "9" * 5000, "\u00b2"):
        assert find_class("classes", word, names) is None
    with pytest.raises(ArgumentError, match="classes: 'AbC' may be 'ABC' or 'abc'"):
        find_class("classes", "AbC", ("ABC", "abc"))
    assert parse_classes(np.array([3, 0]), names) == [5, 0] and parse_classes(1, names) == [1]
    with pytest.raises(ArgumentError, match=r"there is no class '9+\.\.\.; classes are 0 to 6"):
        parse_classes("9" * 5000, names)


def test_a_map_of_one_column_is_still_a_map():
    thin = {"image": np.zeros((40, 1, 3), np.uint8), "segmentation": np.zeros((40, 1), np.uint8), "label": 0}
    assert fit(thin, (8, 8))["segmentation"].shape == (8, 8)
