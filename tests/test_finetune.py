"""Runs that begin with the weights of another one: what they take over, what stays as it is, and what does not fit."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from taming_jax import checkpoint, completion, config_files, encoded, origin, sharding
from taming_jax import state as states
from taming_jax.errors import UserError
from taming_jax.generator import Generator
from taming_jax.loop import train
from taming_jax.parts import CODES, within
from taming_jax.tasks import make_task
from taming_jax.tokenizer import Tokenizer
from tests.tiny import change_stored, changed, run, state_of, tiny_transformer, tiny_vq


def finetune(workdir: Path, folder: Path, **fields) -> ConfigDict:
    """The config of a few steps on a folder, as `--config=finetune:workdir` gives it."""
    config = config_files.load(f"finetune:{workdir}")
    return changed(config, data__path=str(folder), steps=2, log_every=1, eval_every=2, **fields)


def taken(config: ConfigDict) -> dict:
    """What the run of a complete config takes from another one."""
    shapes = jax.eval_shape(make_task(config).init, jax.random.key(0))
    return origin.load(config, completion.find_origin(config), shapes)


def begin(config: ConfigDict) -> states.TrainState:
    """The state with which that run begins."""
    return jax.jit(make_task(config).init)(jax.random.key(0), taken(config))


def save(config: ConfigDict, workdir: Path) -> states.TrainState:
    """A run directory of a complete config's first weights, and those."""
    state = jax.device_get(jax.jit(make_task(config).init)(jax.random.key(1)))
    with checkpoint.open_manager(workdir) as manager:
        checkpoint.save(manager, state, 0, config)
    return state


def assert_equal(a: dict, b: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def pictures(picture_folder, make_once) -> Path:
    """Two of the three classes, in another folder."""

    def make(folder: Path) -> None:
        for name in ("circle", "square"):
            shutil.copytree(picture_folder / name, folder / name)

    return make_once("own", make)


@pytest.fixture(scope="module")
def decoder_run(vq_run, pictures, make_once) -> Path:
    """A first stage whose decoder alone has learned; nothing but freezing keeps its weights and codes from moving."""
    fields = dict(freeze=("encoder", "codebook"), optim__weight_decay=0.1, restart_codes_after=1)
    return make_once("decoder", lambda workdir: train(finetune(vq_run, pictures, **fields), workdir))


@pytest.mark.slow
def test_what_is_frozen_stays_and_images_keep_their_codes(vq_run, decoder_run, pictures):
    """In the weights and in their averages; the optimizer keeps nothing of it."""
    _, _, before = completion.load_run(vq_run)
    found = state_of(decoder_run)
    for place in ("['params']['gen']", "['extra']['gen']['ema']"):
        for path, value in jax.tree_util.tree_leaves_with_path(before):
            path = jax.tree_util.keystr(path)
            frozen = path.split("'")[1] in ("encoder", "quant_conv", "quantize")
            assert np.array_equal(found[place + path], value) == frozen, place + path
    moments = {name for name in found if name.startswith("['opt']['gen']")}
    assert any("'decoder'" in name for name in moments) and not any("'encoder'" in name for name in moments)
    files = sorted(pictures.rglob("*.png"))
    images = np.stack([np.asarray(Image.open(file).convert("RGB").resize((16, 16))) for file in files])
    old, new = Tokenizer.load(vq_run), Tokenizer.load(decoder_run)
    ids = old.encode(images)
    np.testing.assert_array_equal(new.encode(images), ids)
    assert not np.array_equal(new.decode(ids), old.decode(ids))


@pytest.mark.slow
def test_a_run_goes_on_without_the_one_that_it_has_begun_with(vq_run, decoder_run, pictures, tmp_path, capfd):
    """By its own checkpoints, whose config says where it has begun; not from elsewhere."""
    stored, _ = completion.load_config(decoder_run)
    assert Path(stored.init_from) == vq_run and tuple(stored.freeze) == CODES
    shutil.copytree(decoder_run, tmp_path / "mine")
    change_stored(tmp_path / "mine", lambda config: config.update(init_from="/gone/vq"))
    config = changed(config_files.load(f"stored:{tmp_path / 'mine'}"), steps=3)
    with pytest.raises(UserError, match=r"vq: .*mine holds a run already, which began with /gone/vq.*stored:"):
        train(changed(config.copy_and_resolve_references(), init_from=str(vq_run)), tmp_path / "mine")
    train(config, tmp_path / "mine")
    assert checkpoint.steps(tmp_path / "mine") == [2, 3] and "beginning with" not in capfd.readouterr().out
    assert completion.load_config(tmp_path / "mine")[0].init_from == "/gone/vq"
    with pytest.raises(UserError, match=r"decoder: .*vq holds a run already, which began with no other run's weights"):
        train(finetune(decoder_run, pictures), vq_run)
    with pytest.raises(UserError, match=r"gone does not exist.*--config=stored:"):
        config_files.load(f"finetune:{tmp_path / 'gone'}")


@pytest.fixture(scope="module")
def tuned_transformer(transformer_run, decoder_run, pictures, make_once) -> Path:
    """A transformer that goes on with a tokenizer whose decoder has learned more."""
    fields = dict(first_stage__workdir=str(decoder_run), freeze=("layers",))
    return make_once("tuned", lambda workdir: train(finetune(transformer_run, pictures, **fields), workdir))


@pytest.mark.slow
def test_a_transformer_begins_with_another_ones_weights(transformer_run, tuned_transformer, decoder_run):
    """Also on a tokenizer with another decoder, and with its numbers of the classes."""
    config, _, after = completion.load_run(tuned_transformer)
    _, _, before = completion.load_run(transformer_run)
    assert config.data.class_names == ("circle", "cross", "square")
    assert config.first_stage.origin == str(decoder_run) and (tuned_transformer / "first_stage").is_dir()
    assert_equal(after["blocks"], before["blocks"])
    for name in ("token_embedding", "position_embedding"):
        assert 0 < np.abs(after[name] - before[name]).max() < 0.01


@pytest.mark.slow
def test_old_codes_stay_valid_where_the_encoder_is_frozen(transformer_run, decoder_run, vq_run, pictures, tmp_path):
    """The old transformer paints through the new decoder, and data sets of codes serve both tokenizers."""
    old = Generator.load(transformer_run)
    new = Generator.load(transformer_run, first_stage=decoder_run)
    assert new.config.first_stage.step == 2
    assert not np.array_equal(new.sample(1, classes=[0]), old.sample(1, classes=[0]))
    both = [completion.complete(tiny_transformer(workdir)) for workdir in (vq_run, decoder_run)]
    for config in both:
        config.data = both[0].data
    stated, asked = map(encoded.made_of, both)
    assert stated["first_stage"] != asked["first_stage"]
    assert encoded.changes(stated, encoded.as_stated(stated, asked)) == ""
    other = tmp_path / "other"
    _, _, params = completion.load_run(vq_run)
    params["quantize"]["embedding"] = params["quantize"]["embedding"] + 1
    with checkpoint.open_manager(other) as manager:
        state = states.TrainState(np.int32(4), {"gen": params}, {}, {"gen": {}}, {})
        checkpoint.save(manager, state, 4, completion.load_config(vq_run)[0])
    with pytest.raises(UserError, match="has other weights than the first stage that the transformer was trained on"):
        Generator.load(transformer_run, first_stage=other)


def test_a_discriminator_begins_anew_or_with_the_old_weights(vq_run, picture_folder):
    """With its statistics; and so does any part of the net, which has the averages."""
    before = state_of(vq_run)
    for fresh in (("disc",), (), ("decoder",)):
        found = taken(completion.complete(finetune(vq_run, picture_folder, fresh=fresh)))
        assert ("disc" in found) == ("disc" not in fresh) and ("conv_out" in found["gen"]) == ("decoder" not in fresh)
        places = {"['gen']": "['extra']['gen']['ema']", "['disc']['params']": "['params']['disc']"}
        places["['disc']['batch_stats']"] = "['extra']['disc']['batch_stats']"
        for path, value in jax.tree_util.tree_leaves_with_path(found):
            path = jax.tree_util.keystr(path)
            (old,) = (before[path.replace(new, old)] for new, old in places.items() if path.startswith(new))
            np.testing.assert_array_equal(value, old)


def test_a_source_without_averages_or_discriminator(vq_run, picture_folder, tmp_path, capfd):
    """As a converted checkpoint may be: its weights are taken, and the discriminator begins anew."""
    config, _, params = completion.load_run(vq_run)
    config.ema_decay = 0.0
    with checkpoint.open_manager(tmp_path / "bare") as manager:
        checkpoint.save(manager, states.TrainState(np.int32(7), {"gen": params}, {}, {"gen": {}}, {}), 0, config)
    state = begin(completion.complete(finetune(tmp_path / "bare", picture_folder, fresh=(), ema_decay=0.9)))
    assert_equal(state.params["gen"], params)
    assert_equal(state.extra["gen"]["ema"], params)
    assert int(state.step) == 0 and "bare at step 7; anew: disc" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [("encoder", "codebook"), ("decoder",)])
def test_running_means_stay_where_the_codebook_is_frozen(freeze, picture_folder, tmp_path):
    """Codes that are means of what chose them would move without any gradient, and dead ones onto latents."""
    config = tiny_vq(picture_folder)
    with config.unlocked():
        config.quantizer = dict(name="ema", codebook_size=32, embed_dim=8, commitment_weight=0.25, decay=0.5, eps=1e-5)
    config.loss.perceptual_weight = config.disc.weight = 0.0
    source = save(completion.complete(config), tmp_path / "ema")
    config = completion.complete(finetune(tmp_path / "ema", picture_folder, freeze=freeze, restart_codes_after=1))
    task, mesh = make_task(config), sharding.make_mesh(config.mesh, jax.devices()[:1])
    batch = {"image": jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8))}
    with jax.set_mesh(mesh):
        state = begin(config)
        after, _ = jax.jit(task.train_step, static_argnums=3)(state, batch, jax.random.key(1), task.phase(0))
    for part in ("encoder", "codebook", "decoder"):
        for now in (after.params["gen"], after.extra["gen"]["ema"]):
            old, new = (jax.tree.leaves(within("gen", tree, (part,))) for tree in (source.params["gen"], now))
            same = [np.array_equal(a, b) for a, b in zip(old, new, strict=True)]
            assert all(same) if part in freeze else not all(same), part


@pytest.mark.slow
def test_other_classes_are_learned_anew(transformer_run, picture_folder, tmp_path, capfd):
    """All else is kept; a transformer with a table of conditions alone begins that one anew."""
    shutil.copytree(picture_folder / "circle", tmp_path / "own" / "a")
    shutil.copytree(picture_folder / "circle", tmp_path / "own" / "b")
    stored, _ = completion.load_config(transformer_run)
    for kind in ("window", "wavefront"):
        parent = stored.copy_and_resolve_references()
        parent.gpt.context.kind = kind
        weights = save(parent, tmp_path / kind).params["gpt"]
        shutil.copytree(transformer_run / "first_stage", tmp_path / kind / "first_stage")
        config = completion.complete(finetune(tmp_path / kind, tmp_path / "own"))
        config.data.class_names = ("a", "b")
        found = taken(config)["gpt"]
        assert "the classes are a, b, those of" in capfd.readouterr().out
        assert weights.keys() - found.keys() == ({"cond_embedding"} if kind == "wavefront" else set())
        assert_equal(found, {name: weights[name] for name in found})
        with pytest.raises(UserError, match=r"freeze=\('embeddings',\): the classes are a, b.* have to learn"):
            taken(changed(config, freeze=("embeddings",)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(freeze=("encoders",)), r"freeze\[0\]='encoders': allowed are .*did you mean 'encoder'"),
        (dict(freeze=("encoder,codebook",)), r"several are written as --config.freeze=\"\('encoder', 'codebook'\)\""),
        (dict(freeze=("disc",)), r"freeze\[0\]='disc': allowed are 'encoder', 'codebook', 'decoder'"),
        (dict(fresh=("layers",)), r"fresh\[0\]='layers': allowed are"),
        (dict(freeze=("encoder", "codebook", "decoder")), "nothing is left to learn"),
        (dict(freeze=("encoder",), fresh=("encoder",)), "'encoder' either stays as it is or begins anew"),
        (dict(init_from="", fresh=(), freeze=("encoder",)), "without init_from, chance alone"),
        (dict(init_from=""), "all parts begin anew"),
        (dict(init_from="/nowhere/run"), "init_from: run directory /nowhere/run does not exist"),
        (
            dict(model__z_channels=64),
            r"init_from: extra/gen/ema/\S+ is \(.*\) in .*vq and is \(.*\) by the config; .*model.z_channels 32 -> 64",
        ),
        (dict(quantizer__codebook_size=64), r"embedding is \(32, 8\) in .*quantizer.codebook_size 32 -> 64"),
        (dict(fresh=(), disc__ndf=16), r"params/disc/conv_0/bias is \(8,\) in .* and is \(16,\).*disc.ndf 8 -> 16"),
    ],
)
def test_what_does_not_fit_is_one_line(fields, message, vq_run, picture_folder, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        train(finetune(vq_run, picture_folder, **fields), tmp_path / "run")
    assert "\n" not in str(caught.value) and not checkpoint.steps(tmp_path / "run")


def test_runs_of_the_other_stage_are_refused(vq_run, transformer_run, picture_folder, tmp_path):
    other = changed(tiny_vq(picture_folder), init_from=str(transformer_run))
    with pytest.raises(UserError, match=r"holds a 'transformer' run.* for 'vqgan'; its tokenizer is .*/first_stage"):
        train(other, tmp_path / "run")
    with pytest.raises(UserError, match="holds a 'vqgan' run, the config is for 'transformer'"):
        train(changed(tiny_transformer(vq_run), init_from=str(vq_run)), tmp_path / "run")


def test_the_schedule_follows_the_number_of_steps(vq_run, picture_folder):
    config = config_files.load(f"finetune:{vq_run}")
    config.steps, config.disc.gen_start = 300, 90
    found = completion.complete(changed(config, data__path=str(picture_folder)))
    assert (found.optim.warmup_steps, found.disc.start, found.disc.gen_start, found.disc.ramp_steps) == (15, 30, 90, 60)


def test_the_command_says_what_it_does(vq_run, tmp_path):
    """Also where a user forgets the folder."""
    done = run("train", f"--config=finetune:{vq_run}", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "data.path" in done.stderr
