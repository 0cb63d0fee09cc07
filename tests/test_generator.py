"""A loaded second stage: what it paints, what stays, what it refuses, and that it compiles once."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from jax import monitoring
from PIL import Image

import taming_jax
from taming_jax import checkpoint, painting
from taming_jax.generator import Generator
from tests.tiny import records, run

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """The programs that are compiled from here on."""
    seen = []

    def listen(event: str, seconds: float, **_) -> None:
        seen.append(event) if event == COMPILED else None

    monitoring.register_event_duration_secs_listener(listen)
    yield seen
    monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
def test_other_classes_seeds_and_temperatures_compile_nothing(generator, compilations):
    quietly = dict(num_samples=4, progress=False)
    first = generator.sample(classes=["cross", "circle"], **quietly)
    assert first.shape == (8, 16, 16, 3) and first.dtype == np.uint8
    compilations.clear()
    np.testing.assert_array_equal(generator.sample(classes="cross, circle", **quietly), first)
    other = generator.sample(classes=[2, 0], seed=7, temperature=0.5, top_k=3, top_p=0.9, **quietly)
    assert not compilations and (other != first).any()
    again = generator.sample(classes=["circle"], **quietly)  # fewer: the batch is the mesh's, or as many
    np.testing.assert_allclose(again.astype(int), first[4:], atol=1)


@pytest.mark.slow
def test_training_shows_what_the_command_paints(generator, transformer_run, tmp_path):
    """The pictures of the last evaluation are those of the run's seed: the same sheet, but for rounding."""
    done = run("sample", f"--workdir={transformer_run}", f"--out={tmp_path}", "--num_samples=4", "--batch_size=8")
    assert done.returncode == 0, done.stderr
    with Image.open(transformer_run / "samples.png") as trained, Image.open(tmp_path / "samples.png") as painted:
        assert trained.size == painted.size
        difference = np.abs(np.asarray(trained).astype(int) - np.asarray(painted))
    assert difference.max() <= 1


def test_what_stays_stays_pixel_for_pixel_without_a_seam(generator, picture_folder):
    with Image.open(picture_folder / "square" / "3.png") as picture:
        photo = np.asarray(picture.convert("RGB").resize((16, 16)))
    asked = dict(classes=["square"], image=photo, keep="left", progress=False)
    painted = generator.sample(2, **asked)
    np.testing.assert_array_equal(painted[:, :, :8], np.stack([photo[:, :8]] * 2))
    decoded = generator.sample(2, keep_pixels=False, **asked)
    assert np.abs(decoded[:, :, :8].astype(int) - photo[:, :8]).mean() > 3  # as it was before
    far = np.abs(painted[:, :, 11:].astype(int) - decoded[:, :, 11:])
    assert far.max() <= 1  # beyond the patch beside the seam, nothing changes
    step = lambda images: np.abs(images[:, :, 8].astype(float) - images[:, :, 7]).mean()  # noqa: E731
    pasted = decoded.copy()
    pasted[:, :, :8] = photo[:, :8]
    assert step(painted) < step(pasted)


def test_a_fade_takes_over_the_difference_at_the_seam():
    stays = np.zeros((4, 12), bool)
    stays[:, :4] = True
    kept = painting.Kept(np.full((4, 12, 3), 200, np.uint8), stays[:, ::4], stays, (4, 11))
    seamless = painting.restore_kept(np.full((1, 4, 12, 3), -1.0), kept, fade=3)
    assert seamless.shape == (1, 4, 11, 3)
    np.testing.assert_array_equal(seamless[0, 0, :, 0], [200] * 4 + [150, 100, 50] + [0] * 4)


@pytest.mark.slow
def test_a_picture_larger_than_the_window_is_completed_at_its_own_size(generator, picture_folder):
    with Image.open(picture_folder / "circle" / "1.png") as picture:
        photo = picture.convert("RGB").resize((27, 19))
    mask = np.zeros((19, 27), bool)
    mask[:9, 3:20] = True
    painted = generator.sample(classes=[0], image=photo, keep=mask, progress=False)
    assert painted.shape == (1, 19, 27, 3)  # no multiples of the patch, which is 2
    np.testing.assert_array_equal(painted[0][mask], np.asarray(photo)[mask])
    assert len(np.unique(painted[0][~mask])) > 10
    plan = generator.plan(image=photo, keep=mask)
    assert plan.size == (20, 28) and plan.kept.codes.sum() == 4 * 8
    small = generator.plan(image=photo.resize((10, 8)), keep="top")
    assert small.size == (16, 20)  # as small as in training at least
    fitted = generator.plan(image=photo, keep="top", size="16x16")
    assert fitted.size == fitted.kept.size == (16, 16)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32, list])
def test_a_mask_of_ones_and_zeros_is_a_mask(kind, generator):
    mask = np.zeros((19, 27), bool)
    mask[:9] = mask[:, 20:] = True
    given = mask.tolist() if kind is list else mask.astype(kind)
    kept = generator.plan(image=np.zeros((19, 27, 3), np.uint8), keep=given).kept
    np.testing.assert_array_equal(kept.pixels[:19, :27], mask)
    assert kept.codes[:4].all() and kept.codes[:, 10:].all() and kept.codes.sum() == 4 * 14 + 6 * 4


def test_equal_numbers_of_other_types_compile_nothing(generator, compilations):
    asked = dict(num_samples=4, classes="cross", progress=False)
    generator.sample(temperature=0.5, top_k=5, top_p=0.5, **asked)
    compilations.clear()
    generator.sample(temperature=1, top_k=np.int64(7), top_p=np.float32(1), **asked)
    generator.sample(temperature=2, top_k=10**12, top_p=1, guidance=1, **asked)
    assert not compilations


def test_scores_are_the_nats_of_an_evaluation(generator, transformer_run, picture_folder):
    """Of the held-out pictures, with the classes that they have: on average the run's last figure."""
    from taming_jax import data

    source = data.open_source(generator.config.data, "validation")
    augment = data.make_augment(generator.config.data)
    held_out = [augment.centered(source[i]) for i in range(len(source))]
    images, labels = (np.stack([record[name] for record in held_out]) for name in ("image", "label"))
    nats = generator.score(images, classes=labels.tolist())
    assert nats.shape == (len(source),)
    last = records(transformer_run, "validation")[-1]["nll"]
    np.testing.assert_allclose(nats.mean() / 64, last, rtol=1e-5)
    floats = generator.score(images / 127.5 - 1, classes=labels.tolist())
    np.testing.assert_allclose(floats, nats, rtol=1e-5)
    shuffled = generator.score(images, classes="circle")
    assert shuffled.shape == nats.shape and (shuffled[labels == 0] == nats[labels == 0]).all()


def test_a_step_and_a_first_stage_are_chosen_by_argument(transformer_run, vq_run, tmp_path):
    (tmp_path / "moved").symlink_to(vq_run)
    early = Generator.load(transformer_run, step=2, first_stage=tmp_path / "moved")
    assert early.step == 2 and early.config.first_stage.workdir == str(tmp_path / "moved")
    with pytest.raises(taming_jax.UserError, match="holds no checkpoint of step 3; it has"):
        Generator.load(transformer_run, step=3)
    with pytest.raises(taming_jax.UserError, match="is a 'vqgan' run; samples come from a transformer's"):
        taming_jax.Generator.load(vq_run)
    with pytest.raises(taming_jax.UserError, match=r"holds no .*: it is another kind of run"):
        Generator.load(transformer_run, first_stage=transformer_run)
    with pytest.raises(taming_jax.UserError, match="nothing does not exist"):
        Generator.load(tmp_path / "nothing")
    assert checkpoint.steps(transformer_run) == [2, 4]


MISTAKES = {
    "no such class": (dict(classes=["crosss"]), "classes: there is no class 'crosss' (did you mean 'cross'?)"),
    "another condition": (dict(condition="x.png"), "condition: the run is conditioned on 'class', not on 'image'"),
    "misspelt": (dict(classses=["cross"]), "argument='classses'"),
    "a size too small": (dict(size=(8, 16)), "size=8x16: multiples of 2 from 16 on"),
    "no size": (dict(size="large"), "size='large': height x width"),
    "temperature": (dict(temperature=0), "temperature=0: it must be above 0"),
    "top_k": (dict(top_k=0), "top_k=0: it must be at least 1"),
    "top_p": (dict(top_p=1.5), "top_p=1.5: it must be in (0, 1]"),
    "guidance": (dict(guidance=3.0), "guidance=3: it needs a transformer trained with dropped conditions"),
    "stride": (dict(size="18x18", stride=9), "stride=9: it must be 1 to 4"),
    "method": (dict(method="parallel"), "method='parallel': it is 'cached' or 'wavefront'"),
    "image alone": (dict(image=np.zeros((16, 16, 3), np.uint8)), "image and keep go together"),
    "no picture": (dict(image=np.zeros(5), keep="top"), "image cannot be read: an array of shape (5,)"),
    "no file": (dict(image="nothing.png", keep="top"), "image=nothing.png cannot be read"),
    "floats": (dict(image=np.full((16, 16, 3), 7.0), keep="top"), "floats from 7 to 7: they are within [-1, 1]"),
    "mask": (
        dict(image=np.zeros((16, 20, 3), np.uint8), keep=np.zeros((16, 16), bool)),
        "keep is 16x16 pixels, image is 16x20",
    ),
    "keep": (dict(image=np.zeros((16, 16, 3), np.uint8), keep="topp"), "did you mean 'top'"),
    "number": (dict(num_samples=0), "num_samples=0: it must be at least 1"),
    "no number": (dict(num_samples=["circle"]), "num_samples=['circle']: it must be at least 1"),
    "batch": (dict(batch_size=0), "batch_size=0: it must be at least 1"),
    "seed": (dict(seed=1.5), "seed=1.5: it is a whole number"),
    "words": (dict(temperature="warm"), "temperature='warm': it is a number"),
    "too large": (dict(size="99999999x99999999"), "images of more than 178956970 pixels cannot be opened again"),
    "digits": (dict(size="9" * 5000 + "x16"), "height x width in pixels"),
    "not finite": (dict(guidance=float("nan")), "guidance=nan: it must be finite"),
    "too cold": (dict(temperature=1e-300), "temperature=1e-300: it must be above 0, and fit into 32 bits"),
    "large seed": (dict(seed=2**63), "seed=9223372036854775808: it must be at most 9223372036854775807"),
    "too many": (dict(num_samples=10**12), "num_samples=1000000000000: it must be at most 1000000"),
    "a bucket": (dict(image="gs://bucket/x.png", keep="top"), "image='gs://bucket/x.png': it is a path"),
    "a name of bytes": (dict(image="a\0b.png", keep="top"), "it holds characters that cannot be printed"),
    "class of digits": (dict(classes="9" * 5000), "classes: there is no class '99999"),
    "no classes": (dict(classes=""), "classes is empty"),
    "ragged": (dict(image=np.zeros((16, 16, 3), np.uint8), keep=[[1], [1, 0]]), "keep cannot be read"),
    "greys": (
        dict(image=np.zeros((16, 16, 3), np.uint8), keep=np.full((16, 16), 0.5)),
        "a mask of floats holds 0 and 1 alone",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_with_one_line(mistake, generator, compilations):
    asked, message = MISTAKES[mistake]
    with pytest.raises(taming_jax.UserError, match=re.escape(message)) as caught:
        generator.sample(progress=False, **asked)
    assert "\n" not in str(caught.value)
    with pytest.raises(taming_jax.UserError, match="16x18 pixels; the run was trained at 16x16"):
        generator.score(np.zeros((2, 16, 18, 3), np.uint8), classes="cross")
    with pytest.raises(taming_jax.UserError, match="classes is missing: the condition of each image"):
        generator.score(np.zeros((3, 16, 16, 3), np.uint8), classes=None)
    with pytest.raises(taming_jax.UserError, match="images: 3 for 2 conditions"):
        generator.score(np.zeros((3, 16, 16, 3), np.uint8), classes=["cross", "circle"])


@pytest.mark.parametrize("flag", ["--classes=crosss", "--size=8x16", "--guidance=3", "--condition=x.png"])
def test_the_command_says_the_same_with_its_flag(flag, generator, transformer_run, tmp_path, type_here):
    name, value = flag[2:].split("=")
    with pytest.raises(taming_jax.UserError) as caught:
        generator.sample(progress=False, **{name: float(value) if name == "guidance" else value})
    done = type_here("sample", f"--workdir={transformer_run}", f"--out={tmp_path / 'out'}", flag)
    assert done.returncode == 2 and f"error: --{caught.value}\n" in done.stderr


def test_a_run_of_a_larger_mesh_is_sampled_with_the_devices_that_are_there(generator):
    """Trained on 256 devices with 'fsdp', asked here."""
    config = generator.config.copy_and_resolve_references()
    config.mesh.update(data=16, fsdp=16, tensor=3)
    nets = {**generator.nets, "gpt": jax.eval_shape(generator.stage.init, jax.random.key(0))}
    nets["gpt"] = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), nets["gpt"])
    other = Generator(config, 0, dataclasses.replace(generator.stage), lambda: nets)
    assert dict(other.mesh.shape) == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}
