"""The table of a config's fields: it knows all configs, and refuses what is not of a field's type or range."""

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from taming_jax import checkpoint, completion, values
from taming_jax.errors import UserError
from taming_jax.fields import COMMON, EXTRA, OF_TASK, check_fields, flat
from taming_jax.models.quantize import QUANTIZERS
from tests.tiny import ROOT, changed

NAMES = sorted({p.stem for p in Path("configs").glob("*.py")} - {"common", "finetune", "stored"})


def load(name: str) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config()


def test_the_table_knows_every_field_of_every_config_and_no_others():
    """An unknown field is refused; and a line of the table is a field of a config."""
    seen = {"vqgan": set(), "transformer": set()}
    for name in NAMES:
        config = load(name)
        check_fields(config)
        seen[config.task] |= set(flat(config))
    for task, rules in OF_TASK.items():
        assert not (COMMON.keys() | rules.keys() | EXTRA[task].keys()) - seen[task] - of_runs(task)
    of_quantizers = {f"quantizer.{field}" for kind in QUANTIZERS.values() for field in kind.RULES}
    assert of_quantizers <= seen["vqgan"]


def of_runs(task: str) -> set[str]:
    """Fields that a transformer takes from its first stage, and that of a run's own config."""
    return {field for field in EXTRA[task] if field.startswith("data.") or field == "run"}


def test_configs_of_older_versions_pass():
    for file in (ROOT / "tests" / "old_runs").glob("*.json"):
        completion.check_stored(completion.upgrade(ConfigDict(checkpoint.to_tuples(json.loads(file.read_text())))))


WILD = (
    *(None, True, -1, 0, 2**31, 2**63, 10**5000, -(10**5000), 0.5, -0.5, 1e300, math.nan, math.inf, -math.inf),
    *("", "a" * 5000, "\0", "\n", "\udc80", "gs://bucket/x", b"bytes", (), (0,), ("a", None), [[]], {"a": 1}, object),
)


def test_wild_values_pass_or_get_one_line_that_names_the_field():
    of_quantizers = {f"{kind}.{field}": rule for kind, k in QUANTIZERS.items() for field, rule in k.RULES.items()}
    for field, rule in (
        COMMON | OF_TASK["vqgan"] | OF_TASK["transformer"] | EXTRA["transformer"] | of_quantizers
    ).items():
        passed = set()
        for value in WILD:
            try:
                rule(field, value)
            except UserError as e:
                assert field in str(e) and str(e).isprintable() and len(str(e)) < 600, (field, value)
            else:
                assert not isinstance(value, (int, float)) or abs(value) < 2**128, (field, value)
                passed.add(type(value))
        passed -= {type(None)}
        assert passed <= {int, float} or len(passed) == 1, (field, passed)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("openmoji_vq", dict(optim__learning_rate=-1.0), "optim.learning_rate=-1: it must be above 0"),
        ("openmoji_vq", dict(optim__learning_rate=math.nan), "optim.learning_rate=nan: it must be above 0"),
        ("openmoji_vq", dict(optim__learning_rate=1e-300), "above 0, and fit into 32 bits"),
        ("openmoji_vq", dict(ema_decay=2.0), r"ema_decay=2: it must be in \[0, 1\)"),
        ("openmoji_vq", dict(seed=-1), "seed=-1: it must be at least 0"),
        ("openmoji_vq", dict(seed=2**63), "seed=9223372036854775808: it must be at most 9223372036854775807"),
        ("openmoji_vq", dict(data__label_shift=-1), "data.label_shift=-1: it must be at least 0"),
        ("openmoji_vq", dict(model__ch_mult=(1, 2.5)), r"model.ch_mult\[1\]=2.5: it is a whole number"),
        ("openmoji_vq", dict(mesh__data=0), "mesh.data=0: it is a number of devices"),
        ("openmoji_vq", dict(optim__learing_rate=1.0), "there is no such field .did you mean 'optim.learning_rate'"),
        ("openmoji_fsq_vq", dict(quantizer__levels=(8, 2)), r"quantizer.levels\[1\]=2: it must be at least 3"),
        ("openmoji_transformer", dict(gpt__embd_pdrop=math.nan), r"gpt.embd_pdrop=nan: it must be in \[0, 1\)"),
        ("openmoji_transformer", dict(canvas=(1, 2, 3)), "canvas=.*: it holds 3 values, they must be 2"),
        ("openmoji_transformer", dict(first_stage__used=(-1,)), r"first_stage.used\[0\]=-1: it must be at least 0"),
        ("openmoji_transformer", dict(codes="gs://bucket/x"), "codes='gs://bucket/x': .*gcsfuse"),
    ],
)
def test_a_value_out_of_range_is_told_with_the_range(name, fields, message):
    with pytest.raises(UserError, match=message):
        check_fields(changed(load(name), **fields))


def test_a_field_that_is_missing_is_named():
    config = load("openmoji_vq")
    del config.optim.eps
    with pytest.raises(UserError, match=r"optim.eps is missing from the config"):
        check_fields(config)


def test_a_number_that_a_run_could_not_store_is_told():
    config = load("openmoji_vq").unlock()
    del config.steps
    config.steps = np.int64(3)
    with pytest.raises(UserError, match="steps=3: a numpy number"):
        check_fields(config)


def test_a_group_that_is_a_value_is_told():
    config = load("openmoji_vq").unlock()
    del config.optim
    config.optim = 5
    with pytest.raises(UserError, match="optim=5: it is a group of fields"):
        check_fields(config)


@pytest.mark.parametrize(
    ("word", "number"),
    [("3", 3), ("0007", 7), ("0", 0), ("00", 0), ("10", None), ("9" * 5000, None), ("0" * 5000 + "4", 4), ("-1", None)],
)
def test_digits_become_numbers_below_a_bound(word, number):
    assert values.to_whole(word, 10) == number
