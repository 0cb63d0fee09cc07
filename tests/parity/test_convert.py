"""Conversion against the original's own classes, at full size with random weights. Run by `make test-parity`."""

import copy
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from taming_jax import checkpoint, completion, sharding
from taming_jax.convert import tensors
from taming_jax.convert.checkpoints import from_checkpoint, to_checkpoint
from taming_jax.convert.diffusers import to_diffusers
from taming_jax.errors import UserError
from taming_jax.first_stage import make_first_stage
from taming_jax.second_stage import make_second_stage
from taming_jax.tasks.transformer import load_first_stages
from tests.parity import conftest, models


def build(config: dict) -> torch.nn.Module:
    """The original's model with random weights whose codes are used, in evaluation mode."""
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    if config["target"].startswith("ldm."):  # the same class, in latent-diffusion's copy
        config["target"] = "taming.models.vqgan.VQModel"
    if "cond_stage_config" in config["params"] and "dummy_cond_stage" in str(config["params"]["cond_stage_config"]):
        config["params"]["cond_stage_config"] = {
            "target": "torch.nn.Identity"
        }  # the package lacks it; it has no weights
    model = conftest.instantiate(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    for stage in (getattr(model, name, None) for name in ("first_stage_model", "cond_stage_model")):
        spread_codes(stage)
    spread_codes(model)
    return model


def spread_codes(vq) -> None:
    """Codes among the latents of noise, so that many are chosen and none by a hair."""
    if hasattr(getattr(vq, "quantize", None), "embedding"):
        with torch.no_grad():
            x = torch.rand(1, vq.encoder.conv_in.in_channels, 64, 64) * 2 - 1
            h = vq.quant_conv(vq.encoder(x))
            book = vq.quantize.embedding.weight
            mean, std = h.mean((0, 2, 3)), h.std((0, 2, 3)) + 1e-3
            book.copy_(mean + std * torch.randn_like(book))


class Callback:
    """What a trainer leaves in its checkpoints: a class that the reader must not import."""


def save(model: torch.nn.Module, config: dict, folder: Path, step: int = 0, **more: dict) -> tuple[Path, Path]:
    stored = {"state_dict": model.state_dict(), "global_step": step, "callbacks": {Callback: {"best": 1.0}}}
    torch.save(stored, folder / "model.ckpt")
    (folder / "model.yaml").write_text(yaml.safe_dump({"model": config, **more}))
    return folder / "model.ckpt", folder / "model.yaml"


def picture(channels: int) -> np.ndarray:
    """[1,C,64,96] in [-1, 1]; one-hot for many channels."""
    rng = np.random.default_rng(0)
    if channels > 3:
        labels = np.kron(rng.integers(0, channels, (8, 12)), np.ones((8, 8), int))
        return np.moveaxis(np.eye(channels, dtype=np.float32)[labels], -1, 0)[None]
    return rng.uniform(-1, 1, (1, channels, 64, 96)).astype(np.float32)


def ours(workdir: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and reconstruction [B,C,H,W] by the run directory."""
    config, step = completion.load_config(workdir)
    stage = make_first_stage(config)
    model, params = stage.model, checkpoint.load_net(workdir, step, "gen", stage.parameter_shapes())
    recon, codes = jax.jit(model.apply)({"params": params}, np.moveaxis(x, 1, -1))
    return np.asarray(codes["ids"]), np.moveaxis(np.asarray(recon), -1, 1)


@torch.no_grad()
def theirs(model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    h = model.quant_conv(model.encoder(torch.from_numpy(x)))
    if hasattr(model.quantize, "proj"):  # its forward draws
        ids = model.quantize.proj(h).argmax(1)
        z_q = model.quantize.embed(ids).movedim(-1, 1)
    else:
        z_q, _, (_, _, ids) = model.quantize(h)
        ids = ids.reshape(len(x), *h.shape[2:])
    return ids.numpy(), model.decode(z_q).numpy()


@pytest.mark.parametrize("name", models.FIRST_STAGES)
def test_first_stage(name, tmp_path):
    """Codes and pictures are equal; the way back loads with strict=True, and diffusers' VQModel gives the same."""
    config = models.FIRST_STAGES[name]
    model = build(config)
    workdir = tmp_path / "run"
    from_checkpoint(*save(model, config, tmp_path, step=7), workdir)
    assert checkpoint.steps(workdir) == [7]
    x = picture(config["params"]["ddconfig"]["in_channels"])
    ids, recon = theirs(model, x)
    our_ids, our_recon = ours(workdir, x)
    assert len(np.unique(ids)) > 5
    np.testing.assert_array_equal(our_ids, ids)
    np.testing.assert_allclose(our_recon, recon, atol=1e-4 * np.abs(recon).max())

    check_way_back(model, config, workdir, tmp_path)
    if config["target"].endswith("GumbelVQ"):
        with pytest.raises(UserError, match="neither transformers nor Gumbel"):
            to_diffusers(workdir, tmp_path / "diffusers")
    else:
        to_diffusers(workdir, tmp_path / "diffusers")
        other = diffusers.VQModel.from_pretrained(tmp_path / "diffusers").eval()
        with torch.no_grad():
            np.testing.assert_allclose(other(torch.from_numpy(x)).sample, recon, atol=1e-4 * np.abs(recon).max())


def test_the_way_back_is_written_whole_or_not_at_all(tmp_path):
    """From the newest checkpoint that is whole; and what the disk does not take gets one line."""
    name = next(iter(models.FIRST_STAGES))
    config, workdir = models.FIRST_STAGES[name], tmp_path / "run"
    from_checkpoint(*save(build(config), config, tmp_path, step=7), workdir)
    shutil.copytree(workdir / "checkpoints" / "7", workdir / "checkpoints" / "9")
    (workdir / "checkpoints" / "9" / "state" / "_METADATA").unlink()
    to_checkpoint(workdir, tmp_path / "back.ckpt")
    assert torch.load(tmp_path / "back.ckpt", weights_only=True)["global_step"] == 7
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for write, out in ((to_checkpoint, tmp_path / "full.ckpt"), (to_diffusers, tmp_path / "full")):
            with pytest.raises(UserError, match="cannot be written: File too large"):
                write(workdir, out)
            assert not out.exists() and not out.with_name(f"{out.name}.part").exists()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def check_way_back(model: torch.nn.Module, config: dict, workdir: Path, folder: Path) -> None:
    """What `--to-torch` writes is the same numbers, and loads with strict=True."""
    to_checkpoint(workdir, folder / "back.ckpt")
    back = torch.load(folder / "back.ckpt", weights_only=True)["state_dict"]
    build(config).load_state_dict(back, strict=True)
    for key, value in model.state_dict().items():
        if not re.search(r"colorize$|num_batches_tracked$|perceptual_loss\.", key):
            torch.testing.assert_close(back[key], value, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", models.TRANSFORMERS)
def test_transformer(name, tmp_path):
    """Condition ids and logits are equal, and the way back loads with strict=True."""
    config = models.TRANSFORMERS[name]
    model = build(config)
    workdir = tmp_path / "run"
    from_checkpoint(*save(model, config, tmp_path), workdir)
    ours_config, step = completion.load_config(workdir)
    stage = make_second_stage(ours_config)
    gpt, cond = stage.gpt, stage.cond
    params = checkpoint.load_net(workdir, step, "gpt", jax.eval_shape(stage.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    batch = {"label": jnp.array([3, 5])}
    kind = ours_config.cond.name
    if kind == "coordinates":
        coord = np.broadcast_to(np.linspace(0, 0.99, 256, dtype=np.float32), (2, 256, 256))
        batch["coord"] = jnp.asarray(coord)
        _, c = model.encode_to_c(torch.from_numpy(coord[:, None].copy()))
    elif kind == "image":
        labels = cond.stage.model.out_ch
        if cond.stage.input == "segmentation":
            batch["segmentation"] = jnp.asarray(np.kron(rng.integers(0, labels, (2, 16, 16)), np.ones((16, 16), int)))
        else:
            batch["depth"] = jnp.asarray(rng.uniform(-1, 1, (2, 256, 256, 1)).astype(np.float32))
        x = np.moveaxis(np.asarray(cond.stage.to_input(batch)), -1, 1)
        model.cond_stage_model.quantize.sane_index_shape = True  # else the original cannot use it
        _, c = model.encode_to_c(torch.from_numpy(x.copy()))
    elif kind == "objects":
        batch["objects"] = jnp.asarray(rng.integers(0, 8192, (2, cond.length)), jnp.int32)
        c = torch.from_numpy(np.array(batch["objects"], np.int64))
    elif kind == "class":
        _, c = model.encode_to_c(torch.tensor([3, 5]))
    else:
        _, c = model.encode_to_c(torch.zeros(2, 3, 8, 8))
    with jax.set_mesh(sharding.make_mesh(ours_config.mesh)):
        tokens = np.asarray(jax.jit(cond.ids)(load_first_stages(ours_config, stage), batch))
    np.testing.assert_array_equal(tokens, c.numpy())
    codes = rng.integers(0, stage.first.codebook_size, (2, 64))
    inputs = np.concatenate([tokens, codes], 1)[:, : gpt.block_size]
    with torch.no_grad():
        logits = model.transformer(torch.from_numpy(inputs.astype(np.int64)))[0].numpy()
    mine = jax.jit(gpt.apply)({"params": params}, inputs)
    np.testing.assert_allclose(mine, logits, atol=1e-4 * np.abs(logits).max())

    check_way_back(model, config, workdir, tmp_path)


def small(loss: dict = models.LOSS) -> dict:
    config = copy.deepcopy(models.vq(64, 32, loss, z_channels=32))
    config["params"]["ddconfig"] |= dict(ch=32, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[], resolution=32)
    return config


def test_actnorm_and_no_discriminator(tmp_path):
    """Relatives that were not published, small."""
    actnorm = {**models.LOSS, "params": {**models.LOSS["params"], "use_actnorm": True, "disc_ndf": 8}}
    for number, loss in enumerate((actnorm, models.DUMMY)):
        config, folder = small(loss), tmp_path / str(number)
        if loss is models.DUMMY:
            config["target"] = "taming.models.vqgan.VQNoDiscModel"
        folder.mkdir()
        model = build(config)
        from_checkpoint(*save(model, config, folder), folder / "run")
        check_way_back(model, config, folder / "run", folder)
        ids, recon = theirs(model, picture(3))
        our_ids, our_recon = ours(folder / "run", picture(3))
        np.testing.assert_array_equal(our_ids, ids)
        np.testing.assert_allclose(our_recon, recon, atol=1e-4 * np.abs(recon).max())


def test_orders_and_unmasked_prefixes(tmp_path):
    """A transformer whose condition is its own first stage, that sees it whole, and that writes along a spiral."""
    config = models.net2net("__is_first_stage__", 1, 2, 32, vocab=64, block=512)
    config["params"]["first_stage_config"] = small(models.DUMMY)
    config["params"]["transformer_config"]["params"]["n_unmasked"] = 256
    target = "taming.modules.transformer.permuter."
    config["params"]["permuter_config"] = {"target": target + "SpiralOut", "params": {"H": 16, "W": 16}}
    model = build(config)
    from_checkpoint(*save(model, config, tmp_path), tmp_path / "run")
    check_way_back(model, config, tmp_path / "run", tmp_path)
    stored, step = completion.load_config(tmp_path / "run")
    stage = make_second_stage(stored)
    gpt, like = stage.gpt, jax.eval_shape(stage.init, jax.random.key(0))
    inputs = np.random.default_rng(0).integers(0, 64, (2, 300))
    params = checkpoint.load_net(tmp_path / "run", step, "gpt", like)
    with torch.no_grad():
        logits = model.transformer(torch.from_numpy(inputs))[0].numpy()
    mine = jax.jit(gpt.apply)({"params": params}, inputs)
    np.testing.assert_allclose(mine, logits, atol=1e-4 * np.abs(logits).max())

    wrong = copy.deepcopy(config)
    wrong["params"]["permuter_config"]["target"] = target + "SpiralIn"
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": wrong}))
    with pytest.raises(UserError, match=r"'permuter.forward_shuffle_idx' is not the order of SpiralIn on 16x16 codes"):
        from_checkpoint(tmp_path / "model.ckpt", tmp_path / "model.yaml", tmp_path / "other")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no YAML"), ("- a", "holds no 'model'"), ("model: {target: x}", "holds no 'model'")],
)
def test_a_yaml_that_is_none_gets_one_line(text, message, tmp_path):
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        from_checkpoint(tmp_path / "none.ckpt", tmp_path / "model.yaml", tmp_path / "run")


def test_every_tensor_is_accounted_for(tmp_path):
    config = small()
    model = build(config)
    ckpt, file = save(model, config, tmp_path)
    full = model.state_dict()
    for change, message in (
        (lambda d: d.pop("encoder.conv_in.weight"), r"'encoder.conv_in.weight' \(32, 3, 3, 3\) is missing"),
        (lambda d: d.update({"encoder.extra.weight": torch.zeros(2)}), "unexpected tensors: encoder.extra.weight"),
        (
            lambda d: d.update({"quant_conv.bias": torch.zeros(9)}),
            r"'quant_conv.bias' is \(9,\), the config says \(32,\)",
        ),
    ):
        changed = dict(full)
        change(changed)
        torch.save({"state_dict": changed}, ckpt)
        with pytest.raises(UserError, match=message):
            from_checkpoint(ckpt, file, tmp_path / "run")
        assert not (tmp_path / "run").exists()


class Evil:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_strangers_pickle_runs_nothing(tmp_path):
    config, trace = small(), tmp_path / "trace"
    stored = {"state_dict": build(config).state_dict(), "callbacks": Evil(trace)}
    torch.save(stored, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="cannot be read as tensors"):
        tensors.read_tensors(tmp_path / "model.ckpt")
    assert not trace.exists()
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(UserError, match="cannot be read as tensors"):
        tensors.read_tensors(tmp_path / "plain.ckpt")
    assert not trace.exists()


def test_a_converted_run_trains_on_evaluates_and_is_not_written_over(tmp_path, pictures):
    """By the commands as they are typed."""
    config = small()
    ckpt, file = save(build(config), config, tmp_path, step=2)
    workdir = tmp_path / "run"
    args = (f"--ckpt={ckpt}", f"--config={file}", f"--workdir={workdir}")
    done = run("convert", *args)
    assert done.returncode == 0, done.stderr
    again = run("convert", *args)
    assert again.returncode == 2 and "already holds a run" in again.stderr
    done = run("evaluate", f"--workdir={workdir}", f"--data_path={pictures}")
    assert done.returncode == 0 and "psnr" in done.stdout, done.stderr
    fields = ("steps=3", "eval_every=3", f"data.path={pictures}")
    done = run(
        "train", f"--config=configs/stored.py:{workdir}", f"--workdir={workdir}", *(f"--config.{f}" for f in fields)
    )
    assert done.returncode == 0 and "starting at step 2" in done.stdout, done.stderr
    assert checkpoint.steps(workdir)[-1] == 3
    done = run("convert", f"--workdir={workdir}", f"--to-torch={tmp_path / 'back.ckpt'}")
    assert done.returncode == 0, done.stderr
    build(config).load_state_dict(torch.load(tmp_path / "back.ckpt", weights_only=True)["state_dict"], strict=True)


def small_condition(kind: str) -> tuple[object, str]:
    """A condition's stage and its key, as the published models have them, small."""
    if kind == "class":
        return {**models.LABEL, "params": {"n_classes": 3}}, "class_label"
    if kind == "objects":
        return models.OBJECTS, "objects_bbox"
    channels = {"segmentation": 4, "depth": 1}[kind]
    stage = small(models.BCE if kind == "segmentation" else models.DUMMY)
    if kind == "segmentation":
        stage["target"] = "taming.models.vqgan.VQSegmentationModel"
        stage["params"] |= dict(n_labels=channels)
    stage["params"]["image_key"] = kind
    stage["params"]["ddconfig"] |= dict(in_channels=channels, out_ch=channels)
    return stage, kind


@pytest.mark.parametrize("kind", ["class", "segmentation", "depth", "objects"])
def test_a_converted_transformer_trains_on_evaluates_and_samples(kind, tmp_path, annotated_folder):
    """By the commands as they are typed, on files in the layout of docs/data.md."""
    if kind == "segmentation":
        annotated_folder = shutil.copytree(annotated_folder, tmp_path / "shifted")
        for file in (annotated_folder / "segmentations").rglob("*.png"):
            with Image.open(file) as picture:
                labels = np.asarray(picture) + np.uint8(1)  # nothing is 0
            Image.fromarray(labels).save(file)
    stage, key = small_condition(kind)
    length = {"class": 1, "objects": 3 * 4 + 2}.get(kind, 256)
    vocab = 512 if kind == "objects" else 64  # ids of an object are its class, twice as many with groups
    config = models.net2net(stage, 1, 2, 32, vocab=vocab, block=length + 256, key=key)
    config["params"]["first_stage_config"] = small(models.DUMMY)
    scenes = {"target": "taming.data.annotated_objects_coco.AnnotatedObjectsCoco", "params": {"encode_crop": True}}
    scenes["params"]["min_objects_per_image"] = 1
    more = {"data": {"params": {"train": scenes}}} if kind == "objects" else {}
    ckpt, file = save(build(config), config, tmp_path, **more)
    workdir = tmp_path / "run"
    done = run("convert", f"--ckpt={ckpt}", f"--config={file}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    folder = annotated_folder / "images" if kind == "class" else annotated_folder
    done = run("evaluate", f"--workdir={workdir}", f"--data_path={folder}")  # COCO's ids 1 and 2 are among the scenes'
    assert done.returncode == 0 and "nll" in done.stdout, done.stderr
    fields = [f"--config.data.path={folder}", "--config.steps=1", "--config.eval_every=1"]
    done = run("train", f"--config=configs/stored.py:{workdir}", f"--workdir={workdir}", *fields)
    assert done.returncode == 0 and "starting at step 0" in done.stdout, done.stderr
    file = annotated_folder / {"segmentation": "segmentations", "depth": "depths"}.get(kind, "") / "cross" / "3.png"
    asked = [f"--condition={file}", "--size=32x40"]
    if kind == "objects":
        (tmp_path / "scene.json").write_text('[{"category": "teddy bear", "box": [0, 0, 0.5, 1]}]')
        asked = [f"--layout={tmp_path / 'scene.json'}"]
    if kind == "class":
        asked = ["--classes=0"]
    done = run("sample", f"--workdir={workdir}", f"--out={tmp_path / 'out'}", "--num_samples=1", *asked)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*/00000.png"))) == 1


def run(module: str, *args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"taming_jax.{module}", *args]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{i}.png")
    return folder
