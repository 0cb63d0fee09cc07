"""A loaded first stage: pictures to ids and back."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

import taming_jax
from taming_jax import checkpoint
from taming_jax.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(vq_run) -> Tokenizer:
    return taming_jax.Tokenizer.load(vq_run)


@pytest.fixture(scope="module")
def photos(picture_folder) -> list[Image.Image]:
    files = sorted(picture_folder.rglob("*.png"))[:5]
    return [Image.open(file).convert("RGB").resize((20, 16)) for file in files]


def test_pictures_become_the_models_own_ids_whatever_they_come_as(tokenizer, photos, vq_run, tmp_path):
    arrays = np.stack([np.asarray(photo) for photo in photos])
    ids = tokenizer.encode(arrays)
    assert ids.shape == (5, 8, 10) and ids.dtype == np.int32
    params = checkpoint.load_net(vq_run, tokenizer.step, "gen", tokenizer.stage.parameter_shapes())
    expected = tokenizer.stage.model.apply({"params": params}, arrays / 127.5 - 1, method="encode")[1]["ids"]
    np.testing.assert_array_equal(ids, expected)
    for i, photo in enumerate(photos):
        photo.save(tmp_path / f"{i}.png")
    for same in (photos, arrays / 127.5 - 1, [str(tmp_path / f"{i}.png") for i in range(5)], jax.numpy.asarray(arrays)):
        np.testing.assert_array_equal(tokenizer.encode(same), ids)
    mixed = [arrays[0], arrays[1] / 127.5 - 1, photos[2], str(tmp_path / "3.png"), jax.numpy.asarray(arrays[4])]
    np.testing.assert_array_equal(tokenizer.encode(mixed), ids)
    grey = np.linspace(-1, 1, 16 * 20).reshape(1, 16, 20)
    np.testing.assert_array_equal(tokenizer.encode(list(grey)), tokenizer.encode(np.stack([grey] * 3, -1)))
    np.testing.assert_array_equal(tokenizer.encode(arrays, batch_size=1), ids)  # 8 at once, one for each device


def test_ids_become_pictures(tokenizer, photos):
    ids = tokenizer.encode(photos)
    images = tokenizer.decode(ids)
    assert images.shape == (5, 16, 20, 3) and images.dtype == np.uint8
    codebook = tokenizer.codebook
    assert codebook.shape == (32, 8) and codebook.dtype == np.float32 and codebook.std() > 0
    one = tokenizer.decode(ids[3:4])
    np.testing.assert_allclose(one[0].astype(int), images[3], atol=1)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("encode", np.zeros((16, 16, 3), np.uint8), "images: an array of shape (16, 16, 3); give an array [B,H,W,C]"),
        ("encode", np.zeros((1, 15, 16, 3), np.uint8), "images: 15x16 pixels; they are multiples of 2"),
        ("encode", [], "images is empty"),
        ("encode", ["nothing.png"], "images[0] cannot be read"),
        ("encode", [np.zeros((16, 16, 3), np.uint8), np.zeros((16, 18, 3), np.uint8)], "16x16 and 16x18 pixels"),
        ("encode", np.zeros((1, 16, 16, 3), np.int64), "an array of int64: a picture is uint8"),
        ("encode", np.full((1, 16, 16, 3), np.nan), "numbers that are not finite"),
        ("decode", np.full((1, 8, 8), 32), "ids: from 32 to 32; this tokenizer has 0 to 31"),
        ("decode", np.zeros((8, 8), np.int32), "ids: int32 of shape (8, 8); they are integers [B,h,w]"),
        ("decode", np.zeros((1, 8, 8)), "ids: float64 of shape (1, 8, 8)"),
    ],
)
def test_what_is_none_is_refused_with_one_line(method, given, message, tokenizer):
    with pytest.raises(taming_jax.UserError, match=re.escape(message)) as caught:
        getattr(tokenizer, method)(given)
    assert "\n" not in str(caught.value)


def test_a_transformers_run_is_no_tokenizer(transformer_run):
    with pytest.raises(taming_jax.UserError, match="is a 'transformer' run; a tokenizer is a first stage's"):
        Tokenizer.load(transformer_run)
