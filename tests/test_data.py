"""Data: what is read, in which order, and what happens to what cannot be read."""

import dataclasses
import io
import itertools
import os
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageOps, TiffImagePlugin

from configs import common
from taming_jax import completion, data, show_data
from taming_jax.data import files, folder, openmoji, tfds_source, transforms
from taming_jax.errors import UserError
from tests.tiny import changed, run, tiny_transformer, tiny_vq


@pytest.fixture(scope="module")
def openmoji_dir(tmp_path_factory):
    """The real data set, rendered once."""
    return tmp_path_factory.mktemp("tfds")


def config_for(folder_path, **fields):
    config = tiny_vq(folder_path)
    config.data.update(**fields)
    return config


def first_batches(config, count, start=0):
    source = data.open_source(config.data, "train")
    return list(itertools.islice(data.train_batches(source, config, start, data.make_augment(config.data)), count))


def assert_batches_equal(a, b):
    for x, y in zip(a, b, strict=True):
        assert set(x) == set(y)
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


@pytest.mark.slow
def test_openmoji_through_tfds_and_array_record(picture_folder, openmoji_dir):
    """All drawings with a Unicode group, as ArrayRecord; no skin tone across the splits; line art beside colours."""
    config = config_for(picture_folder, name="openmoji/px64", dir=str(openmoji_dir))
    config.data.num_labels = len(openmoji.PALETTE)
    sources = {
        split: tfds_source.source(config.data, split, config.data.name, ("image", "line", "segmentation"))
        for split in ("train", "validation")
    }
    alone = tfds_source.source(config.data, "train", config.data.name, ("image",))
    assert isinstance(alone.records[0]["line"], bytes)  # not unpacked
    np.testing.assert_array_equal(alone[0]["image"], sources["train"][0]["image"])
    assert sum(map(len, sources.values())) == 3773
    assert 0.05 < len(sources["validation"]) / 3773 < 0.15
    assert sources["train"].class_names == list(openmoji.GROUPS)
    assert list(openmoji_dir.rglob("*.array_record*"))

    bases = openmoji.base_and_group()
    pixels = {split: {r["image"].tobytes() for r in source.records} for split, source in sources.items()}
    assert not pixels["train"] & pixels["validation"]
    seen = {
        split: {bases[openmoji.without_selectors(r["hexcode"].decode())][0] for r in source.records}
        for split, source in sources.items()
    }
    assert not seen["train"] & seen["validation"]
    tones = [r for r in sources["train"].records if b"-1F3FE" in r["hexcode"]]
    assert len(tones) > 200  # skin tones are there, on one side

    record = sources["train"].records[0]
    assert record["image"].shape == (64, 64, 3) and record["line"].shape == (64, 64, 1)
    assert record["line"].min() < 64 and record["line"].max() == 255  # dark lines on white
    maps = np.stack([r["segmentation"][..., 0] for r in sources["train"].records])
    assert set(np.unique(maps)) == set(range(len(openmoji.PALETTE)))
    names = list(openmoji.PALETTE)
    (woman,) = [r for r in sources["train"].records if r["hexcode"] == b"1F469-1F3FE"]
    found = {names[label]: share / 64**2 for label, share in enumerate(np.bincount(woman["segmentation"].ravel()))}
    assert found["hair"] > 0.05 and found["skin"] > 0.05 and found["line"] > 0.05, found
    np.testing.assert_array_equal(woman["segmentation"][0], 0)
    labels = {source.records[i]["label"] for source in sources.values() for i in range(100)}
    assert labels == set(range(9))
    assert sources["train"][0]["image"].dtype == np.uint8


def test_imagenet_through_tfds(picture_folder):
    """The path of the paper's data set, on TFDS's mock of it: random sizes, 1000 classes."""
    config = config_for(picture_folder, name="imagenet2012", size=32, resize_factor=1.25)
    with tfds.testing.mock_data(num_examples=9):
        (batch,) = first_batches(config, 1)
        assert len(data.open_source(config.data, "train").class_names) == 1000
    assert batch["image"].shape == (8, 32, 32, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32 and batch["label"].max() < 1000


def test_folder_finds_images_and_classes(picture_folder):
    config = config_for(picture_folder)
    train, held_out = (folder.source(config.data, split) for split in ("train", "validation"))
    assert train.class_names == ["circle", "cross", "square"]
    assert len(train) + len(held_out) == 48 and len(held_out) > 2
    assert not set(train.files) & set(held_out.files)
    for i in range(len(train)):
        assert train.class_names[train[i]["label"]] == train.files[i].parent.name


def test_folder_without_subfolders_has_no_classes(tmp_path):
    for i in range(3):
        Image.new("L", (9, 9), 100 * i).save(tmp_path / f"{i}.png")
    source = folder.source(config_for(tmp_path).data, "train")
    assert source.class_names == [] and source[0]["label"] == 0 and source[0]["image"].shape == (9, 9, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_every_colour_mode_becomes_rgb(mode, tmp_path):
    ending = "tif" if mode == "CMYK" else "png"
    Image.new(mode, (5, 4)).save(tmp_path / f"x.{ending}")
    with Image.open(tmp_path / f"x.{ending}") as image:
        array = transforms.decode(image)
    assert array.shape == (4, 5, 3) and array.dtype == np.uint8
    assert (array == (255 if mode in ("RGBA", "LA", "CMYK") else 0)).all()  # transparent and no ink are white


def test_sixteen_bits_keep_their_range(tmp_path):
    ramp = np.array([[0, 256, 32768, 65535]], np.uint16)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        np.testing.assert_array_equal(transforms.decode(image)[0, :, 0], [0, 1, 128, 255])


def test_celebahq_as_its_tool_writes_it(tmp_path, capfd):
    """Arrays of channels first; one that would have to be unpickled is named and skipped."""
    picture = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    for i in range(3):
        np.save(tmp_path / f"imgHQ0000{i}.npy", picture.transpose(2, 0, 1)[None])
    np.save(tmp_path / "imgHQ00003.npy", np.array([print], object), allow_pickle=True)
    np.save(tmp_path / "features.npy", np.zeros(3))  # none of these
    with (tmp_path / "imgHQ00004.npy").open("wb") as file:
        np.savez(file, picture)
    found = data.open_source(config_for(tmp_path, validation_share=1.0, max_bad_share=0.5).data, "validation")
    assert len(found) == 5
    for i in range(5):
        np.testing.assert_array_equal(found[i]["image"], picture)
    said = capfd.readouterr().out
    assert "imgHQ00003.npy cannot be read" in said and "imgHQ00004.npy cannot be read" in said
    with pytest.raises(ValueError, match="is a picture in colours"):
        folder.read(tmp_path / "imgHQ00000.npy", "depth")


def test_training_and_evaluation_see_the_same_scale(picture_folder):
    """Without chance, a picture is the same to both."""
    config = config_for(picture_folder, random_crop=False, flip=False)
    source = data.open_source(config.data, "train")
    config.batch_size = len(source)
    (trained,), evaluated = (
        first_batches(config, 1),
        data.eval_batches(source, config, data.make_augment(config.data))[0],
    )
    assert {i.tobytes() for i in trained["image"]} == {i.tobytes() for i in evaluated["image"]}


def test_crop_and_flip():
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    record = {"image": image, "label": 1}
    centered = transforms.Augment((4, 4), 1.5, random_crop=False, flip=False, coord=False).centered(record)
    np.testing.assert_array_equal(centered["image"], image[1:5, 2:6])
    augment = transforms.Augment((4, 4), 1.5, random_crop=True, flip=True, coord=True)
    crops = {augment(record, np.random.default_rng(i))["image"].tobytes() for i in range(300)}
    possible = {
        np.ascontiguousarray(crop).tobytes()
        for i in range(3)
        for j in range(5)
        for crop in (image[i : i + 4, j : j + 4], image[i : i + 4, j : j + 4][:, ::-1])
    }
    assert crops == possible


def test_crops_of_any_size():
    """The original's random-2d crop: between `size` pixels and the smallest side, anywhere; the coarse copy with it."""
    ramp = np.linspace(0, 255, 40).astype(np.uint8)
    record = {"image": np.tile(ramp[None, :, None], (32, 1, 3)), "label": 0}
    augment = transforms.Augment((8, 8), 1.0, random_crop=True, flip=False, random_scale=True, downscale=4)
    done = [augment(record, np.random.default_rng(i)) for i in range(200)]
    widths = [(d["image"][0, -1, 0].astype(float) - d["image"][0, 0, 0]) / 255 * 40 for d in done]
    assert 5 < min(widths) < 9 and 27 < max(widths) < 33 and len(set(widths)) > 20
    for d in done[:20]:
        np.testing.assert_array_equal(d["low"], transforms.coarse(d["image"], 4))
    assert len(np.unique(transforms.coarse(np.eye(8, dtype=np.uint8)[..., None].repeat(3, -1) * 255, 8))) == 1
    np.testing.assert_array_equal(augment.centered(record)["image"].shape, (8, 8, 3))


def test_splits_of_a_plain_folder(picture_folder, tmp_path):
    for i, file in enumerate(sorted(picture_folder.rglob("*.png"))):
        target = tmp_path / ("validation" if i % 3 == 0 else "train") / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    config = config_for(tmp_path)
    sources = {split: data.open_source(config.data, split) for split in ("train", "validation")}
    assert [len(source) for source in sources.values()] == [32, 16]
    assert {source[i]["label"] for source in sources.values() for i in range(16)} == {0, 1, 2}
    assert all(source.class_names == ["circle", "cross", "square"] for source in sources.values())


def test_coordinates_and_features_follow_the_crop():
    """A coordinate says which pixel of the picture, as it was flipped, stands there; line art stays with its image."""
    image = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8)
    record = {"image": np.stack([image] * 3, -1), "line": image[..., None], "segmentation": image, "label": 0}
    augment = transforms.Augment((4, 4), 1.5, random_crop=True, flip=True, coord=True)
    flipped = 0
    for i in range(20):
        done = augment(record, np.random.default_rng(i))
        at = np.round(done["coord"] * image.size).astype(int)
        whole = image if done["image"][0, 0, 0] < done["image"][0, 1, 0] else image[:, ::-1]
        flipped += whole is not image
        np.testing.assert_array_equal(done["image"][..., 0], whole.ravel()[at])
        np.testing.assert_array_equal(done["line"][..., 0], done["image"][..., 0])
        np.testing.assert_array_equal(done["segmentation"], done["image"][..., 0])
    assert 0 < flipped < 20


def test_batches_follow_from_seed_and_start_alone(picture_folder):
    config = config_for(picture_folder)
    whole = first_batches(config, 12)  # beyond the first epoch
    assert_batches_equal(first_batches(config, 5, start=7), whole[7:])
    config.seed = 1
    assert not np.array_equal(first_batches(config, 1)[0]["image"], whole[0]["image"])


def test_worker_processes_give_the_same_batches(picture_folder):
    config = config_for(picture_folder)
    whole = first_batches(config, 6)
    config.data.workers = 2
    source = data.open_source(config.data, "train")
    batches = data.train_batches(source, config, 2, data.make_augment(config.data))
    assert_batches_equal([next(batches) for _ in range(4)], whole[2:])
    batches.close()


def test_processes_share_the_global_batches(picture_folder, monkeypatch):
    """Two processes' halves together are the batches of one, epoch after epoch."""
    config = config_for(picture_folder)
    whole = first_batches(config, 12)
    monkeypatch.setattr(data.jax, "process_count", lambda: 2)
    halves = []
    for index in (0, 1):
        monkeypatch.setattr(data.jax, "process_index", lambda index=index: index)
        halves.append(first_batches(config, 12))
    for a, b, both in zip(*halves, whole, strict=True):
        assert len(a["image"]) == 4
        np.testing.assert_array_equal(np.concatenate([a["image"], b["image"]]), both["image"])


def test_every_epoch_has_every_image_once_and_another_order(picture_folder):
    config = config_for(picture_folder, random_crop=False, flip=False)
    source = data.open_source(config.data, "train")
    config.batch_size = len(source)
    epochs = list(itertools.islice(data.train_batches(source, config, 0, data.make_augment(config.data)), 2))
    keys = [[image.tobytes() for image in epoch["image"]] for epoch in epochs]
    assert sorted(keys[0]) == sorted(keys[1]) and len(set(keys[0])) == len(source)
    assert keys[0] != keys[1]


def test_evaluation_sees_every_image_once(picture_folder):
    config = config_for(picture_folder)
    source = data.open_source(config.data, "validation")
    batches = list(data.eval_batches(source, config, data.make_augment(config.data)))
    assert {len(b["image"]) for b in batches} == {config.batch_size}
    mask = np.concatenate([b["mask"] for b in batches])
    images = np.concatenate([b["image"] for b in batches])[mask > 0]
    assert mask.sum() == len(source) == len({i.tobytes() for i in images})


@pytest.fixture
def damaged_folder(tmp_path):
    for i in range(20):
        Image.fromarray(np.full((24, 24, 3), i, np.uint8)).save(tmp_path / f"{i:02}.png")
    good = (tmp_path / "07.png").read_bytes()
    (tmp_path / "07.png").write_bytes(good[: len(good) // 2])  # cut off
    return tmp_path


def png_chunk(name, content, crc=None):
    crc = zlib.crc32(name + content) if crc is None else crc
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def segment(marker, content):
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_damaged_metadata(picture):
    """The picture in many formats, as files whose pixels are good and whose metadata are not."""

    def save(kind, **options):
        file = io.BytesIO()
        picture.save(file, kind, **options)
        return file.getvalue()

    def exif(*entries):  # of TIFF: tag, type, count and value; orientation 6 is first
        parts = [struct.pack("<HHII", *entry) for entry in ((0x112, 3, 1, 6), *entries)]
        return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(parts)) + b"".join(parts) + bytes(4)

    jpeg, png = save("JPEG", quality=100, subsampling=0), save("PNG")
    bomb = zlib.compress(bytes(2**21))
    turned = {
        "points beyond the end": exif((0x11A, 5, 1, 5000)),
        "a number without one": exif((0x10F, 3, 9, 5000)),
        "a text that is a number": exif((0x10F, 2, 4, 0), (0x8769, 4, 1, 2**31)),
        "a width that is a text": exif((0x100, 2, 4, 0x6F6E)),
        "a fraction of nothing": exif((0x11A, 5, 1, 38)) + bytes(8),
    }
    yield from ((f"{name}.jpg", 6, save("JPEG", exif=e, quality=100, subsampling=0)) for name, e in turned.items())
    parts = {
        "short_exif": segment(0xE1, b"Exif\0\0II*\0\0"),
        "no_exif": segment(0xE1, b"Exif\0\0" + bytes(range(200, 256))),
        "xmp": segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Make="\xa8\xff"/>'),
        "icc": segment(0xE2, b"ICC_PROFILE\0\1"),
        "mpf": segment(0xE2, b"MPF\0II*\0\xff\xff\0\0"),
        "photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\xff"),
        "jfif": segment(0xE0, b"JFIF\0"),
        "adobe": segment(0xEE, b"Adobe"),
    }
    yield from ((f"{name}.jpg", 1, jpeg[:2] + part + jpeg[2:]) for name, part in parts.items())
    both = segment(0xE1, exif()) + parts["icc"]
    yield "exif and icc.jpg", 6, jpeg[:2] + both + jpeg[2:]
    parts = {
        "text": png_chunk(b"zTXt", b"a\0\0" + bomb),
        "international": png_chunk(b"iTXt", b"a\0\1\0\0\0" + bomb),
        "profile": png_chunk(b"iCCP", b"a\0\0" + bomb),
        "method": png_chunk(b"iCCP", b"a\0\7"),
        "sum": png_chunk(b"tEXt", b"a\0b", crc=1),
        "exif": png_chunk(b"eXIf", b"\0\1\2"),
        "raw": png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nxyz"),
        "size": png_chunk(b"pHYs", b"\0"),
    }
    for name, part in parts.items():
        yield f"{name}.png", 1, png[:33] + part + png[33:]
        yield f"{name} behind.png", 1, png[:-12] + part + png[-12:]
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[700], tags.tagtype[700] = "an XMP in another type", 2
    tags[0x112] = 1
    yield "xmp.tif", 1, save("TIFF", tiffinfo=tags)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x112], tags[0x8769], tags.tagtype[0x8769] = 6, "none", 2
    yield "orientation.tif", 6, save("TIFF", tiffinfo=tags)
    yield "exif.webp", 6, save("WEBP", lossless=True, exif=turned["a fraction of nothing"])
    made = Image.Exif()
    made[0x112], made[0x10F] = 6, "maker"
    yield "exif.avif", 6, save("AVIF", exif=made.tobytes(), subsampling="4:4:4").replace(b"MM\0*", b"XX\0*")
    yield "none.webp", 1, save("WEBP", lossless=True, exif=b"Exif\0\0none", xmp=b"\xff")


def test_damaged_metadata_never_matter(tmp_path):
    """Every file's pixels are read, and turned where the orientation can still be read."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8).repeat(8, 0).repeat(8, 1))
    pixels = np.asarray(picture).astype(int)
    for name, orientation, content in with_damaged_metadata(picture):
        (tmp_path / name).write_bytes(content)
        found = files.read(tmp_path / name, "image")
        expected = np.rot90(pixels, -1) if orientation == 6 else pixels
        assert found.shape == expected.shape, name
        assert np.abs(found - expected).mean() < (4 if name.endswith(("jpg", "avif")) else 1e-9), name
        assert np.shape(files.read(tmp_path / name, "line")) == (*found.shape[:2], 1)


def test_strips_of_a_picture_are_decoded_like_the_whole(monkeypatch, tmp_path):
    """In every mode and orientation, to the same bytes, as Pillow itself converts the whole."""
    pixels = np.random.default_rng(0).integers(0, 256, (13, 9, 4), np.uint8)
    colours = Image.fromarray(pixels[..., :3])
    pictures = [Image.fromarray(pixels), colours, colours.convert("L"), colours.convert("1"), colours.convert("CMYK")]
    pictures += [colours.convert(mode) for mode in ("P", "YCbCr", "LAB", "HSV")] + [
        Image.fromarray(pixels).convert("LA")
    ]
    pictures += [colours.convert("P"), colours.copy(), colours.convert("L")]
    for picture, transparent in zip(pictures[-3:], (3, tuple(pixels[4, 4, :3].tolist()), 7), strict=True):
        picture.info["transparency"] = transparent
    pictures.append(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257))
    for number, picture in enumerate(pictures):
        for turn in range(1, 9):
            picture.getexif()[0x112] = turn
            monkeypatch.setattr(transforms, "STRIP", 2**20)
            whole = transforms.decode(picture)
            upright = ImageOps.exif_transpose(picture)
            if picture.mode == "I;16":
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
            np.testing.assert_array_equal(whole, np.asarray(upright.convert("RGB")), err_msg=f"{number} {turn}")
            grey = np.asarray(Image.fromarray(whole).convert("L"))
            for strip in (1, 20):
                monkeypatch.setattr(transforms, "STRIP", strip)
                np.testing.assert_array_equal(transforms.decode(picture), whole)
                np.testing.assert_array_equal(files.to_feature(picture, "line")[..., 0], grey)
    for values in (pixels.view("<f4")[..., 0].clip(-9, 9), pixels[..., 0], pixels[..., 1].astype(np.uint16) * 200):
        values = np.nan_to_num(values)
        floats = values.astype(np.float32)
        expected = 2 * (floats - floats.min()) / max(1e-8, floats.max() - floats.min()) - 1
        np.testing.assert_array_equal(files.to_feature(Image.fromarray(values), "depth")[..., 0], expected)


def test_labels_are_shifted_and_never_wrap():
    labels = np.uint8([[0, 7, 253, 255]])
    for shift, expected in ((0, [0, 7, 253, 255]), (1, [1, 8, 254, 0]), (2, [2, 9, 255, 0])):
        found = files.to_feature(Image.fromarray(labels), "segmentation", shift)
        assert found.tolist() == [expected] and found.dtype == np.uint8
    with pytest.raises(UserError, match=r"map.png holds the label 253 plus data.label_shift=3: labels are at most 255"):
        files.to_feature(Image.fromarray(labels), "segmentation", 3, "map.png")


def test_files_that_have_no_end_are_refused(tmp_path):
    for name, kind in (("0.png", "image"), ("0.txt", "caption"), ("imgHQ0.npy", "image"), ("0.json", "segmentation")):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is a device or a pipe"):
            files.read(tmp_path / name, kind)
        with pytest.raises(ValueError, match="/dev/zero is a device or a pipe"):
            files.read(Path("/dev/zero"), kind)


def refused(file, content):
    """What is said of a file with this content."""
    file.write_bytes(content)
    with pytest.raises(UserError) as caught, files.refusing("x"):
        files.open_picture(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sizes_are_known_before_memory_is_taken(tmp_path):
    """Small files that say that they are large, and programs in place of pictures: one line each, no memory."""
    header = struct.pack(">IIBBBBB", 20000, 30000, 8, 2, 0, 0, 0)
    large = files.PNG + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, dict(descr="|u1", fortran_order=False, shape=(1, 3, 2**20, 2**20)))
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    tracemalloc.start()
    assert "x cannot be read: 600 million pixels, over PIL's limit against" in refused(tmp_path / "bomb.png", large)
    header = struct.pack(">IIBBBBB", 13300, 13300, 8, 4, 0, 0, 0)
    large = files.PNG + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")
    assert "x cannot be read: 13300x13300, 177 million pixels: over the limit of 120" in refused(tmp_path / "a", large)
    damaged = large[:33] + png_chunk(b"pHYs", bytes(1)) + large[33:]
    assert "13300x13300, 177 million pixels: over the limit of 120" in refused(tmp_path / "a", damaged)
    assert "x cannot be read: mmap length" in refused(tmp_path / "imgHQ00000.npy", array.getvalue() + bytes(99))
    assert "cannot identify image file" in refused(tmp_path / "program.png", program)
    for sides, message in (((2, 4000), "enlarged to 256x512000 to cover"), ((4000, 2), "enlarged to 512000x256 to")):
        with pytest.raises(ValueError, match=message):
            transforms.fit({"image": np.zeros((*sides, 3), np.uint8), "label": 0}, (256, 256))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert transforms.fit({"image": np.zeros((2, 400, 3), np.uint8), "label": 0}, (256, 256))["image"].shape[0] == 256
    assert not set(files.FORMATS) & {"EPS", "WMF"} and {"PNG", "JPEG", "WEBP", "TIFF", "AVIF"} <= set(files.FORMATS)


def test_texts_that_are_none(tmp_path):
    file = tmp_path / "0.txt"
    for content, message in (
        (b"caf\xe9", "is not in UTF-8"),
        (b"a\0b", "holds zero bytes"),
        (b"a" * (2**20 + 1), "holds more than 1048576 bytes"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"0\.txt {message}"):
            files.read(file, "caption")
    for content, text in ((b"", ""), ("a café\r\nb\rc\n".encode(), "a café\nb\nc\n")):
        file.write_bytes(content)
        assert files.read(file, "caption") == text


def test_anything_that_goes_wrong_with_one_record_leaves_it_out(tmp_path, capfd):
    """In training another takes its place, with the same random numbers; in evaluation its row counts for nothing."""
    for i in range(30):
        Image.fromarray(np.full((24, 24, 3), i, np.uint8)).save(tmp_path / f"{i:02}.png")
    (tmp_path / "04.png").write_bytes(b"none")
    Image.new("RGB", (60000, 1)).save(tmp_path / "09.png")
    config = config_for(tmp_path, max_bad_share=0.1, validation_share=1.0)
    config.batch_size = 8
    augment = data.make_augment(changed(config, data__size=32).data)
    source = data.open_source(config.data, "validation")
    batches = list(data.eval_batches(source, config, augment))
    seen = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert sorted(seen[mask > 0]) == [i for i in range(30) if i not in (4, 9)] and len(mask) == 32
    said = capfd.readouterr().out.splitlines()[1:]  # the first is about the folder
    assert len(said) == 2 and said[0] != said[1] and all("skipped" in line for line in said)
    assert any("04.png cannot be read (cannot identify image file" in line for line in said)
    assert any(
        "09.png cannot be read (1x60000 pixels would be enlarged to 36x2160000 to cover 32x32" in line for line in said
    )

    drawn = dataclasses.replace(augment, random_crop=True, resize_factor=2.0)
    place = next(i for i in range(30) if source.source.files[i].name == "09.png")
    for bad in (set(), {place}):  # found now, or before
        source.bad = set(bad)
        found = data.read_augmented(source, drawn, place, np.random.default_rng(0))
        expected = drawn(source.source[place + 1], np.random.default_rng(0))
        np.testing.assert_array_equal(found["image"], expected["image"])
    capfd.readouterr()


def test_batches_are_those_of_records_that_are_augmented_after_they_are_read(picture_folder):
    """The order and the random numbers that old runs have been trained with."""
    for fields in (dict(), dict(random_scale=True), dict(random_crop=False)):
        config = config_for(picture_folder, **fields)
        source, augment = data.open_source(config.data, "train"), data.make_augment(config.data)
        examples = grain.MapDataset.source(source).seed(config.seed).shuffle().repeat(None, reseed_each_epoch=True)
        expected = examples.random_map(augment).batch(config.batch_size, drop_remainder=True)
        assert_batches_equal(first_batches(config, 4, start=2), [expected[i] for i in range(2, 6)])


def test_a_damaged_image_is_named_counted_and_skipped(damaged_folder, capfd):
    config = config_for(damaged_folder, max_bad_share=0.1, random_crop=False, flip=False, validation_share=0.01)
    config.batch_size = 4
    batches = first_batches(config, 10)
    assert all(b["image"].shape == (4, 16, 16, 3) for b in batches)
    assert 7 not in {int(i) for b in batches for i in b["image"][:, 0, 0, 0]}
    printed = capfd.readouterr().out
    assert printed.count("07.png cannot be read") == 1 and "skipped, 1 of 19" in printed


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_damaged_images_are_an_error(damaged_folder, workers):
    for i in range(5):
        (damaged_folder / f"{i:02}.png").write_text("no picture")
    config = config_for(damaged_folder, max_bad_share=0.1, workers=workers)
    config.batch_size = 4
    with pytest.raises(UserError, match=r"\.png cannot be read .* more than data\.max_bad_share=0\.1"):
        first_batches(config, 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(path="/nowhere/at/all"), "data.path=/nowhere/at/all: there is no such folder"),
        (dict(path=""), "data.path is empty"),
        (dict(resize_factor=0.5), "data.resize_factor=0.5: below 1"),
        (dict(validation_share=1.0), "leaves no image to train on"),
        (dict(name="imagnet2012"), "did you mean 'imagenet2012'"),
        (dict(name="imagenet2012"), "data set imagenet2012 is not in"),
        (dict(name="openmoji/px65"), "px64"),
    ],
)
def test_what_bad_data_gets(fields, message, picture_folder, tmp_path):
    config = config_for(picture_folder, **({"dir": str(tmp_path)} | fields))
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as caught:
        data.open_source(config.data, "train")
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="0 images found"):
        data.open_source(config_for(tmp_path).data, "train")


@pytest.mark.parametrize("kind", ["segmentation", "depth", "line", "other"])
def test_what_belongs_to_a_picture(kind, annotated_folder):
    config = common.get_data("folder", size=16)
    config.update(path=str(annotated_folder), features=("image", kind), validation_share=0.2)
    config.update(label_shift=1, num_labels=4)
    source = data.open_source(config, "train")
    record = source[0]
    done = data.make_augment(config)(record, np.random.default_rng(0))
    assert source.class_names == ["circle", "cross", "square"]
    if kind == "segmentation":  # 255 is no label, and becomes 0; circles are 0, and become 1
        assert set(np.unique(record[kind])) == {0, 1} and done[kind].shape == (16, 16)
    elif kind == "depth":
        assert record[kind].min() == -1 and record[kind].max() == 1 and done[kind].shape == (16, 16, 1)
        grey = np.asarray(Image.fromarray(record["image"]).convert("L")).astype(np.float32)
        np.testing.assert_allclose(record[kind][..., 0], 2 * (grey - grey.min()) / np.ptp(grey) - 1, atol=1e-5)
    elif kind == "other":
        np.testing.assert_array_equal(record[kind], 255 - record["image"])
        np.testing.assert_allclose(done[kind].astype(int), 255 - done["image"].astype(int), atol=1)  # scaled alike
    else:
        assert record[kind].dtype == np.uint8 and done[kind].shape == (16, 16, 1)


def test_a_label_that_the_model_lacks_stops_at_once(annotated_folder):
    config = common.get_data("folder", size=16)
    config.update(path=str(annotated_folder), features=("image", "segmentation"), num_labels=4)
    with pytest.raises(UserError, match=r"png holds the label 255; the model has the labels 0 to 3"):
        data.open_source(config, "train")[0]


@pytest.mark.slow
def test_a_label_that_the_model_lacks_stops_openmoji_too(openmoji_dir):
    config = common.get_data("openmoji/px64", size=16)
    config.update(dir=str(openmoji_dir), features=("image", "segmentation"), num_labels=1)
    with pytest.raises(UserError, match=r"of openmoji/px64 train holds the label \d+; the model has the labels 0 to 0"):
        data.open_source(config, "train")[0]


@pytest.mark.parametrize("blue", [100, 255])
def test_colours_are_no_depths(blue, tmp_path):
    """The bytes of an opaque picture are floats far off, or none."""
    Image.new("RGBA", (4, 4), (10, 20, blue, 255)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"photo.png holds the depth (-\d.*e\+38|nan): it is no map of depths"):
        folder.read(tmp_path / "photo.png", "depth")


def test_splits_that_are_folders(annotated_folder, tmp_path):
    for kind in ("images", "depths"):
        for split, part in (("train", "circle"), ("val", "cross")):
            shutil.copytree(annotated_folder / kind / part, tmp_path / kind / split)
    config = common.get_data("folder", size=16)
    config.update(path=str(tmp_path), features=("image", "depth"), splits=dict(train="train", validation="val"))
    assert len(data.open_source(config, "train")) == len(data.open_source(config, "validation")) == 16
    config.splits.validation = "validation"  # which is not there
    with pytest.raises(UserError, match=r"images/train is there, .*images/validation is not"):
        data.open_source(config, "train")
    config.splits.validation = "val"
    (tmp_path / "depths" / "val" / "3.png").unlink()
    with Image.open(tmp_path / "depths" / "val" / "2.png") as picture:
        picture.convert("RGB").save(tmp_path / "depths" / "val" / "2.png")
    config.max_bad_share = 0.2
    held_out = data.open_source(config, "validation")
    assert len([held_out[i] for i in range(16)]) == 16 and len(held_out.bad) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(features=("image", "depth")), "there is no folder images/"),
        (
            dict(features=("image", "words")),
            "folders hold caption, depth, line, objects, other, segmentation, no words",
        ),
    ],
)
def test_a_folder_without_what_is_needed(fields, message, picture_folder):
    config = common.get_data("folder", size=16)
    config.update(path=str(picture_folder), **fields)
    with pytest.raises(UserError, match=message):
        data.open_source(config, "train")


def test_show_data_draws_the_conditions_of_a_transformer(vq_run, annotated_folder):
    config = changed(tiny_transformer(vq_run), cond__name="objects", data__path=str(annotated_folder))
    config.cond.layout.update(min_objects=1, max_objects=2, num_tokens=64)
    sheet = show_data.look(completion.complete(config), "validation")
    assert sheet.images.shape[2:] == (16, 16, 3) and sheet.captions[0] == "validation"
    assert len(np.unique(sheet.images[:, 1::2])) > 2 and not np.array_equal(sheet.images[:, ::2], sheet.images[:, 1::2])


@pytest.mark.parametrize("fields", [dict(cond__name="class"), dict(cond__name="coordinates", cond__down=2)])
def test_show_data_draws_conditions_that_are_no_pictures(fields, vq_run):
    sheet = show_data.look(completion.complete(changed(tiny_transformer(vq_run), **fields)), "train")
    beside = sheet.images[:, 1::2]
    assert sheet.images.shape[1] == 8 and (beside == beside[..., :1]).all()  # grey
    if fields["cond__name"] == "class":
        words = np.unique(beside.reshape(-1, 16 * 16 * 3), axis=0)
        assert len(words) == 3 and (words.min(1) < 100).all()
    else:
        assert (np.diff(beside[..., 0].astype(int), axis=-2) >= 0).all() and beside.std() > 10


@pytest.mark.slow
def test_show_data_draws_what_a_config_sees_or_says_what_is_missing(annotated_folder, tmp_path):
    command = ["show_data", "--config=configs/openmoji_segmentation_vq.py", f"--out={tmp_path / 'check.png'}"]
    fields = "data.name=folder data.size=16 data.label_shift=1 model.ch_mult=(1,1) model.out_ch=4".split()
    command += [f"--config.{field}" for field in fields]
    done = run(*command, f"--config.data.path={annotated_folder}")
    assert done.returncode == 0 and "3 classes: circle, cross, square" in done.stdout, done.stderr
    with Image.open(tmp_path / "check.png") as picture:
        assert picture.width > picture.height / 2 > 100
    ahead = ["show_data", "--config=configs/coco_transformer.py"]
    ahead += ["--first_stage=configs/coco_vq.py", "--cond=configs/coco_segmentation_vq.py"]  # neither has a run
    none = run(*ahead, "--config.data.path=/none")
    assert none.returncode == 2 and "data.path=/none: there is no such folder; docs/data.md has" in none.stderr
    lacking = run(*command, f"--config.data.path={tmp_path}")
    assert lacking.returncode == 2 and "there is no folder images/" in lacking.stderr
