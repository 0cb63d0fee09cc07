"""Checkpoints and YAML files as people have them, without PyTorch: tests/parity has its own files."""

import copy
import io
import json
import shutil
import struct
import zipfile
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import yaml
from flax.traverse_util import flatten_dict

from taming_jax import checkpoint, completion
from taming_jax.convert import names, pickles
from taming_jax.convert.checkpoints import from_checkpoint
from taming_jax.convert.settings import Section, read_settings
from taming_jax.convert.tensors import account, averages_from_torch, read_tensors, take, to_torch, without_prefix
from taming_jax.convert.transformer import transformer_to_torch
from taming_jax.convert.vqgan import vq_config, vq_from_torch
from taming_jax.errors import ArgumentError, UserError
from taming_jax.first_stage import make_first_stage
from taming_jax.second_stage import make_second_stage
from taming_jax.tasks.transformer import load_first_stages

DD = dict(double_z=False, z_channels=32, resolution=16, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 1])
DD |= dict(num_res_blocks=1, attn_resolutions=[], dropout=0.0)
LOSS = dict(disc_start=1, disc_weight=0.8, disc_num_layers=1, disc_ndf=8)
LOSS = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": LOSS}
VQ = {"target": "taming.models.vqgan.VQModel", "params": dict(embed_dim=8, n_embed=32, ddconfig=DD)}


def state_dict(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of VQ's generator, under the original's names."""
    rng, config = np.random.default_rng(seed), vq_config(VQ)
    shapes = make_first_stage(config).parameter_shapes()
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), shapes)
    return to_torch(params, names.generator_rules(config), "")


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    header, data = {}, b""
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    for name, value in tensors.items():
        value = np.asarray(value)
        raw = value.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = dict(dtype=kinds[str(value.dtype)], shape=list(value.shape), data_offsets=offsets)
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", value) for value in values) + b"t"


def pickled(key: str, shape: tuple[int, ...], strides: tuple[int, ...], kind: str = "FloatStorage") -> bytes:
    """One tensor as `torch.save` pickles it."""
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + b"K\x04tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + numbers(shape) + numbers(strides) + b"\x89}tR"


def archive(content: bytes, storage: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file as `torch.save` writes it, with one storage."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        file.writestr("model/data.pkl", b"\x80\x02" + content)
        file.writestr("model/data/0", storage)
    return out.getvalue()


def dictionary(*items: bytes) -> bytes:
    return b"}(" + b"".join(items) + b"u."


FOUR = np.float32([1, 2, 3, 4]).tobytes()
GOOD = dictionary(text("w"), pickled("0", (2, 2), (1, 2)))


def test_what_torch_writes_is_read_in_bounds(tmp_path, monkeypatch):
    """A good file; the same, damaged in any bit; and files that claim more than they hold or would run code."""
    path = tmp_path / "model.ckpt"
    path.write_bytes(archive(GOOD, FOUR))
    tensors, step = read_tensors(path)
    np.testing.assert_array_equal(tensors["w"], [[1, 3], [2, 4]])
    assert step == 0
    raw = path.read_bytes()
    for place in range(len(raw)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = read_tensors(path)[0]["w"]
        except ArgumentError as e:
            assert "\n" not in str(e)
        else:
            np.testing.assert_array_equal(found, [[1, 3], [2, 4]])
    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 20_000)  # seconds less
    again = b"".join(text(str(i)) + pickled("0", (1000,), (1,)) for i in range(500))
    for content, message in (
        (archive(GOOD, b"\0" * 10**6, zipfile.ZIP_DEFLATED), "compressed records"),
        (archive(dictionary(text("w"), pickled("0", (10**6, 10**6), (0, 0))), FOUR), "but only 16 bytes"),
        (archive(dictionary(text("w"), pickled("0", (2,), (9,))), FOUR), "cannot be read as tensors"),
        (archive(dictionary(text("w"), pickled("1", (2,), (1,))), FOUR), "bytes of its tensor 'w' are missing"),
        (archive(dictionary(text("w"), pickled("0", (2,), (1,), "QInt8Storage")), FOUR), "no quantized"),
        (archive(dictionary(again), FOUR * 250), "the same bytes again and again"),
        (archive(dictionary(text("w"), b"K\x03", text("v"), pickled("0", (2,), (1,))), FOUR), "'w' as a int"),
        (archive(b"cos\nsystem\n" + text("true") + b"\x85R.", FOUR), "'os.system', with which code is run"),
        (archive(b"]" * 20_000 + b".", FOUR), "more than 20000 operations"),
        (archive(dictionary(b")" + b"2\x86" * 100, b"K\x01"), FOUR), "no state dict"),  # a key that takes ages to hash
        (archive(b"}r\xff\xff\xff\x7f.", FOUR), "no state dict"),
        (archive(b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.", FOUR), "no state dict"),
        (raw[:-40], "damaged or cut off"),
    ):
        path.write_bytes(content)
        with pytest.raises(ArgumentError, match=message):
            read_tensors(path)


def test_what_is_no_checkpoint_is_named(tmp_path):
    for name, content, message in (
        ("empty", b"", "is empty"),
        ("page", b"\n<!DOCTYPE html>", "looks like a web page"),
        ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("packed", b"\x1f\x8b\x08" + b"\0" * 20, "packed by gzip"),
        ("words", b"hello", "neither a file of torch.save nor safetensors"),
        ("plain", b"\x80\x04}.", "none of torch.save"),
        ("cut", write_safetensors(tmp_path / "x", {"a": np.float32([1, 2])}).read_bytes()[:-1], "cut off"),
        ("long", struct.pack("<Q", 2**60) + b"{}", "longer than it may be"),
        ("deep", struct.pack("<Q", 90_000) + b'{"a":' * 18_000, "damaged or cut off"),
        ("weird", struct.pack("<Q", 7) + b'{"a":3}', "damaged or cut off"),
        ("zip", archive(b"", b"").replace(b"data.pkl", b"data.txt"), "zip file without a data.pkl"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArgumentError, match=message):
            read_tensors(tmp_path / name)
    with pytest.raises(ArgumentError, match="no such file"):
        read_tensors(tmp_path / "none")
    folder = tmp_path / "last.ckpt"
    folder.mkdir()
    with pytest.raises(ArgumentError, match=r"is a folder.*zero_to_fp32\.py"):
        read_tensors(folder)
    for name, value in (("a", [1]), ("b", [2])):
        write_safetensors(folder / f"{name}.safetensors", {name: np.float32(value)})
    with pytest.raises(ArgumentError, match=r"such as a\.safetensors"):
        read_tensors(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}))
    for path in (folder, index):
        assert {name: value.tolist() for name, value in read_tensors(path)[0].items()} == {"a": [1], "b": [2]}
    index.write_text(json.dumps({"weight_map": {"a": "../../x"}}))
    with pytest.raises(ArgumentError, match=r"names '\.\./\.\./x', which is no file beside it"):
        read_tensors(folder)


def test_forms_of_state_dicts_give_the_same_weights(tmp_path):
    plain, average = state_dict(), state_dict(1)

    def read(tensors: dict) -> dict:
        found = read_tensors(write_safetensors(tmp_path / "model.safetensors", tensors))[0]
        return without_prefix(found, "encoder.conv_in.weight")

    for change in (
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.first_stage_model.{name}",
        lambda name: name.replace("encoder.", "encoder._orig_mod."),
    ):
        found = read({change(name): value for name, value in plain.items()})
        assert found.keys() == plain.keys()
        np.testing.assert_array_equal(found["encoder.conv_in.weight"], plain["encoder.conv_in.weight"])
    with pytest.raises(ArgumentError, match="holds tensors twice"):
        read(plain | {"module.quant_conv.bias": np.zeros(8, np.float32)})

    with_gan = {**VQ, "params": {**VQ["params"], "lossconfig": LOSS}}
    averages = {f"model_ema.{name.replace('.', '')}": value for name, value in average.items()}
    averages |= {"model_ema.decay": np.float32(0.9999), "model_ema.num_updates": np.int64(5)}
    tensors = read(plain | averages)
    config, state = vq_from_torch(tensors, Section("model", (with_gan,)), "")
    account(tensors)
    assert config.ema_decay == 0.9999 and config.disc.weight == 0 and set(state.params) == {"gen"}
    rules, shapes = names.generator_rules(config), make_first_stage(config).parameter_shapes()
    for found, expected in ((state.params["gen"], plain), (state.extra["gen"]["ema"], average)):
        found = to_torch(found, rules, "")
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
    for name, value, message in (
        ("decay", np.float32(1.5), "'model_ema.decay' is 1.5, not between 0 and 1"),
        ("decay", np.int64(1), "'model_ema.decay' is of int64; weights are floats"),
        ("encoderconv_inweight", np.float32([1]), r"'model_ema.encoder.conv_in.weight' is \(1,\)"),
    ):
        with pytest.raises(UserError, match=message):
            averages_from_torch({**averages, f"model_ema.{name}": np.asarray(value)}, shapes, rules, "")


def test_weights_are_finite_floats():
    for value, message in (
        (np.float32([1, np.nan]), "holds NaN or infinity"),
        (np.float64([1, 1e300]), "holds NaN or infinity"),
        (np.complex64([1, 2]), "is of complex64"),
        (np.array([True, False]), "is of bool"),
    ):
        with pytest.raises(UserError, match=message):
            take({"w": value}, "w", (2,))
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        found = take({"w": np.array([0.5, -2], dtype)}, "w", (2,))
        assert found.dtype == np.float32 and found.tolist() == [0.5, -2]


def test_a_run_of_averages_is_written_and_read(tmp_path):
    plain, average = state_dict(), state_dict(1)
    dotless = {f"model_ema.{name.replace('.', '')}": value for name, value in average.items()}
    file = write_safetensors(tmp_path / "m", plain | dotless | {"model_ema.decay": np.float32(0.999)})
    (tmp_path / "m.yaml").write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump({"model": VQ}).replace("\n", "\r\n").encode())
    from_checkpoint(file, tmp_path / "m.yaml", tmp_path / "run")
    config, step = completion.load_config(tmp_path / "run")
    found = checkpoint.load_net(tmp_path / "run", step, "gen", make_first_stage(config).parameter_shapes())
    found = to_torch(found, names.generator_rules(config), "")
    assert config.ema_decay == 0.999
    for name, value in average.items():
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(UserError, match="already holds a run"):
        from_checkpoint(file, tmp_path / "m.yaml", tmp_path / "run")
    with pytest.raises(ArgumentError, match=r"workdir=.*: .*m is a file, not a folder"):
        from_checkpoint(tmp_path / "none", tmp_path / "m.yaml", file / "run")


def test_yaml_is_read_as_omegaconf_reads_it(tmp_path):
    head = "n: 3\nb: {c: 4}\nk: c\nl: [5, 6]\nloop: ${loop}\nq:\n  s: 7\n  v: "
    for given, expected in {
        "1e-8": 1e-8,
        "1E5": 1e5,
        "1.5e3": 1500.0,
        "1e": "1e",
        "-1e-3": -1e-3,
        "'1e-8'": "1e-8",
        "2020-01-01": "2020-01-01",
        "0x10": 16,
        "${n}": 3,
        "${b.c}": 4,
        "x${n}y": "x3y",
        "${b.${k}}": 4,
        "${l[1]}": 6,
        "${.s}": 7,
        "${..n}": 3,
        "${b}": {"c": 4},
    }.items():
        (tmp_path / "a.yaml").write_text(head + given)
        found, _ = read_settings(tmp_path / "a.yaml").section("q").find("v")
        assert found == expected and type(found) is type(expected), given
    for given, message in {
        "${nope}": "q.v='\\${nope}': there is no 'nope'",
        "${loop}": "it refers to itself",
        "${n": "only names of other fields are read",
        "${oc.env:HOME}": "only names of other fields are read",
        "x${b}": "is no text",
    }.items():
        (tmp_path / "a.yaml").write_text(head + given)
        with pytest.raises(UserError, match=message):
            read_settings(tmp_path / "a.yaml").section("q").find("v")


def test_a_yaml_that_is_no_models_gets_one_line(tmp_path):
    many = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    merged = "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
    for content, message in (
        (b"- " * 5000, "nested too deep"),
        (f"a0: &a0 [x]\n{many}".encode(), "with its aliases"),
        (f"a0: &a0 {{x: 1}}\n{merged}".encode(), "with its aliases"),
        (b"a: &a [*a]", "with its aliases"),
        (b"a: 1\na: 2", "'a' comes twice"),
        (b"\ta: 1", "is no YAML"),
        (b"\xff\xfe\xff", "is no YAML"),
        (b"a: \xe9", "is no YAML"),
        (b"a: !!int x", "is no YAML"),
        (b"a: !!bool x", "is no YAML"),
        (b"a: " + b"9" * 5000, "is no YAML"),
        (b"a: !!python/object/apply:os.system [ls]", "is no YAML"),
        (b"#" * 70_000, "more than 65536 bytes"),
        (b"", "holds no 'model'"),
        (b"model: 3", "holds no 'model'"),
        (b"model: null", "holds no 'model'"),
    ):
        (tmp_path / "a.yaml").write_bytes(content)
        with pytest.raises(ArgumentError, match=message) as caught:
            from_checkpoint(tmp_path / "none", tmp_path / "a.yaml", tmp_path / "run")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_wrong_field_is_named(tmp_path):
    """Each field of a first stage, with values of other kinds: one line with its place, or it does not matter."""
    gumbel = copy.deepcopy(VQ)
    gumbel["target"] = "taming.models.vqgan.GumbelVQ"
    schedule = dict(warm_up_steps=0, max_decay_steps=10, lr_start=0.9, lr_max=0.9, lr_min=1e-6)
    gumbel["params"] |= dict(kl_weight=1e-8, temperature_scheduler_config=dict(target="x", params=schedule))
    gan = {**VQ, "params": {**VQ["params"], "lossconfig": LOSS}}
    huge = {"x": 10**5000}
    named = 0
    for model in (gumbel, gan):
        for path in flatten_dict(model):
            for value in (None, "x", [1], ["a"], {}, -1, 10**30, True, float("nan"), "${none}", "x" * 10**5, huge):
                changed = copy.deepcopy(model)
                place = changed
                for key in path[:-1]:
                    place = place[key]
                place[path[-1]] = value
                try:
                    vq_config(changed)
                except UserError as e:
                    named += ".".join(("model", *path)) in str(e)
                    assert "\n" not in str(e) and len(str(e)) < 500
    assert named > 300
    for path, value, message in (
        (("target",), "ldm.models.autoencoder.AutoencoderKL", r"model.target='AutoencoderKL': allowed are 'VQModel'"),
        (("params", "n_embed"), "32", r"model.params.n_embed='32': it must be a whole number"),
        (("params", "ddconfig", "ch_mult"), 2, r"model.params.ddconfig.ch_mult=2: it must be a list"),
        (("params", "ddconfig", "dropout"), 0.1, r"model.params.ddconfig.dropout=0.1: it must be 0.0"),
    ):
        changed = copy.deepcopy(VQ)
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(UserError, match=message):
            vq_config(changed)
    misspelt = copy.deepcopy(VQ)
    misspelt["params"]["n_embd"] = misspelt["params"].pop("n_embed")
    with pytest.raises(UserError, match=r"model.params.n_embed is missing \(did you mean 'n_embd'\?\)"):
        vq_config(misspelt)


def test_a_converted_transformer_knows_its_first_stage(transformer_run, tmp_path):
    """It refuses another one in its place, as a trained one does."""
    config, step = completion.load_config(transformer_run)
    tensors = transformer_to_torch(transformer_run, step, config)
    file = write_safetensors(tmp_path / "m", {name: np.asarray(value) for name, value in tensors.items()})
    stage, gpt = make_second_stage(config), config.gpt
    sizes = dict(vocab_size=stage.gpt.vocab_size, block_size=stage.gpt.block_size, n_layer=gpt.num_layers)
    params = dict(
        transformer_config={"params": sizes | dict(n_head=gpt.num_heads, n_embd=gpt.embed_dim)},
        first_stage_config={**VQ, "params": VQ["params"] | {"lossconfig": LOSS}},
        cond_stage_config={"target": "taming.modules.util.Labelator", "params": {"n_classes": 3}},
    )
    model = {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": params}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({"model": model}))
    from_checkpoint(file, tmp_path / "m.yaml", tmp_path / "run")
    found, _ = completion.load_config(tmp_path / "run")
    assert found.first_stage.digest == config.first_stage.digest
    load_first_stages(found, make_second_stage(found))
    shutil.rmtree(tmp_path / "run" / "first_stage")
    file = write_safetensors(tmp_path / "vq", state_dict())
    (tmp_path / "vq.yaml").write_text(yaml.safe_dump({"model": VQ}))
    from_checkpoint(file, tmp_path / "vq.yaml", tmp_path / "run" / "first_stage")
    with pytest.raises(UserError, match="has other weights than the first stage that the transformer was trained on"):
        load_first_stages(found, make_second_stage(found))
