"""Samples of a run: what is asked for, what is painted, and the command's files."""

import dataclasses
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from taming_jax import completion, gallery, permute, request, sharding
from taming_jax.completion import load_config
from taming_jax.conditions.label import parse_classes
from taming_jax.errors import UserError
from taming_jax.painting import Kept
from taming_jax.sampling.draw import Sampling
from taming_jax.sampling.rejection import accept
from taming_jax.sampling.tiling import TILE
from taming_jax.second_stage import make_second_stage
from tests.tiny import changed, paint, run, tiny_transformer


def test_sizes(transformer_run):
    config, _ = load_config(transformer_run)
    stage = make_second_stage(config)
    parse = lambda size: request.parse_size(size, stage, config)  # noqa: E731
    assert parse(None) == (16, 16) and parse("16x18") == parse((16, 18)) == (16, 18)
    for size, message in (("8x32", "from 16 on"), ("17x32", "multiples of 2"), ("big", "height x width")):
        with pytest.raises(UserError, match=message):
            parse(size)
    for fields, message in (
        (dict(order="z_curve"), "this transformer's order is 'z_curve'"),
        (dict(cond__name="coordinates", cond__down=16), "has 1 ids where there are 8 codes"),
    ):
        with pytest.raises(UserError, match=message):
            other = make_second_stage(changed(load_config(transformer_run)[0], **fields))
            request.parse_size("18x18", other, config)
    with pytest.raises(
        UserError, match="stride=2: ways of a window that follows rows; this transformer's order is 'z_c"
    ):
        make_second_stage(changed(config, order="z_curve")).make_painter(stride=2)


def test_classes_by_name_and_number():
    names = ("Cats", "Dogs", "Food & Drink")
    assert parse_classes(None, names) == [0, 1, 2]
    assert parse_classes("dogs, 2", names) == [1, 2]
    assert parse_classes(None, ()) == [0]
    assert len(parse_classes(None, tuple(map(str, range(1000))))) == 16
    for text, message in (("3", "no class '3'"), ("-1", "no class '-1'"), ("Catz", "did you mean 'cats'")):
        with pytest.raises(UserError, match=message):
            parse_classes(text, names)


def test_given_codes_stay(generator, picture_folder, tmp_path):
    """What is given is read as asked, and is in the samples; the rest is not the picture's."""
    photo, mask = picture_folder / "square" / "3.png", tmp_path / "mask.png"

    def read(image, keep, size=(16, 16)):
        return request.read_kept(generator.stage, str(image), str(keep), size)[0]

    for keep, rows, columns in (("top", np.s_[:4], np.s_[:]), ("right", np.s_[:], np.s_[4:])):
        expected = np.zeros((8, 8), bool)
        expected[rows, columns] = True
        np.testing.assert_array_equal(read(photo, keep).codes, expected)
    with Image.open(photo) as picture:
        white = np.full(picture.size[::-1], 255, np.uint8)
    white[: len(white) // 2] = 0
    Image.fromarray(white).save(mask)
    given = read(photo, mask)
    assert given.codes[5:].all() and not given.codes[:4].any()
    with pytest.raises(UserError, match=r"image=top cannot be read"):
        read("top", photo)
    for keep, message in (("topp", "did you mean 'top'"), (str(picture_folder / "cross" / "0.png"), "as large")):
        with pytest.raises(UserError, match=message):
            read(photo, keep)
    Image.new("L", (3_000_000, 1)).save(tmp_path / "line.png")
    with pytest.raises(UserError, match=r"^image cannot be read: 1x3000000 pixels would be enlarged to 16x48000000"):
        read(tmp_path / "line.png", "top")

    seen = {}
    whole = Kept(given.image, np.ones((8, 8), bool), None, (16, 16))
    half = Kept(given.image, np.arange(8)[:, None] < np.full(8, 4), None, (16, 16))
    for name, part in (("whole", whole), ("half", half), ("none", None)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("taming_jax.painting.decode_tiled", lambda decode, grid, tile: np.asarray(grid, np.uint8))
            patch.setattr("taming_jax.painting.restore_kept", lambda grid, kept, patch: grid)
            seen[name] = paint_codes(generator, part)
    assert (seen["whole"] == seen["whole"][0]).all()
    np.testing.assert_array_equal(seen["half"][:, :4], seen["whole"][:, :4])
    assert (seen["half"][:, 4:] != seen["whole"][:, 4:]).any() and (seen["none"][:, :4] != seen["half"][:, :4]).any()


def paint_codes(generator, kept: Kept | None) -> np.ndarray:
    rows = {"label": np.zeros(8, np.int32), "index": np.arange(8, dtype=np.int32)}
    plan = dataclasses.replace(generator.plan(), kept=kept)
    return np.concatenate(list(generator.paint(rows, plan, 8, progress=False)))


def test_codes_come_back_in_their_places(vq_run, tmp_path):
    """Order and remapping are undone before decoding: of a transformer that says t at step t."""
    config = changed(tiny_transformer(vq_run), order="spiral_in", first_stage__used=tuple(range(31, -1, -1)))
    stage = make_second_stage(completion.complete(config))
    order = permute.ORDERS["spiral_in"](8, 8)
    said = np.arange(64) % 32
    seen = {}

    def sample_full(decode, cache, prefix, *options):
        return jnp.asarray(said[None].repeat(len(prefix), 0))

    class Decoder:
        def apply(self, variables, ids, method):
            seen["grid"] = np.asarray(ids)
            return jnp.zeros((len(ids), 16, 16, 3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taming_jax.second_stage.sample_full", sample_full)
        stage = dataclasses.replace(stage, first=dataclasses.replace(stage.first, model=Decoder()))
        patch.setattr(type(stage.first), "patch", 2)
        with jax.set_mesh(sharding.make_mesh(config.mesh)):
            stage.sample({}, {}, jnp.zeros((2, 1), jnp.int32), None, Sampling())
    np.testing.assert_array_equal(seen["grid"][0].ravel()[order], 31 - said)


def test_a_sample_depends_on_seed_class_and_number_alone(generator):
    many = paint(generator, [0, 2], 4)
    one = paint(generator, [2], 3, batch_size=16)
    other = paint(generator, [2], 3, seed=1)
    # The codes are the same; their decoding may round otherwise in a batch of another size.
    np.testing.assert_allclose(many[1, :3].astype(int), one[0], atol=1)
    assert (one != other).any()


def test_sample_command_writes_what_made_it_and_overwrites_nothing(transformer_run, tmp_path):
    args = (f"--workdir={transformer_run}", f"--out={tmp_path}", "--num_samples=3", "--batch_size=8", "--seed=3")
    done = run("sample", *args)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.glob("class_*")) == ["class_000", "class_001", "class_002"]
    with Image.open(tmp_path / "class_001" / "00002.png") as picture:
        assert picture.size == (16, 16) and picture.text["seed"] == "3" and picture.text["class"] == "cross"
    assert "passes" not in gallery.read_record(tmp_path / "samples.json")  # which no other transformer takes
    before = (tmp_path / "samples.png").read_bytes()
    assert "already painted" in run("sample", *args).stdout
    refused = run("sample", *args, "--temperature=0.5")
    assert refused.returncode == 2 and "samples made with other options" in refused.stderr
    assert (tmp_path / "samples.png").read_bytes() == before


def test_what_is_no_record_of_samples_gets_one_line(tmp_path):
    record, made_by = tmp_path / "samples.json", {"seed": 3, "classes": "a,b", "tile": TILE}
    made_by |= {"guidance_power": 0.0, "guidance_codes": 0}
    gallery.check_out(tmp_path, made_by)
    for text, message in (
        ('{"seed": 3, "classes": "a, b"}', None),
        ('{"seed": 4, "classes": "a,b"}', "made with other options"),
        ('{"classes": 5}', "is none of samples"),
        ('{"classes": ["a"]}', "is none of samples"),
        ("[]", "is none of samples"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("9" * 5000, "cannot be read"),
        ("\udcff", "cannot be read"),
        ('{"a":' * 400 + "3" + "}" * 400, "made with other options"),
    ):
        record.write_text(text, errors="surrogateescape")
        with pytest.raises(UserError, match=message) if message else nullcontext():
            gallery.check_out(tmp_path, made_by)


@pytest.mark.slow
def test_a_large_image_around_a_given_part(transformer_run, picture_folder, tmp_path):
    """The command as it is typed; how it is computed is in tests/test_windows.py."""
    photo, mask = tmp_path / "photo.png", tmp_path / "mask.png"
    with Image.open(picture_folder / "square" / "3.png") as picture:
        picture.resize((32, 20)).save(photo)
    keep = np.zeros((20, 32), np.uint8)
    keep[4:12, 6:21] = 255
    Image.fromarray(keep).save(mask)
    out = tmp_path / "out"
    args = (
        f"--workdir={transformer_run}",
        f"--out={out}",
        "--num_samples=2",
        "--batch_size=8",
        "--classes=1,2",
        "--npz",
    )
    done = run("sample", *args, "--size=20x32", "--stride=2", f"--image={photo}", f"--keep={mask}", "--animate=gif")
    assert done.returncode == 0, done.stderr
    pictures = sorted(out.glob("class_*/0*.png"))
    with Image.open(pictures[2]) as picture:
        assert len(pictures) == 4 and picture.size == (32, 20) and picture.text["keep"] == str(mask)
        assert (picture.text["label"], picture.text["index"], picture.text["tile"]) == ("2", "0", "64")
    with Image.open(out / "class_002/condition.png") as shown, Image.open(photo) as whole:
        stays = np.where((keep > 0)[..., None], np.asarray(whole), 160)
        np.testing.assert_array_equal(np.asarray(shown), stays)
    with np.load(out / "samples.npz") as stored:
        painted, labels = stored["arr_0"].astype(int), stored["arr_1"]
    assert painted.shape == (4, 20, 32, 3) and labels.tolist() == [1, 1, 2, 2]
    with Image.open(out / "class_001" / "00000.gif") as painting:
        painting.seek(painting.n_frames - 1)
        last = np.asarray(painting.convert("RGB").resize((32, 20), Image.Resampling.BOX)).astype(int)
    assert np.abs(last - painted[0]).mean() < 8  # in 256 colours
    # What is stopped goes on with what is missing.
    pictures[2].unlink()
    before = [p.stat().st_mtime_ns for p in pictures if p.exists()]
    done = run("sample", *args, "--size=20x32", "--stride=2", f"--image={photo}", f"--keep={mask}")
    assert done.returncode == 0, done.stderr
    assert [p.stat().st_mtime_ns for p in (*pictures[:2], pictures[3])] == before
    with Image.open(pictures[2]) as picture:
        np.testing.assert_allclose(np.asarray(picture).astype(int), painted[2], atol=1)


def test_what_was_refused_leaves_no_trace(transformer_run, tmp_path):
    args = (
        f"--workdir={transformer_run}",
        f"--out={tmp_path / 'out'}",
        "--size=18x18",
        "--num_samples=1",
        "--classes=0",
    )
    refused = run("sample", *args, "--stride=9")
    assert refused.returncode == 2 and "stride=9: it must be 1 to 4" in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_sampling_names_a_first_stage_that_was_moved(transformer_run, tmp_path):
    done = run("sample", f"--workdir={transformer_run}", f"--out={tmp_path / 'out'}", f"--first_stage={tmp_path}")
    assert done.returncode == 2 and "holds no readable checkpoint of step 4" in done.stderr
    refused = run("sample", f"--workdir={transformer_run}", f"--out={transformer_run}")
    assert refused.returncode == 2 and "is a run directory" in refused.stderr


def test_rejection_keeps_the_best_of_each_label():
    images = np.arange(7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    labels = np.array([0, 1, 0, 1, 0, 0, 2])

    def brightness(images, labels):
        return images.mean((1, 2, 3)) * (1 - 2.0 * (labels == 1))  # label 1 wants dark ones

    np.testing.assert_array_equal(accept(images, labels, brightness, 0.5, batch_size=3), [1, 4, 5, 6])
    np.testing.assert_array_equal(accept(images, labels, brightness, 0.01), [1, 5, 6])
    with pytest.raises(ValueError, match="must be in"):
        accept(images, labels, brightness, 0)
    with pytest.raises(ValueError, match="one each"):
        accept(images, labels, lambda images, labels: 1.0, 0.5)
