"""The walk over a folder of images: what is taken, what is left out, which folders are splits, and classes by name."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from configs import common
from taming_jax import checkpoint, completion, data, images
from taming_jax.conditions.label import Label, parse_classes
from taming_jax.data.classes import number_classes
from taming_jax.data.walk import part_of
from taming_jax.errors import UserError
from tests.tiny import ROOT


def fill(folder: Path, *names: str) -> Path:
    """Pictures of one pixel and more; those of a name are the same everywhere."""
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), (number, len(name), 0)).save(file, "JPEG")
    return folder


def look(folder: Path, capfd, split: str = "validation", **fields) -> tuple[object, str]:
    """All of a folder, or a split of it, and the line that is said."""
    config = common.get_data("folder", size=2)
    config.update(dict(path=str(folder), validation_share=1.0) | fields)
    source = data.open_source(config, split)
    said = capfd.readouterr().out
    assert said.count("\n") <= 1
    return source, said


def names_of(source) -> list[str]:
    return sorted(file.relative_to(source.source.root).as_posix() for file in source.source.files)


CLASSES = [f"{name}/{i}.jpg" for name in ("cat", "dog", "fish") for i in range(3)]


def test_links_are_followed_and_loops_end(tmp_path, capfd):
    root = fill(tmp_path / "root", *CLASSES[:3], *CLASSES[6:])
    elsewhere = fill(tmp_path / "far/dog", "0.jpg", "1.jpg")
    links = {"dog": "../far/dog", "fish/one.jpg": "../../far/dog/1.jpg"}
    links |= {"cat/up": "..", "cat/all": "../..", "fish/self": "self", "fish/gone.jpg": "/none"}
    for name, target in links.items():
        os.symlink(target, root / name)
    os.symlink(root / "fish", elsewhere / "fishes")  # leads back to what is taken already
    os.symlink(elsewhere, root / "fish/dogs")
    source, said = look(root, capfd)
    assert source.class_names == ["cat", "dog", "fish"]
    assert ("3 links to a folder above (all, " in said and "2 broken links (gone.jpg, self)" in said) or "links" in said
    assert {"dog/0.jpg", "fish/one.jpg", "fish/dogs/0.jpg"} <= set(names_of(source))
    assert {source[i]["label"] for i in range(len(source))} == {0, 1, 2}
    for name in "abcdefghij":
        fill(tmp_path / "friends" / name, "0.jpg")
        for other in "abcdefghij":
            os.symlink(f"../{other}", tmp_path / "friends" / name / f"to_{other}")
    friends, _ = look(tmp_path / "friends", capfd)
    assert len(friends) == 100 and len(friends.class_names) == 10
    os.symlink(root, tmp_path / "again")
    assert len(look(tmp_path / "again", capfd)[0]) == len(source)


def test_what_systems_leave_behind_is_left_out_and_counted(tmp_path, capfd):
    hidden = [".ipynb_checkpoints/0-checkpoint.jpg", "cat/.ipynb_checkpoints/deep/0.jpg", ".Trash-1000/files/a.jpg"]
    system = ["__MACOSX/cat/0.jpg", "dog/@eaDir/0.jpg/thumb.jpg", "$Recycle.Bin/0.jpg", "lost+found/0.jpg"]
    fill(tmp_path, *CLASSES, *hidden, *system, "cat/._0.jpg")
    os.symlink("/", tmp_path / ".all")
    source, said = look(tmp_path, capfd)
    assert names_of(source) == CLASSES and source.class_names == ["cat", "dog", "fish"]
    assert f"{tmp_path}: 9 images in 3 classes (cat, dog, fish)" in said
    for words in ("4 in hidden folders (.Trash-1000, .all, .ipynb_checkpoints)", "1 hidden file (._0.jpg)"):
        assert words in said
    assert "4 in system folders ($Recycle.Bin, @eaDir, __MACOSX and 1 more)" in said
    inside = fill(tmp_path / ".cache/pictures", *CLASSES)  # the folder that is asked for may be hidden itself
    assert len(look(inside, capfd)[0]) == 9


def test_samples_are_taken_without_what_lies_beside_them(tmp_path, capfd):
    taken = ["condition_000/00000.png", "condition_000/00001.png", "condition_001/00000.png"]
    beside = ["samples.png", "condition_000/condition.png", "condition_000/00000.gif"]
    source, said = look(fill(tmp_path / "a", *taken, *beside, "samples.json"), capfd)
    assert names_of(source) == taken
    assert "3 pictures beside the samples (00000.gif, condition.png, samples.png)" in said
    source, _ = look(fill(tmp_path / "b", *CLASSES, "samples.json"), capfd)  # which someone else has written
    assert names_of(source) == CLASSES


def test_endings_that_pillow_reads_are_taken_and_others_counted(tmp_path, capfd):
    taken = ["a.jfif", "b.JPG", "c.jpe", "d.PNG", "e.tga", "f.avif", "g.ppm", "h.jp2", "i.mpo"]
    others = ["a.txt", "b.TXT", "c.json", "README", "d.pdf", "e.eps", "f.heic", "g.npy"]
    source, said = look(fill(tmp_path, *taken, *others), capfd)
    assert names_of(source) == sorted(taken) and source[0]["image"].shape == (2, 2, 3)
    assert "2 with the ending .txt" in said and "1 without an ending" in said and "1 with the ending .eps" in said
    assert "1 with the ending .heic (pip install pillow-heif reads them)" in said
    none = fill(tmp_path / "none", "a.heic", "b.heic")
    with pytest.raises(UserError, match=r"0 images found, .*; left out: 2 with the ending .heic \(pip install"):
        look(none, capfd)


def test_names_that_are_no_text(tmp_path, capfd):
    fill(tmp_path, *CLASSES)
    odd = os.fsencode(tmp_path) + b"/caf\xe9"
    os.rename(tmp_path / "cat", odd)
    os.rename(odd + b"/0.jpg", odd + b"/\xff.jpg")
    (Path(os.fsdecode(odd)) / "1.jpg").write_text("no picture")
    (Path(os.fsdecode(odd)) / os.fsdecode(b"\xfe.txt")).write_text("")
    source, said = look(tmp_path, capfd, max_bad_share=0.5)
    assert source.class_names == ["caf\\xe9", "dog", "fish"] and "caf\\xe9" in said
    assert len([source[i] for i in range(9)]) == 9
    assert "caf?/1.jpg cannot be read" in capfd.readouterr().out
    held_out, train = (look(tmp_path, capfd, split, validation_share=0.3)[0] for split in ("validation", "train"))
    assert len(held_out) + len(train) == 9


def test_one_image_beside_the_classes_is_named(tmp_path, capfd):
    source, said = look(fill(tmp_path, *CLASSES, "preview.png"), capfd)
    assert source.class_names == [] and len(source) == 10
    assert "no classes, as some lie beside the folders cat, dog, fish: move preview.png away to have those" in said


def test_one_image_is_enough_to_evaluate_and_not_to_train(tmp_path, capfd):
    fill(tmp_path, "only.png")
    source, said = look(tmp_path, capfd)
    assert len(source) == 1 and "1 image\n" in said and source[0]["image"].shape == (2, 2, 3)
    assert len(look(tmp_path, capfd, validation_share=0.05)[0]) == 1
    with pytest.raises(UserError, match="1 image found, at least 2 needed"):
        look(tmp_path, capfd, "train")


def test_what_is_held_out_stays(tmp_path):
    """Of a folder as it was: the same files in the same order, whatever else comes to lie there."""
    fill(tmp_path, *CLASSES)
    config = common.get_data("folder", size=2)
    config.update(path=str(tmp_path), validation_share=0.4)
    before = names_of(data.open_source(config, "validation"))
    assert before == ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "fish/1.jpg"]
    fill(tmp_path, ".hidden/0.jpg", "notes.txt", "__MACOSX/0.jpg")
    assert names_of(data.open_source(config, "validation")) == before


SPLITS = [  # folders for training and validation, and what lies beside them
    ("train", "validation", ["test"]),
    ("train", "val", ["test"]),
    ("training", "validation", []),
    ("Train", "Valid", ["extra"]),
    ("train2017", "val2017", []),
    ("trn", "dev", []),
    ("train_images", "val-images", []),
    ("train", "test", []),
]


@pytest.mark.parametrize(("train", "held_out", "beside"), SPLITS)
def test_folders_with_usual_names_are_splits(train, held_out, beside, tmp_path, capfd):
    for part, count in ((train, 3), (held_out, 1), *((name, 2) for name in beside)):
        fill(tmp_path / part, *(f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(count)))
    sources = {split: look(tmp_path, capfd, split, validation_share=0.05) for split in ("train", "validation")}
    assert [len(source) for source, _ in sources.values()] == [6, 2]
    assert all(source.class_names == ["cat", "dog"] for source, _ in sources.values())
    assert [bool(said) for _, said in sources.values()] == [True, False]  # both say the same, once
    said = sources["train"][1]
    assert f"8 images in 2 classes (cat, dog), 2 held out in {held_out}/, the others in {train}/" in said
    assert all(f"4 beside {train}/ and {held_out}/ ({name}/)" in said for name in beside)
    whole, _ = look(tmp_path, capfd)
    assert len(whole) == 8 and whole.class_names == ["cat", "dog"]
    # To a run that numbered these folders as its classes, they are classes.
    if (train, held_out) != ("train", "validation"):
        old, _ = look(tmp_path, capfd, class_names=(train, held_out))
        assert old.class_names == sorted([train, held_out, *beside])


def test_where_splits_cannot_be_told_one_line_asks(tmp_path, capfd):
    for number, parts in enumerate((["train"], ["train2014", "train2017", "val"], ["validation", "test"], ["val"])):
        for part in parts:
            fill(tmp_path / str(number) / part, *CLASSES)
        with pytest.raises(
            UserError, match=r"which are held out\? Set data.splits.train and data.splits.valid"
        ) as caught:
            look(tmp_path / str(number), capfd, validation_share=0.05)
        assert f"{parts[0]}/" in str(caught.value) and "\n" not in str(caught.value)
    vehicles = fill(tmp_path / "vehicles", "train/0.jpg", "bus/0.jpg", "car/0.jpg")
    assert look(vehicles, capfd)[0].class_names == ["bus", "car", "train"]
    assert look(fill(tmp_path / "flat", "train/0.jpg", "train/1.jpg"), capfd)[0].class_names == ["train"]
    assert part_of("trainer") is part_of("values") is part_of("testimony") is part_of("trainval") is None


def spread(root: Path, *folders: str) -> Path:
    """Two pictures in each of the folders; 'x/{a,b}' are x/a and x/b."""
    for folder in folders:
        before, brace, rest = folder.partition("{")
        names, _, after = rest.partition("}")
        if brace:
            spread(root, *(before + name + after for name in names.split(",")))
        else:
            fill(root / folder, "0.jpg", "1.jpg")
    return root


RECOGNISED = {  # the folders, the images of validation (all, in one order), and the classes
    "yolo": (["images/{train,val,test}"], ["images/val/0.jpg", "images/val/1.jpg"], ""),
    "zip": (["my data/{train,val}/{cat,dog}"], ["my data/val/cat/0.jpg"], "cat dog"),
    "zip in zip": (["a/b/{Training,Validation}/{cat,dog}"], ["a/b/Validation/cat/0.jpg"], "cat dog"),
    "named as a split": (["training_data/{train,valid}/{cat,dog}"], ["training_data/valid/cat/0.jpg"], "cat dog"),
    "below classes": (["{cat,dog}/{train,val,extra}"], ["cat/val/0.jpg", "dog/val/1.jpg"], "cat dog"),
    "other names": (["cat/{train,test}/good", "dog/{trn,dev}"], ["cat/test/good/0.jpg", "dog/dev/1.jpg"], "cat dog"),
    "below images": (["images/{cat,dog}/{train,val}"], ["images/cat/val/0.jpg"], "cat dog"),
    "validate": (["{train,validate}/{cat,dog}"], ["validate/cat/0.jpg"], "cat dog"),
    "holdout": (["{train,holdout}/{cat,dog}"], ["holdout/cat/0.jpg"], "cat dog"),
    "hold-out": (["{Train,Hold-Out}/{cat,dog}"], ["Hold-Out/cat/0.jpg"], "cat dog"),
    "evaluate": (["{train,Evaluation}/{cat,dog}"], ["Evaluation/cat/0.jpg"], "cat dog"),
    "prefix": (["images_{train,val,test}"], ["images_val/0.jpg"], ""),
    "camel": (["images{Train,Val}/{cat,dog}"], ["imagesVal/cat/0.jpg"], "cat dog"),
    "owner": (["flowers-{train2017,val2017}/{cat,dog}"], ["flowers-val2017/cat/0.jpg"], "cat dog"),
    "year": (["2012_img_{train,val}/{cat,dog}"], ["2012_img_val/cat/0.jpg"], "cat dog"),
    "documented": (["{images,segmentations,lines}/{train,val}/{cat,dog}"], ["images/val/cat/0.jpg"], "cat dog"),
}


def test_splits_at_any_place_are_recognised(tmp_path, capfd):
    for name, (folders, held_out, classes) in RECOGNISED.items():
        root = spread(tmp_path / name, *folders)
        (root / "labels/train").mkdir(parents=True, exist_ok=True)
        (root / "labels/train/0.txt").write_text("0 .5 .5 .1 .1")
        train, validation = (look(root, capfd, split, validation_share=0.05)[0] for split in ("train", "validation"))
        inside = set(names_of(validation))
        assert set(held_out) <= inside and not inside & set(names_of(train)), name
        words = {part for file in names_of(train) for part in file.split("/")}
        assert not words & {"val", "validate", "test", "extra", "segmentations", "lines", "labels"}, name
        assert len(train) == len(validation) == 2 * max(1, len(classes.split())), name
        for source in (train, validation):
            assert source.class_names == classes.split(), name
            if classes:
                assert {source[i]["label"] for i in range(len(source))} == {0, 1}, name
        seen = train.source.class_names
        assert look(root, capfd, "train", validation_share=0.05, class_names=tuple(seen))[0].class_names == seen, name


def test_the_documented_layout_is_read_for_images_alone(tmp_path, capfd):
    root = spread(tmp_path, "{images,segmentations,lines,depths,others}/{cat,dog}")
    source, said = look(root, capfd)
    assert source.class_names == ["cat", "dog"] and all(name.startswith("images/") for name in names_of(source))
    assert "16 beside images/ (depths/, lines/, others/ and 1 more)" in said
    old, _ = look(root, capfd, class_names=("images", "segmentations"))  # a run that took them for classes
    assert len(old.class_names) == 5


ASKED = {
    "unlike": ["{train,unlabeled}/{cat,dog}"],
    "many": ["{train,fold0,fold1}/{cat,dog}"],
    "own names": ["{train,my_val}"],
    "two domains": ["{train,test}{A,B}"],
    "both beside": ["{images,masks}_{train,val}"],
    "maps": ["{images,masks}"],
    "maps in splits": ["{train,val}/{images,labels}"],
    "maps in named splits": ["{train,validation}/{images,labels}"],
    "maps in classes": ["{covid,normal}/{images,masks}"],
    "city": ["{leftImg8bit,gtFine}/{train,val}/bonn"],
    "voc": ["a/{JPEGImages,SegmentationClass}"],
    "some classes": ["{cat,dog}/{train,val}", "fish"],
    "two years": ["a/{train2014,train2017,val}/{cat,dog}"],
    "unequal": ["cat/{train,val}", "dog/all/{train,val}"],
}
CLASSES_ALONE = {
    "vehicles": (["{bus,car,train}"], "bus car train"),
    "more vehicles": (["{bus,car}/{1,2}", "train/{2,3}"], "bus car train"),
    "of ImageNet": (["{bullet_train,test_tube,bus}"], "bullet_train bus test_tube"),
    "inside": (["{cat,dog}/{indoor,outdoor}"], "cat dog"),
    "folder": (["all/{cat,dog}"], "all"),
    "images": (["images/{cat,dog}"], "images"),
}


def test_what_may_be_splits_or_maps_is_asked_and_classes_stay(tmp_path, capfd):
    for name, folders in ASKED.items():
        root = spread(tmp_path / "asked" / name, *folders)
        for split in ("train", "validation"):
            with pytest.raises(UserError, match=r"which images are trained on|are the latter maps of the") as caught:
                look(root, capfd, split, validation_share=0.05)
            assert "\n" not in str(caught.value) and str(root) in str(caught.value), name
    for name, (folders, classes) in CLASSES_ALONE.items():
        source, _ = look(spread(tmp_path / "classes" / name, *folders), capfd, "train", validation_share=0.05)
        assert source.class_names == classes.split(), name
    trains = spread(tmp_path / "trains", "{bus,train}/{red,blue}")
    with pytest.raises(UserError, match=r"or data\.class_names to all names if bus, train are classes"):
        look(trains, capfd)
    assert look(trains, capfd, class_names=("bus", "train"))[0].class_names == ["bus", "train"]
    for folders in ASKED["maps in classes"], ASKED["some classes"]:  # an old run's, which took them so
        top = look(spread(tmp_path / "old", *folders), capfd, class_names=("cat", "covid"))[0].class_names
        assert "covid" in top
    for splits in (dict(train="../a", validation="val"), dict(train="train", validation="/")):
        with pytest.raises(UserError, match=r"data.splits.(train|validation)='.*': it is the name of a folder below"):
            look(trains, capfd, splits=splits)
    with pytest.raises(UserError, match="are both 'bus'"):
        look(trains, capfd, splits=dict(train="bus", validation="bus"))
    both, _ = look(spread(tmp_path / "named", "images/{a,b}/{cat,dog}"), capfd, "train", validation_share=0.05,
                   splits=dict(train="images/a", validation="images/b"))  # fmt: skip
    assert both.class_names == ["cat", "dog"] and len(both) == 4


def test_classes_have_the_numbers_of_the_run(tmp_path, capfd):
    """Other classes, as many or fewer, are never taken for those of the run."""
    root = fill(tmp_path / "root", "square/0.jpg", "circle/0.jpg")
    source, _ = look(root, capfd, class_names=("circle", "cross", "square"))
    assert [source[i]["label"] for i in range(2)] == [0, 2] and source.class_names == ["circle", "square"]
    stored = json.loads((ROOT / "tests" / "old_runs" / "class.json").read_text())
    config = completion.upgrade(ConfigDict(checkpoint.to_tuples(stored)))
    assert config.data.class_names == ("circle", "cross", "square")
    completion.check_classes(config, source.class_names)
    resumed = completion.complete_from_data(config, source, config)
    assert resumed.data.class_names == config.data.class_names
    for found, message in (
        (["circle", "cros", "square"], "class 'cros', which the run was not trained with .did you mean 'cross'"),
        (["dog"], "class 'dog', which the run was not trained with; the run has circle, cross, square"),
        ([], "has no classes, the run was trained with 3: circle, cross, square"),
    ):
        with pytest.raises(UserError, match=message):
            completion.check_classes(config, found)
    first_stage = config.first_stage.config
    completion.check_classes(first_stage, ["dog"])  # it sees no classes
    config.data.class_names = ()
    completion.check_classes(config, [])
    with pytest.raises(UserError, match="has 2 classes, the run was trained without any"):
        completion.check_classes(config, ["a", "b"])


def test_numbers_by_name():
    assert number_classes(["b", "a"], ()) == [0, 1] and number_classes(["a", "a"], ["a", "a"]) == [0, 1]
    assert number_classes(["b", "d", "a"], ["a", "b", "c"]) == [1, None, 0]
    assert number_classes(["cafe\u0301"], ["tea", "caf\u00e9"]) == [1]
    assert number_classes(["n01", "n02"], ["0", "1"]) == [0, 1]  # of a converted checkpoint, which has no names
    assert number_classes(["1", "0"], ["0", "1"]) == [1, 0]


def test_names_that_no_font_has_are_numbers_with_a_legend(monkeypatch):
    monkeypatch.setattr(images, "FONTS", ("no font of this name.ttf",))
    names = ("fish, raw", "собака", "猫")
    cond = Label(length=1, vocab_size=3, class_names=names)
    rows = {"label": np.int32([2, 0, 1])}
    assert cond.names(rows) == ("猫", "fish, raw", "собака") and cond.captions(rows) == ("2", "fish, raw", "1")
    assert images.legend(cond.names(rows), cond.captions(rows)) == "2 is 猫, 1 is собака"
    assert Label(length=1, vocab_size=1, class_names=()).captions(rows) == ()
    for asked in ("fish, raw", ["fish", "raw"], ["fish, raw"], '"fish, raw"', "0"):
        assert parse_classes(asked, names) == [0], asked
    assert parse_classes('"fish, raw", 猫,1', names) == [0, 2, 1]
    assert parse_classes("a,A", ("A", "a")) == [1, 0]


def test_names_are_drawn_by_the_first_font_that_has_them():
    """Pillow's own has no Cyrillic; the usual fonts of Linux, macOS and Windows do."""
    if all(images.load_font(name, 16) is None for name in images.FONTS):
        pytest.skip("this machine has no fonts")
    pillow, found = images.load_font("", 20), images.find_font("собака", 20)
    assert images.find_font("dog", 20) is pillow is not found and images.legible(["собака"], [7]) == ("собака",)
    sheet = images.Sheet(np.full((2, 1, 128, 128, 3), 255, np.uint8), ("dog", "собака"))
    drawn = np.asarray(images.draw_sheet(sheet))
    letters = np.full((60, drawn.shape[1]), 255, np.uint8)
    letters = Image.fromarray(letters)
    ImageDraw.Draw(letters).text((2, 30), "собака", fill=0, font=images.find_font("собака", 128 // 6), anchor="lm")
    middle = 2 + 130 + 64
    np.testing.assert_array_equal(drawn[middle - 30 : middle + 30, :, 0], np.asarray(letters))


def test_maps_with_endings_in_capitals(tmp_path, capfd):
    for name in ("images", "lines"):
        fill(tmp_path / name, "0.PNG", "1.png")
    Image.new("L", (2, 2), 9).save(tmp_path / "lines/0.PNG", "PNG")
    os.symlink(tmp_path / "lines", tmp_path / "far")
    shutil.move(tmp_path / "far", tmp_path / "others")
    source, _ = look(tmp_path, capfd, features=("image", "line", "other"))
    assert source[0]["line"].shape == (2, 2, 1) and not source.bad
