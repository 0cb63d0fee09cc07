"""The benchmarks run; what they measure is for people to read."""

import sys

import pytest

from benchmarks import training


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
