"""The big data sets' configs on a handful of files in the true layout, through the true loader."""

import csv
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from PIL import Image

from taming_jax import checkpoint, completion
from taming_jax.loop import train
from tests.tiny import changed, run

SMALL = dict(batch_size=8, steps=2, eval_every=2, log_every=1, data__workers=0)
SMALL_VQ = SMALL | dict(
    data__size=16,
    model__ch=32,
    model__ch_mult=(1, 1),
    model__num_res_blocks=1,
    quantizer__codebook_size=32,
    quantizer__embed_dim=8,
    loss__perceptual_weight=0.0,
    disc__weight=0.0,
)
SMALL_GPT = SMALL | dict(gpt__num_layers=1, gpt__num_heads=2, gpt__embed_dim=32)
SPLITS = {
    "coco": ("train2017", "val2017"),
    "ade20k": ("training", "validation"),
    "drin": ("train", "val"),
    "open_images": ("train", "validation"),
}


@pytest.fixture(scope="module")
def data_sets(annotated_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ as docs/data.md describes it, with the shapes for pictures."""
    root = tmp_path_factory.mktemp("data_sets") / "data"
    files = sorted((annotated_folder / "images").rglob("*.png"))
    for number, file in enumerate(files):
        picture, relative = Image.open(file), file.relative_to(annotated_folder / "images")
        beside = {k: Image.open(annotated_folder / k / relative) for k in ("segmentations", "depths")}
        held_out = number % 4 == 0
        name, split = "ffhq" if number % 2 else "celebahq", "validation" if number % 5 == 0 else "train"
        for folder in (root / "faceshq" / split / name, root / name / split):
            save(picture, folder / f"{number:05}.png")
        for name, (training, validation) in SPLITS.items():
            part = validation if held_out else training
            part = f"{part}/n{number % 3:08}" if name == "drin" else part
            save(picture, root / name / "images" / part / f"{number:012}.jpg")
            if name in ("coco", "ade20k"):
                labels = np.asarray(beside["segmentations"])
                labels = labels if name == "coco" else (labels + np.uint8(1))  # there 0 is nothing, in COCO 255
                save(Image.fromarray(labels), root / name / "segmentations" / part / f"{number:012}.png")
            elif name == "drin":
                save(beside["depths"], root / name / "depths" / part / f"{number:012}.png")
        save(picture, root / "sflckr/images/landscapes" / f"{number}.jpg")
        labels = Image.fromarray(np.asarray(beside["segmentations"]) % 182)
        save(labels, root / "sflckr/segmentations/landscapes" / f"{number}.png")
    for split, held_out in (("train", False), ("val", True)):
        numbers = [n for n in range(len(files)) if (n % 4 == 0) == held_out]
        pictures = [dict(id=n, file_name=f"{n:012}.jpg", width=40, height=30) for n in numbers]
        for name, category in (("instances", 1), ("stuff", 92)):
            boxes = [dict(image_id=n, category_id=category, bbox=[4, 4, 20, 10 + n % 9], iscrowd=0) for n in numbers]
            content = dict(images=pictures, annotations=boxes, categories=[dict(id=category, name=f"a {name}")])
            save_text(json.dumps(content), root / "coco/objects" / f"{name}_{split}2017.json")
        name = "oidv6-train-annotations-bbox.csv" if split == "train" else "validation-annotations-bbox.csv"
        columns = "ImageID Source LabelName Confidence XMin XMax YMin YMax IsOccluded IsTruncated IsGroupOf".split()
        rows = [
            [f"{n:012}", "xclick", label, 1, x, x + 0.5, 0.25, 0.75, 0, 0, int(n % 3 == 0)]
            for n in numbers
            for label, x in (("/m/07j7r", 0.0), ("/m/03jm5", 0.25))
        ]
        (root / "open_images/objects").mkdir(exist_ok=True)
        with open(root / "open_images/objects" / name, "w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    save_text("/m/07j7r,Tree\n/m/03jm5,House\n", root / "open_images/objects/class-descriptions-boxable.csv")
    return root


def save(picture: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)


def save_text(text: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def load(name: str, data_sets: Path, **small) -> ConfigDict:
    """A config with its data where they are here, and its runs beside them."""
    config = changed(importlib.import_module(f"configs.{name}").get_config(), **small)
    if config.data.path:
        config.data.path = str(data_sets.parent / config.data.path)
    if config.task == "transformer":
        for stage in (config.first_stage, config.cond):
            stage.workdir = str(data_sets.parent / stage.workdir) if stage.workdir else ""
    return config


def first_stage(name: str, data_sets: Path) -> Path:
    """The run of a first stage; trained once, two steps."""
    workdir = data_sets.parent / "runs" / name
    if not checkpoint.steps(workdir):
        config = load(re.sub(r"_\d+_vq", "_vq", name), data_sets, **SMALL_VQ)
        with tfds.testing.mock_data(num_examples=16):
            assert train(config, workdir)["code_use"] > 0
    return workdir


TRANSFORMERS = {  # which first stages each takes
    "faceshq_transformer": ("faceshq_vq",),
    "celebahq_transformer": ("faceshq_vq",),
    "ffhq_transformer": ("faceshq_vq",),
    "lsun_transformer": ("lsun_vq",),
    "imagenet_transformer": ("imagenet_16384_vq",),
    "drin_transformer": ("imagenet_vq", "drin_depth_vq"),
    "coco_transformer": ("coco_vq", "coco_segmentation_vq"),
    "ade20k_transformer": ("ade20k_vq", "ade20k_segmentation_vq"),
    "sflckr_transformer": ("sflckr_vq", "sflckr_segmentation_vq"),
    "coco_scenes_transformer": ("coco_8192_vq",),
    "open_images_scenes_transformer": ("open_images_vq",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_both_stages_train_two_steps_and_sample(name, data_sets, tmp_path):
    for stage in TRANSFORMERS[name]:
        first_stage(stage, data_sets)
    config = load(name, data_sets, **SMALL_GPT)
    with tfds.testing.mock_data(num_examples=16):
        assert 0 < train(config, tmp_path / "run")["nll"] < 20
    with Image.open(tmp_path / "run/samples.png") as sheet:
        assert np.asarray(sheet).std() > 0
    stored, _ = completion.load_config(tmp_path / "run")
    if "scenes" in name:
        names = ("Tortoise", "Sea turtle") if "open" in name else ("person", "traffic light")  # the original's all
        assert stored.data.class_names[:2] == names
    if name == "coco_transformer":
        assert stored.data.num_labels == 183 and stored.data.label_shift == 1


@pytest.mark.slow
def test_super_resolution_of_a_file(vq_run, picture_folder, tmp_path):
    """A condition that is made of the image: trained, and then asked for with a small picture."""
    small = SMALL_VQ | dict(data__name="folder", data__path=str(picture_folder), data__downscale=2)
    names = ("low_vq", "superres_transformer")
    low, fine = (importlib.import_module(f"configs.openmoji_{name}").get_config() for name in names)
    train(changed(low, **small), tmp_path / "low_vq")
    config = changed(fine, **SMALL_GPT, first_stage__workdir=str(vq_run), cond__workdir=str(tmp_path / "low_vq"))
    assert 0 < train(config, tmp_path / "run")["nll"] < 20
    Image.open(next(picture_folder.rglob("*.png"))).resize((12, 8)).save(tmp_path / "small.png")
    flags = (
        f"--workdir={tmp_path / 'run'} --out={tmp_path / 'out'} --condition={tmp_path / 'small.png'} --num_samples=8"
    )
    done = run("sample", *flags.split(), "--size=16x24")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "small.png") as given, Image.open(tmp_path / "out/condition_000/condition.png") as seen:
        enlarged = np.asarray(given.resize((24, 16), Image.Resampling.BICUBIC), np.float32)
        assert seen.size == (24, 16) and np.abs(np.asarray(seen) - enlarged).mean() < 8
    assert len(list((tmp_path / "out/condition_000").glob("0*.png"))) == 8
