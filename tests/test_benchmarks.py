"""The benchmarks run; what they measure is for people to read."""

import importlib
import re
import sys

import pytest

from benchmarks import recipes, training
from taming_jax import completion
from taming_jax.quality import record


@pytest.mark.slow
def test_training(monkeypatch, capsys):
    model = dict(ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=())
    rows = {
        "vqgan-tiny": training.vqgan_row(16, 1, 16, 8, **model),
        "gpt-tiny": training.gpt_row(4, 2, num_layers=1, num_heads=2, embed_dim=16),
    }
    rows["vqgan-tiny"].loss.perceptual_weight = 0.0  # VGG16 takes long to compile
    rows["vqgan-tiny"].disc.update(ndf=8, n_layers=1)
    monkeypatch.setattr(training, "ROWS", rows)
    monkeypatch.setattr(training, "TURNS", 1)
    monkeypatch.setattr(training, "SECONDS", 0.0)
    monkeypatch.setattr(sys, "argv", ["training"])
    training.main()
    table = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[:2] for line in table] == [["vqgan-tiny", "taming_jax"], ["gpt-tiny", "taming_jax"]]
    assert [line.split()[5] for line in table] == ["images", "tokens"]


@pytest.mark.parametrize("name", recipes.TABLES)
def test_rows_of_recipes_are_configs(name):
    table = recipes.TABLES[name]
    for overrides in table.rows.values():
        config = importlib.import_module(f"configs.{table.config}").get_config()
        config.update_from_flattened_dict(table.base | overrides)
        assert completion.complete(config).task == ("vqgan" if name == "tokenizer" else "transformer")


@pytest.mark.slow
def test_recipes(vq_run, tmp_path):
    """A row of a table is trained and judged once."""
    base = {"first_stage.workdir": vq_run, "batch_size": 8, "steps": 1, "gpt.num_layers": 1, "gpt.embed_dim": 16}
    judged = dict(features="efficientnet", num_samples=4)
    table = recipes.Table("openmoji_transformer", base, {}, recipes.OF_TRANSFORMERS, judged)
    for _ in range(2):
        recipes.make(table, {"gpt.num_heads": 2}, 1, tmp_path / "run")
    assert len(record.read(tmp_path / "run")) == 1
    assert re.fullmatch(r"\| tiny \|( [\d.]+ \|){4}", recipes.line("tiny", [tmp_path / "run"], table, speed=False))
