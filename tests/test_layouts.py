"""Scenes of objects: ids as the original makes them, files in COCO's format, and what a user asks for."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import common
from taming_jax import data
from taming_jax.conditions import layout as layouts
from taming_jax.conditions.layout import Layout
from taming_jax.data import annotations, scenes
from taming_jax.errors import UserError


def layout_of(**fields) -> ConfigDict:
    layout = common.get_cond("objects").layout
    layout.update(dict(num_tokens=16, max_objects=3, encode_crop=False, use_group=False) | fields)
    return layout


SCENE = {
    "boxes": np.float32([[0, 0, 0.5, 1], [0.5, 0.25, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1]]),
    "categories": np.int32([2, 0, 1]),
    "groups": np.array([False, True, False]),
}


def test_places_are_the_cells_of_a_grid():
    """The example in the original: of 16 tokens, the second row's third cell is 6 and the last is 15."""
    assert layouts.place(2 / 3, 1 / 3, layout_of()) == 6 and layouts.place(1, 1, layout_of()) == 15
    for num_tokens in (16, 20):
        layout = layout_of(num_tokens=num_tokens)
        assert [layouts.place(x, y, layout) for y, x in layouts.places(layout)] == list(range(16))


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        # Places on a grid of 4x4: x = 0, 1/3, 2/3, 1.
        (dict(), dict(), [2, 0, 14, 0, 6, 11, 1, 15, 15]),
        (dict(kind="center"), dict(), [2, 9, 0, 10, 1, 15]),
        (dict(use_group=True), dict(), [2, 0, 14, 3, 6, 11, 1, 15, 15]),
        (dict(max_objects=1), dict(), [2, 0, 14]),
        (dict(max_objects=4), dict(), [2, 0, 14, 0, 6, 11, 1, 15, 15, 15, 15, 15]),
        # The left half: the second object only touches it, the third is outside.
        (dict(), dict(crop=(0, 0, 0.5, 1)), [2, 0, 15, 15, 15, 15, 15, 15, 15]),
        (dict(), dict(crop=(0, 0, 0.5, 1), flip=True), [2, 0, 15, 15, 15, 15, 15, 15, 15]),
        (dict(), dict(flip=True), [2, 2, 15, 0, 4, 10, 1, 12, 12]),
        # Both are cut off, at the left and at the right, for a grid alone.
        (dict(kind="grid"), dict(crop=(0.25, 0, 0.5, 1)), [2, 0, 14, 0, 6, 11, 15, 15, 15]),
        (dict(), dict(crop=(0.25, 0, 0.5, 1)), [2, 0, 15, 0, 6, 11, 15, 15, 15]),
        # With the crop itself, places are those of the whole picture, and the crop comes last.
        (dict(encode_crop=True), dict(crop=(0, 0, 0.5, 1)), [2, 0, 14, 15, 15, 15, 15, 15, 15, 0, 14]),
        (dict(encode_crop=True), dict(crop=(0, 0, 0.5, 1), flip=True), [2, 2, 15, 15, 15, 15, 15, 15, 15, 2, 15]),
    ],
)
def test_ids_of_a_scene(fields, options, expected):
    layout = layout_of(**fields)
    ids = layouts.to_ids(SCENE, layout, 3, **options)
    assert ids.tolist() == expected and len(ids) == layouts.count_ids(layout)


def test_each_place_of_a_window_has_its_own_ids():
    """A window of 2x2 codes over 2x4: the picture's left half, its middle, its right half. As in `to_ids`, a box that
    begins before the window keeps its size."""
    found = layouts.features(SCENE, layout_of(), 3, grid=(2, 4), window=2)
    assert found["objects"].tolist() == [2, 0, 14, 0, 6, 11, 1, 15, 15]
    assert found["windows"].tolist() == [
        [[2, 0, 15, 15, 15, 15, 15, 15, 15], [2, 0, 15, 0, 6, 11, 15, 15, 15], [0, 4, 11, 1, 14, 15, 15, 15, 15]]
    ]
    encoded = layouts.features(SCENE, layout_of(encode_crop=True), 3, grid=(2, 4), window=2)["windows"]
    assert encoded[0, :, -2:].tolist() == [[0, 14], [1, 14], [2, 15]]
    assert "windows" not in layouts.features(SCENE, layout_of(), 3, grid=(2, 2), window=2)


def test_boxes_are_painted_on_a_grid():
    """Ids are 1 + 16 * category + 4 * row + column of a part of the box; the smallest box lies on top."""
    layout = layout_of(kind="grid", use_group=True)
    ids = layouts.to_ids(SCENE, layout, 3)  # category 2 at the left, group 0 at the right, 1 in a corner
    paint = jax.jit(lambda ids: layouts.to_grid(ids, layout, (4, 6)))
    np.testing.assert_array_equal(
        paint(ids[None])[0].reshape(4, 6),
        [
            [33, 34, 35, 36, 0, 0],
            [37, 38, 39, 40, 49, 49 + 2],
            [41, 42, 43, 44, 49 + 8, 49 + 10],
            [45, 46, 47, 48, 0, 17],
        ],
    )
    assert not paint(np.full((2, 9), 15)).any()  # no objects


@pytest.mark.parametrize("canvas", [(8, 8), (12, 8), (9, 5)])
def test_boxes_on_a_larger_grid_are_shares_of_it(canvas):
    """As one paints them, so they are read: a box's own cells, and no others, at any size."""
    layout = layout_of(kind="grid", num_tokens=101)
    cond = Layout(length=64, vocab_size=49, grid=(8, 8), layout=layout, class_names=("a", "b", "c"))
    rows = cond.of_size(canvas, 8).rows((0, 0), layout=[{"category": "b", "box": [0, 1 / 3, 2 / 3, 1]}])
    assert set(rows) == {"objects", "label"}
    found = np.asarray(cond.of_size(canvas, 8).ids({}, rows)).reshape(canvas)
    i, j = np.indices(canvas)
    here = ((i + 1) / canvas[0] > 1 / 3) & (j / canvas[1] < 2 / 3)  # thirds are places of 10x10
    np.testing.assert_array_equal(found > 0, here)
    assert set(found[here]) <= set(range(17, 33)) and found[here].max() == 32 and found[here].min() == 17


def test_open_images_files(tmp_path):
    described = "/m/012074,Magpie\n/m/03jm5,House\n/m/04yx4,Man\n"
    (tmp_path / "class-descriptions-boxable.csv").write_text(described)
    lines = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf"]
    for i in range(4):
        lines += [f"{i},x,/m/03jm5,1,0.1,0.6,0.2,0.9,0", f"{i},x,/m/04yx4,1,0.5,1,0,0.5,1"]
    lines += ["0,x,/m/012074,1,0,1,0,1,0", "1,x,/m/03jm5,1,0,0.001,0,0.001,0", "9,x,/m/03jm5,1,0,1,0,1,0"]
    (tmp_path / "validation-annotations-bbox.csv").write_text("\n".join(lines))
    layout = layout_of(min_objects=2, max_objects=3, categories="open_images")
    found, names = annotations.read_annotations(tmp_path, layout)
    assert len(names) == 340 and names[0] == "Tortoise" and names[-1] == "Suitcase"  # there are no magpies
    assert sorted(found) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]  # one object alone is too few
    for scene in found.values():  # the tiny one is left out
        np.testing.assert_allclose(scene["boxes"], [[0.1, 0.2, 0.5, 0.7], [0.5, 0, 0.5, 0.5]], atol=1e-6)
        assert [names[category] for category in scene["categories"]] == ["House", "Person"]  # men count as such
        assert scene["groups"].tolist() == [False, True]
    everything, names = annotations.read_annotations(tmp_path, layout_of(min_objects=1, max_objects=3))
    assert names == ["Magpie", "House", "Man"] and len(everything["0.jpg"]["boxes"]) == 3 and len(everything) == 5
    (tmp_path / "validation-annotations-bbox.csv").write_text(lines[0] + "\n1,x,/m/03jm5,1,zero,1,0,1,0\n")
    with pytest.raises(UserError, match=r"validation-annotations-bbox\.csv, line 2: .*zero"):
        annotations.read_annotations(tmp_path, layout_of())
    (tmp_path / "validation-annotations-bbox.csv").write_text("ImageID,LabelName\n")
    with pytest.raises(UserError, match="has no column IsGroupOf, XMax"):
        annotations.read_annotations(tmp_path, layout_of())


def test_the_originals_categories():
    numbers, names = annotations.read_categories("coco")
    assert (
        len(names) == 171 and names[:3] == ["person", "traffic light", "cardboard"] and names[numbers["182"]] == "wood"
    )
    with pytest.raises(UserError, match="did you mean 'coco'"):
        annotations.read_categories("cocos")


def test_a_scene_comes_back_from_its_ids():
    layout = layout_of(num_tokens=8192, use_group=True)
    back = layouts.from_ids(layouts.to_ids(SCENE, layout, 3), layout, 3)
    np.testing.assert_allclose(back["boxes"], SCENE["boxes"], atol=1 / 89)
    assert back["categories"].tolist() == [2, 0, 1] and back["groups"].tolist() == [False, True, False]
    assert layouts.draw(back, ("a", "b", "c"), (40, 60)).shape == (40, 60, 3)


@pytest.fixture
def coco(tmp_path):
    """Four pictures with objects, in COCO's layout and in two files, as its things and its stuff are."""
    (tmp_path / "images" / "train2017").mkdir(parents=True)
    (tmp_path / "images" / "val2017").mkdir()
    (tmp_path / "objects").mkdir()
    pictures = []
    for i in range(5):
        file = tmp_path / "images" / ("val2017" if i == 4 else "train2017") / f"{i}.png"
        Image.new("RGB", (40, 30), (10 * i, 0, 0)).save(file)
        pictures.append(dict(id=i, file_name=file.name, width=40, height=30))
    objects = [dict(image_id=i, category_id=2, bbox=[0, 0, 20, 15], iscrowd=0) for i in range(5)]
    more = [dict(image_id=i, category_id=10, bbox=[20, 15, 20, 15]) for i in (0, 1, 2, 4)]
    more += [dict(image_id=0, category_id=183, bbox=[0, 0, 9, 9]), dict(image_id=0, category_id=2, bbox=[0, 0, 0, 1])]
    things = dict(images=pictures, annotations=objects, categories=[dict(id=2, name="bike"), dict(id=3, name="car")])
    stuff = dict(images=pictures, annotations=more, categories=[dict(id=10, name="sky"), dict(id=183, name="other")])
    (tmp_path / "objects" / "things.json").write_text(json.dumps(things))
    (tmp_path / "objects" / "stuff.json").write_text(json.dumps(stuff))
    return tmp_path


def data_config(path, **fields) -> ConfigDict:
    c = common.get_data("folder", size=30)
    c.update(path=str(path), features=("image", "objects"), splits=dict(train="train2017", validation="val2017"))
    c.layout = layout_of(**fields)
    return c


def test_a_folder_in_cocos_layout(coco):
    config = data_config(coco)
    train, held_out = (data.open_source(config, split) for split in ("train", "validation"))
    assert train.class_names == ["sky", "bike", "car"]  # by their ids as text, as in the original
    assert len(train) == 3 and len(held_out) == 1  # picture 3 has one object, and two are asked for
    record = held_out[0]
    assert record["categories"].tolist() == [0, 1]
    np.testing.assert_allclose(record["boxes"], [[0.5, 0.5, 0.5, 0.5], [0, 0, 0.5, 0.5]])
    config.class_names = tuple(train.class_names)
    scene = Layout(length=9, vocab_size=16, layout=config.layout, class_names=config.class_names)
    augment = data.make_augment(config, scene)
    centered = augment.centered(record)  # 30 of 40 columns, from the fifth on
    assert centered["objects"].tolist() == [0, 10, 15, 1, 0, 10, 15, 15, 15] and "boxes" not in centered
    orders = {tuple(augment(record, np.random.default_rng(i))["objects"][::3]) for i in range(20)}
    assert orders == {(1, 0, 15), (0, 1, 15)}  # objects come in any order, so that none is learned


def test_annotations_that_are_none_are_refused(coco):
    (coco / "objects" / "more.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"more.json is not in COCO's format"):
        data.open_source(data_config(coco), "train")


@pytest.mark.parametrize(
    ("box", "words"), [([500, 500, 20, 20], "12.5, 16.7, 13, 17.3"), ([0, 0, 20, -15], "0, 0, 0.5, -0.5")]
)
def test_a_box_outside_of_its_picture_is_named(box, words, coco):
    file = coco / "objects" / "things.json"
    content = json.loads(file.read_text())
    content["annotations"][1]["bbox"] = box
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"objects: 1.png has a box outside of it: {words} "):
        data.open_source(data_config(coco), "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"category": "bik", "box": [0, 0, 1, 1]}]', "did you mean 'bike'"),
        ('[{"category": 7, "box": [0, 0, 1, 1]}]', "category='7'"),
        ('[{"category": "car", "box": [0.2, 0, 1.5, 1]}]', "'car' has the box 0.2, 0, 1.5, 1"),
        ('[{"category": "car"}]', "no list of objects"),
        ('[{"category": "car", "box": [0, 1]}, {"category": "car", "box": [0, 1]}]', "no list of objects"),
        ("[]", "no list of objects"),
        ("[" + ", ".join(['{"category": "car", "box": [0, 0, 1, 1]}'] * 4) + "]", "has 4 objects; .* reads 3"),
        ("{", "no list of objects"),
        ("[" * 100_000, "no list of objects"),
        ('[{"category": "car", "box": [0, 0, 1' + "0" * 400 + ", 1]}]", "no list of objects"),
        ('[{"category": "car", "box": [0, NaN, 1, 1]}]', "'car' has the box 0, nan, 1, 1"),
        ("\xff", "no list of objects"),
    ],
)
def test_a_layout_that_does_not_fit_gets_one_line(content, message, tmp_path):
    (tmp_path / "scene.json").write_text(content, encoding="latin1")
    with pytest.raises(UserError, match=message) as caught:
        layouts.read_scene(tmp_path / "scene.json", layout_of(), ("sky", "bike", "car"))
    assert "\n" not in str(caught.value) and "scene.json" in str(caught.value)


def test_a_layout_as_a_user_writes_it(tmp_path):
    objects = [{"category": "Bike", "box": [0, 0.25, 0.5, 1]}, {"category": 2, "box": [0, 0, 1, 1], "group": True}]
    (tmp_path / "scene.json").write_text(json.dumps(objects))
    scene = layouts.read_scene(tmp_path / "scene.json", layout_of(), ("sky", "bike", "car"))
    np.testing.assert_allclose(scene["boxes"], [[0, 0.25, 0.5, 0.75], [0, 0, 1, 1]])
    assert scene["categories"].tolist() == [1, 2] and scene["groups"].tolist() == [False, True]


class Drawings:
    """Squares of one colour for each class, with a margin."""

    class_names = ("red", "green")

    def __len__(self):
        return 6

    def __getitem__(self, index):
        image = np.full((32, 32, 3), 255, np.uint8)
        image[8:24, 4:28] = (200, 0, 0) if index % 2 == 0 else (0, 200, 0)
        return {"image": image, "label": index % 2}


def test_scenes_of_drawings_lie_where_their_boxes_say():
    source = scenes.Scenes(Drawings())
    assert len(source) == 24
    for index in range(24):
        record = source[index]
        np.testing.assert_array_equal(record["image"], source[index]["image"])
        assert 2 <= len(record["boxes"]) <= 4 and record["categories"][0] == index % 2
        inside = np.zeros((scenes.SIDE, scenes.SIDE), bool)
        for left, top, width, height in np.round(record["boxes"] * scenes.SIDE).astype(int):
            assert 1.3 < width / height < 1.8  # the margin is not a part of the box
            inside[top : top + height, left : left + width] = True
        assert (record["image"][~inside] == 255).all() and (record["image"][inside].min(-1) < 250).mean() > 0.9


def write_splits(root: Path, same_names: bool = False, first: int = 1, swapped: bool = False, **files: str) -> Path:
    """Pictures in two splits, each with its own JSON file; in training a cat at the left, else two dogs at the right.

    same_names: both splits have the same file names. first: the number of the validation's first image. swapped: its
    categories have each other's ids. files: of the splits' annotations.
    """
    (root / "objects").mkdir(parents=True)
    for s, split in enumerate(("train", "validation")):
        (root / "images" / split).mkdir(parents=True)
        pictures, objects = [], []
        for i in range(2):
            name = f"{i}.png" if same_names else f"{split}_{i}.png"
            Image.new("RGB", (20, 20)).save(root / "images" / split / name)
            number = i + (first if s else 1)
            pictures.append(dict(id=number, file_name=name, width=20, height=20))
            objects += [dict(image_id=number, category_id=1 if swapped else 1 + s, bbox=[10 * s, 0, 5, 5])] * (1 + s)
        names = ("dog", "cat") if swapped and s else ("cat", "dog")
        categories = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
        file = root / "objects" / files.get(split, f"{split}.json")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(dict(images=pictures, annotations=objects, categories=categories)))
    return root


def scenes_config(path: Path) -> ConfigDict:
    config = data_config(path, min_objects=1)
    config.splits = dict(train="train", validation="validation")
    return config


@pytest.mark.parametrize(
    "fields",
    [
        dict(),
        dict(first=101),
        dict(swapped=True),
        dict(same_names=True),
        dict(same_names=True, first=101, swapped=True),
        dict(same_names=True, train="instances_train2017.json", validation="instances_val2017.json"),
        dict(same_names=True, train="training/boxes.json", validation="valid/boxes.json"),
    ],
)
def test_each_file_has_its_own_ids_and_its_own_split(fields, tmp_path):
    config = scenes_config(write_splits(tmp_path / "data", **fields))
    for split, box, number in (("train", [0, 0, 0.25, 0.25], 1), ("validation", [0.5, 0, 0.25, 0.25], 2)):
        source = data.open_source(config, split)
        assert source.class_names == ["cat", "dog"] and len(source) == 2
        for i in range(2):
            np.testing.assert_allclose(source[i]["boxes"], [box] * number)
            names = [source.class_names[category] for category in source[i]["categories"]]
            assert names == ["cat"] if split == "train" else ["dog"] * 2
    config.class_names = ("horse", "dog", "cat", "train")  # a run's
    assert data.open_source(config, "train")[0]["categories"].tolist() == [2]


def test_where_the_image_of_an_annotation_cannot_be_told_one_line_says_so(tmp_path, capfd):
    config = scenes_config(write_splits(tmp_path / "a", same_names=True, train="a.json", validation="b.json"))
    with pytest.raises(UserError, match=r"0.png may be any of train/0.png, validation/0.png: .* such as train.json"):
        data.open_source(config, "train")
    root = write_splits(tmp_path / "b", same_names=True)
    for split in ("train", "validation"):  # without folders of splits
        for file in (root / "images" / split).iterdir():
            file.replace(root / "images" / file.name)
        (root / "images" / split).rmdir()
    with pytest.raises(UserError, match=r"files of several splits have an image 0.png, and images/ has no folders of"):
        data.open_source(scenes_config(root), "train")
    root = write_splits(tmp_path / "c", same_names=True)
    (root / "images/train/1.png").unlink()  # its boxes are not those of validation/1.png
    (root / "objects/._train.json").write_bytes(b"\0")
    (root / "images/validation/2.png").write_bytes((root / "images/train/0.png").read_bytes())
    assert len(data.open_source(scenes_config(root), "train")) == 1
    assert len(data.open_source(scenes_config(root), "validation")[1]["boxes"]) == 2
    assert "left out: 1 without a scene of 1 to 3 objects" in capfd.readouterr().out


def test_an_annotation_is_for_the_image_of_its_own_split_before_any_other():
    pictures = {"train/a/0.png": "train", "validation/0.png": "validation", "validation/9.png": "validation"}
    find = annotations.find_pictures(Path("objects"), pictures, {"0.png": {"train"}, "9.png": {"train"}})
    assert find("train", "0.png") == "train/a/0.png" and find("validation", "0.png") == "validation/0.png"
    assert find("train", "9.png") == "validation/9.png"  # held out by hand, and no other file has it
    assert find("train", "5.png") is None and find("", "train/a/0.png") == "train/a/0.png"


def test_categories_that_files_agree_on_are_in_the_order_of_their_ids():
    names = {(0, "2"): "bike", (0, "10"): "sky", (1, "2"): "bike", (1, "9"): "bike", (1, "1"): "car"}
    numbers, order = annotations.merge_categories(names)
    assert order == ["car", "sky", "bike", "bike"]  # two of one name in one file stay apart
    assert [numbers[key] for key in names] == [2, 1, 2, 3, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(annotations=[dict(image_id=0, category_id=2, bbox=None)]), "'bbox' is None"),
        (dict(annotations=[dict(image_id=0, category_id=2, bbox="0 0 1 1")]), "'bbox' is '0 0 1 1'"),
        (dict(annotations=[dict(image_id=0, category_id=2, bbox=["0", 0, 1, 1])]), "not four numbers"),
        (dict(annotations=[dict(image_id=0, category_id=2, bbox=[0, 0, float("nan"), 1])]), "not four numbers"),
        (dict(annotations=[dict(image_id=0, category_id=2, bbox=[0, 0, 10**400, 1])]), "not four numbers"),
        (dict(annotations=[dict(image_id=[], category_id=2, bbox=[0, 0, 1, 1])]), "'image_id' is \\[\\]"),
        (dict(annotations=[dict(image_id=77, category_id=2, bbox=[0, 0, 1, 1])]), "of image 77, which is not"),
        (dict(annotations=[dict(image_id=0, category_id=2, bbox=[0, 0, 9, 9], iscrowd="no")]), "'iscrowd' is 'no'"),
        (dict(annotations=[None]), "None stands where an object"),
        (dict(annotations=None), "'annotations' is None"),
        (dict(images=[dict(id=0, file_name=None)]), "'file_name' is None"),
        (dict(images=[dict(id=0, file_name="0.png", width=0, height=30)]), "0.png has the width and the height"),
        (dict(images=[dict(id=0, file_name="0.png", height=30)]), "0.png has the width and the height"),
        (dict(images={}), "'images' is {}"),
        (dict(categories=[dict(id=2)]), "an object without 'name'"),
        (dict(categories=["bike"]), "'bike' stands where an object"),
        ("[" * 100_000, "recursion"),
        ("", "Expecting value"),
        (b"\xff{}\xfe", "decode"),
        ("[]", "stands where an object with 'categories' belongs"),
    ],
)
def test_json_of_any_other_form_gets_one_line_with_its_name(change, message, coco):
    for file in (coco / "objects").iterdir():
        good = json.loads(file.read_text())
    file = coco / "objects" / "broken.json"
    good["annotations"] = [dict(image_id=0, category_id=2, bbox=[0, 0, 9, 9])]
    content = json.dumps(good | change) if isinstance(change, dict) else change
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"broken.json.*{message}") as caught:
        data.open_source(data_config(coco), "train")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("line", "message"),
    [("x" * 200_000, "field larger"), ("\0", "line 2"), (b"\xff", "decode"), ("1,2", "line 2: list index")],
)
def test_csv_of_any_other_form_gets_one_line_with_its_name(line, message, tmp_path):
    (tmp_path / "class-descriptions-boxable.csv").write_text("/m/03jm5,House\n")
    header = b"ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n"
    (tmp_path / "validation-annotations-bbox.csv").write_bytes(
        header + (line if isinstance(line, bytes) else line.encode())
    )
    with pytest.raises(UserError, match=rf"validation-annotations-bbox\.csv, .*{message}") as caught:
        annotations.read_annotations(tmp_path, layout_of())
    assert "\n" not in str(caught.value)
    (tmp_path / "class-descriptions-boxable.csv").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"class-descriptions-boxable\.csv, after line 0, is no CSV file"):
        annotations.read_annotations(tmp_path, layout_of())


def test_boxes_thinner_than_a_pixel_and_names_without_glyphs_are_drawn():
    scene = {"boxes": np.float32([[0.5, 0.5, 1e-3, 1e-3], [1, 1, 0, 0]]), "categories": np.int32([0, 1])}
    drawn = layouts.draw(scene, ("猫", "собака"), (16, 16))
    assert drawn.shape == (16, 16, 3) and drawn.min() < 255
    np.testing.assert_array_equal(drawn, layouts.draw(scene, ("0", "1"), (16, 16)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(images=[dict(id=0, file_name="1.png", width=40, height=30)]), "two of 'images' have the id 0: .*1.png"),
        (dict(images=[dict(id=0.0, file_name="1.png", width=40, height=30)]), "two of 'images' have the id 0: .*1.png"),
        (dict(images=[dict(id=0, file_name="0.png", width=30, height=40)]), "two of 'images' have the id 0: "),
        (dict(categories=[dict(id=2.0, name="sky")]), "two of 'categories' have the id 2: 'bike', 'sky'"),
        (dict(annotations=[dict(image_id=0, category_id=7, bbox=[0, 0, 9, 9])]), "0.png has an object of category 7, "),
    ],
)
def test_an_id_that_means_two_things_or_none_is_named(change, message, coco):
    file = coco / "objects" / "things.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {name: content[name] + entries for name, entries in change.items()}))
    with pytest.raises(UserError, match=f"objects.*{message}") as caught:
        data.open_source(data_config(coco), "train")
    assert "\n" not in str(caught.value)


def test_ids_that_are_equal_numbers_are_the_same(coco):
    """As pandas and JavaScript write them; what is there twice and is the same does no harm."""
    expected = data.open_source(data_config(coco), "train")
    file = coco / "objects" / "things.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        entry["category_id"] = float(entry["category_id"])
    content["annotations"][1]["image_id"] = 1.0
    content["images"] += [entry | dict(license=3, id=float(entry["id"])) for entry in content["images"]]
    content["categories"] += content["categories"]
    file.write_text(json.dumps(content))
    found = data.open_source(data_config(coco), "train")
    assert found.class_names == expected.class_names and len(found) == len(expected)
    for i in range(len(found)):
        for name in ("boxes", "categories"):
            np.testing.assert_array_equal(found[i][name], expected[i][name])


def test_open_images_labels_that_no_list_has_are_named(tmp_path):
    (tmp_path / "class-descriptions-boxable.csv").write_text("/m/03jm5,House\n/m/03jm5,House\n")
    header = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n"
    (tmp_path / "validation-annotations-bbox.csv").write_text(f"{header}5,/m/04yx4,0.1,0.6,0.2,0.9,0\n")
    with pytest.raises(UserError, match=r"5.jpg has an object of category /m/04yx4, which the file's list"):
        annotations.read_annotations(tmp_path, layout_of())
    (tmp_path / "class-descriptions-boxable.csv").write_text("/m/03jm5,House\n/m/03jm5,Home\n")
    with pytest.raises(UserError, match=r"boxable.csv, line 2: '/m/03jm5' has another name already"):
        annotations.read_annotations(tmp_path, layout_of())


def test_a_layout_that_has_no_end_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.json").write_text("[" * (2**20 + 1))
    for file, message in ((tmp_path / "pipe", "a pipe"), ("/dev/zero", "a device"), (tmp_path / "large.json", "holds")):
        with pytest.raises(UserError, match=f"layout={file} is no list of objects .*{message}"):
            layouts.read_scene(file, layout_of(), ("sky", "bike", "car"))
