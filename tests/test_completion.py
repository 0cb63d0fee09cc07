"""Configs: what they take from the runs below them, and those that do not fit."""

import functools
import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import openmoji_transformer, openmoji_vq
from taming_jax import checkpoint, completion
from taming_jax.errors import UserError
from taming_jax.loop import train
from taming_jax.tasks import make_task
from tests.tiny import ROOT, changed, put, records, store, tiny_transformer, tiny_vq


def test_second_stage_takes_data_and_codes_from_the_first(vq_run, transformer_run):
    config, _ = completion.load_config(transformer_run)
    first, step = completion.load_config(vq_run)
    assert config.first_stage.step == step and config.first_stage.config.quantizer == first.quantizer
    assert config.data.path == first.data.path and config.data.size == 16
    (last,) = records(transformer_run, "validation")
    assert 0 < last["code_entropy"] < np.log(32) and 0 < last["nll"] < 2 * np.log(32)
    assert (transformer_run / "samples.png").exists()


@pytest.mark.slow
def test_a_changed_config_is_said(picture_folder, vq_run, tmp_path, capfd):
    shutil.copytree(vq_run, tmp_path / "run")
    config = tiny_vq(picture_folder)
    config.steps, config.keep_checkpoints = 5, 2  # neither is part of the compiled step
    train(config, tmp_path / "run")
    printed = capfd.readouterr().out
    assert "keep_checkpoints 3 -> 2" in printed and "steps 4 -> 5" in printed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(task="vqgam"), "did you mean 'vqgan'"),
        (dict(data__size=17), r"data.size=17: the encoder halves .* multiple of 2"),
        (dict(model__ch=48), "model.ch=48: .* multiple of 32"),
        (dict(model__network="local", model__attn_resolutions=(8,)), "model.network='local': it has no attention"),
        (dict(data__size=8), "data.size=8: .* at least 16"),
        (dict(disc__n_layers=3), "disc.n_layers=3 .* at most 2"),
        (dict(disc__loss="hingy"), "did you mean 'hinge'"),
        (dict(optim__schedule="cosin"), "did you mean 'cosine'"),
        (dict(batch_size=6), "batch_size=6 .* parts"),
        (dict(mesh__data=3), "does not match . devices"),
        (dict(quantizer__name="vqq"), "did you mean 'vq'"),
        (dict(quantizer__name="gumbel", restart_codes_after=0), "has the fields .*temperature"),
        (dict(input="line"), r"out_ch=3: input='line' has 1 channels"),
        (dict(input="segmentation"), "'bce' is for segmentation maps"),
        (dict(dtype="bfloat"), "did you mean 'bfloat16'"),
        (dict(log_every=0), "log_every=0: it must be at least 1"),
        (dict(batch_size=0), "batch_size=0: it must be at least 1"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_anything_is_written(fields, message, picture_folder, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        train(changed(tiny_vq(picture_folder), **fields), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(gpt__num_heads=3), "gpt.embed_dim=32 is not divided by gpt.num_heads=3"),
        (dict(cond__name="image"), "cond.name='image' needs cond.workdir"),
        (dict(cond__name="clas"), "did you mean 'class'"),
        (dict(order="spiral"), "did you mean 'spiral_"),
        (dict(gpt__n_unmasked=2), "the condition has 1 ids"),
        (dict(gpt__block_size=9), "condition and codes need at least 64"),
        (dict(first_stage__used=(1, 2), first_stage__unknown="2"), "a position among the 2 used codes"),
        (dict(sample__top_p=0.0), r"top_p=0: it must be in \(0, 1\]"),
        (dict(sample__temperature=0.0), "temperature=0: it must be above 0"),
        (dict(sample__guidance=2.0), "guidance=2: it needs a transformer trained with dropped conditions"),
        (dict(cond__drop=1.0), r"cond.drop=1: it must be in \[0, 1\)"),
        (dict(canvas=(16, 15)), "canvas=16x15: multiples of 2 from 16 on"),
        (dict(cond__aligned=True), "cond.aligned: a condition on 'class' has no place"),
        (dict(cond__name="objects", cond__aligned=True), "cond.aligned: with cond.layout.encode_crop"),
        (dict(cond__name="objects", cond__layout__kind="grid"), "cond.layout.kind='grid': .* set encode_crop=False"),
    ],
)
def test_a_transformer_that_does_not_fit_is_refused(fields, message, vq_run, tmp_path):
    with pytest.raises(UserError, match=message):
        train(changed(tiny_transformer(vq_run), **fields), tmp_path / "run")


def test_what_a_stage_below_does_not_have_is_refused():
    """Before any run is there: a folder that its data set does not read, and codes beyond its codebook."""
    vq, path = openmoji_vq.get_config(), dict(data__path="/my/images")
    ahead = {"first_stage": vq}
    for made in (
        lambda: completion.complete(changed(openmoji_vq.get_config(), **path)),
        lambda: completion.complete_ahead(changed(openmoji_transformer.get_config(), **path), ahead),
    ):
        with pytest.raises(UserError, match=r"data.path=/my/images: .*--config.data.name=folder"):
            made()
    moved = completion.complete_ahead(changed(openmoji_transformer.get_config(), data__name="folder", **path), ahead)
    assert moved.data.name == "folder" and moved.data.path == "/my/images"
    with pytest.raises(UserError, match=r"first_stage.used holds 1024; the first stage has the codes 0 to 1023"):
        completion.complete_ahead(changed(openmoji_transformer.get_config(), first_stage__used=(1, 1024)), ahead)
    with pytest.raises(UserError, match="--first_stage: only a transformer has it"):
        completion.complete_ahead(vq, ahead)


def test_another_image_size_than_the_first_stage_is_refused(vq_run, tmp_path):
    with pytest.raises(UserError, match=r"data.size=32: the first stage was trained at 16"):
        train(changed(tiny_transformer(vq_run), data__size=32), tmp_path / "run")


def test_a_first_stage_that_is_not_there_is_refused(transformer_run, tmp_path):
    (tmp_path / "empty").mkdir()
    for workdir, message in (
        (tmp_path / "nothing", "nothing does not exist"),
        (tmp_path / "empty", "holds no checkpoint"),
        (transformer_run, "holds a 'transformer' run; a first stage is a 'vqgan' run"),
    ):
        with pytest.raises(UserError, match=message):
            train(tiny_transformer(workdir), tmp_path / "run")


def test_a_run_of_the_other_task_is_left_alone(vq_run, transformer_run):
    with pytest.raises(UserError, match="holds a 'vqgan' run, the config is for 'transformer'"):
        train(tiny_transformer(vq_run), vq_run)


def flat(config: ConfigDict) -> dict:
    """Every field by its full name."""
    return {
        name if not inner else f"{name}.{inner}": leaf
        for name, value in config.items()
        for inner, leaf in (flat(value).items() if isinstance(value, ConfigDict) else [("", value)])
    }


OF_COPIES = {f"first_stage.{name}" for name in ("digest", "origin")}  # of a run that has its own copy


@pytest.mark.parametrize("name", ["vq", "ema", "class", "line"])
def test_a_config_of_an_older_version_becomes_one_of_today(name, transformer_run, vq_run):
    """As commit 5717c59 stored them: nothing that is there changes, nothing of today is missing."""
    stored = ConfigDict(checkpoint.to_tuples(json.loads((ROOT / "tests" / "old_runs" / f"{name}.json").read_text())))
    upgraded, before = flat(completion.upgrade(stored)), flat(stored)
    today = flat(completion.load_config(vq_run if name in ("vq", "ema") else transformer_run)[0])
    renamed = {"task": "transformer"} if before["task"] == "prior" else {}
    before = {field: value for field, value in before.items() if not field.endswith("wandb_project")}  # now a tracker
    assert {field: upgraded[field] for field in before} == before | renamed
    own = {field for field in today if "quantizer." not in field}
    assert own <= set(upgraded)
    added = set(upgraded) - set(before)
    assert added and all(upgraded[field] == today[field] for field in added & own - {"ema_decay", *OF_COPIES})
    make_task(completion.upgrade(stored))


def test_every_later_field_is_filled_in_as_it_was(vq_run, transformer_run):
    """Of configs without any of them, and of first stages within."""
    for workdir in (vq_run, transformer_run):
        whole, _ = completion.load_config(workdir)
        older = whole.to_dict()
        stages = [
            older,
            *(older[name]["config"] for name in ("first_stage", "cond") if "config" in older.get(name, {})),
        ]
        for stage in stages:
            for path in completion.LATER | completion.LATER_OF[stage["task"]]:
                *parents, name = path.split(".")
                place = functools.reduce(lambda place, parent: place.get(parent, {}), parents, stage)
                place.pop(name, None)  # or it went with its group
        found = flat(completion.upgrade(ConfigDict(older)))
        changed = {field for field, value in flat(whole).items() if found[field] != value}
        changed -= OF_COPIES
        assert changed <= {"ema_decay", "first_stage.config.ema_decay", "data.num_labels", "first_stage.config.seed"}


DEEP = functools.reduce(lambda inner, _: {"a": inner}, range(400), 5)  # deeper, json itself gives up
OF_VQ = {  # field: (what a stored config has there, what is said)
    "": ([], "is none|task=None: it is a text"),
    "task": ("x", "task='x': allowed are 'vqgan', 'transformer'"),
    "model": (5, "model=5: it is a group of fields"),
    "model.ch_mult": ("a", "model.ch_mult='a': it is a list"),
    "data": ([1], "data=.*: it is a group of fields"),
    "data.size": (17, "data.size=17: the encoder halves"),
    "data.features": ([], r"data.features=\(\): 'image' is missing"),
    "batch_size": (0, "batch_size=0: it must be at least 1"),
    "seed": (-1, "seed=-1: it must be at least 0"),
    "quantizer": (5, "quantizer.name=None"),
    "quantizer.name": ("zz", "quantizer.name='zz': allowed are"),
    "more": (DEEP, "is none|there is no such field"),
    "first_stage": ({"config": 5}, "first_stage.*: there is no such field"),
}
OF_TRANSFORMER = {
    "task": ({}, "task=.*: it is a text"),
    "data": (..., "data.* is missing"),
    "data.size": (None, "data.size=None: it is a whole number"),
    "cond": (5, "cond=5: it is a group of fields"),
    "cond.name": ("image", "cond.name='image' needs cond.workdir"),
    "gpt.embed_dim": (33, "gpt.embed_dim=33 is not divided"),
    "first_stage": (5, "first_stage=5: it is a group of fields"),
    "first_stage.step": (None, "first_stage.step=None: it is a whole number"),
    "first_stage.used": ([99], "first_stage.used holds 99; the first stage has the codes 0 to 31"),
    "first_stage.config": (..., "first_stage.config=None: it is the config of a first stage"),
    "first_stage.config.task": ("transformer", "first_stage.config: task='transformer': allowed are 'vqgan'"),
    "first_stage.config.model.ch": ("a", "first_stage.config: model.ch='a': it is a whole number"),
    "first_stage.config.data.size": (32, "data.size=16: the first stage was trained at 32"),
}


def test_a_stored_config_that_no_run_can_have_is_told_with_its_field(vq_run, transformer_run, tmp_path):
    """Also where a name is none of a field: 'a.b' and 'items' would be something else in a ConfigDict."""
    for workdir, cases in ((vq_run, OF_VQ), (transformer_run, OF_TRANSFORMER)):
        run = tmp_path / workdir.name
        shutil.copytree(workdir / "checkpoints" / "4", run / "checkpoints" / "4")
        whole = json.loads((run / "checkpoints" / "4" / "config" / "metadata").read_text())
        changed = [(put(whole, field, value), message) for field, (value, message) in cases.items()]
        changed += [({**whole, name: 1}, "is none|there is no such field") for name in ("a.b", "items", "a\nb")]
        for config, message in changed:
            store(run, 4, config)
            with pytest.raises(UserError, match=message) as caught:
                completion.load_config(run)
            assert str(run) in str(caught.value) and len(str(caught.value)) < 600 and str(caught.value).isprintable()
        store(run, 4, whole)
        assert completion.load_config(run)[1] == 4
