"""Files of PyTorch in the forms that people have: the same numbers, or one line. Run by `make test-parity`."""

import argparse
import collections
import pathlib

import numpy as np
import pytest
import torch

from taming_jax.convert.tensors import read_tensors
from taming_jax.errors import ArgumentError

W = torch.arange(12.0).reshape(3, 4)
STATE = {"encoder.conv_in.weight": W, "b": torch.tensor(2.5), "n": torch.tensor([1, 2]), "none": torch.zeros(0, 3)}


class Callback:
    """What a trainer leaves in its checkpoints: a class that the reader must not import."""


def test_forms_of_files_are_read(tmp_path):
    lightning = {"state_dict": STATE, "global_step": 7, "callbacks": {Callback: {"best": 1.0}}}
    lightning |= {"hparams": argparse.Namespace(path=pathlib.PurePosixPath("a/b")), "best": np.float64(3)}
    lightning |= {"optimizer_states": [{"state": {0: {"exp_avg": W}}}], "counts": collections.defaultdict(list, a=[1])}
    parameters = {
        name: torch.nn.Parameter(value, requires_grad=value.is_floating_point()) for name, value in STATE.items()
    }
    for stored, step, options in (
        (STATE, 0, {}),
        (lightning, 7, {}),
        (lightning, 7, dict(_use_new_zipfile_serialization=False)),
        (lightning, 7, dict(pickle_protocol=5)),
        (STATE, 0, dict(pickle_protocol=4, _use_new_zipfile_serialization=False)),
        ({"model": {"state_dict": STATE}, "optimizer": {"state": {0: {"exp_avg": W}}}}, 0, {}),
        ({"generator": STATE, "discriminator": {"main.0.weight": W}}, 0, {}),
        ({"model": {name: value + 1 for name, value in STATE.items()}, "ema": STATE}, 0, {}),
        (collections.OrderedDict(parameters), 0, {}),
        (STATE | {"layer._extra_state": None, "x": None}, 0, {}),
    ):
        torch.save(stored, tmp_path / "model.ckpt", **options)
        tensors, found = read_tensors(tmp_path / "model.ckpt")
        assert found == step and set(tensors) == set(STATE)
        for name, value in STATE.items():
            np.testing.assert_array_equal(tensors[name], value.numpy())
    shared = torch.arange(20.0)
    views = {"part": shared[2:6], "turned": shared.view(4, 5).t(), "half": W.half(), "brain": W.bfloat16()}
    for options in ({}, dict(_use_new_zipfile_serialization=False)):
        torch.save(views, tmp_path / "model.ckpt", **options)
        tensors, _ = read_tensors(tmp_path / "model.ckpt")
        for name, value in views.items():
            np.testing.assert_array_equal(np.asarray(tensors[name], np.float32), value.float().numpy())


@pytest.mark.filterwarnings("ignore")
def test_other_tensors_get_one_line(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(ArgumentError, match="is a TorchScript program"):
        read_tensors(path)
    for stored, message in (
        (torch.nn.Linear(2, 2), r"a 'torch\.nn\.modules\.linear\.Linear'; save a model's state_dict"),
        ([W], "holds no state dict"),
        ({"a": W.to(torch.float8_e4m3fn)}, "holds 'a' as .* no quantized, sparse or float8"),
        ({"a": torch.quantize_per_tensor(W, 0.1, 0, torch.qint8)}, "holds 'a' as .* no quantized"),
        ({"a": W.to_sparse()}, "holds 'a' as .* no quantized, sparse"),
        ({"a": torch.zeros(10**12, device="meta")}, "holds 'a' as"),
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, r"'a' of the shape \(1000000, 1000000\), but only 4 bytes"),
        ({"a": W, "b": 3}, "holds 'b' as a int"),
        ({"a\nb": W}, "is no name"),
        ({"state_dict": STATE, "global_step": 10**12}, "global_step"),
    ):
        torch.save(stored, path)
        with pytest.raises(ArgumentError, match=message) as caught:
            read_tensors(path)
        assert "\n" not in str(caught.value)
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArgumentError, match="cut off"):
        read_tensors(path)
