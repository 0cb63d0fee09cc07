"""Files as LlamaGen, RAR and MaskGIT's VQGAN are published: converted, used, trained further, and converted back."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from taming_jax import checkpoint, completion, config_files, origin
from taming_jax.convert import successors
from taming_jax.convert.checkpoints import from_checkpoint
from taming_jax.convert.names import generator_rules, torch_name
from taming_jax.convert.successors import Asked
from taming_jax.convert.tensors import to_layout, to_torch
from taming_jax.errors import ArgumentError, UserError
from taming_jax.first_stage import make_first_stage
from taming_jax.generator import Generator
from taming_jax.models import llamagen, rar
from taming_jax.models.gpt import unstack
from taming_jax.tasks import make_task
from tests.test_convert import write_safetensors
from tests.tiny import records, run

KEYS = Path(__file__).parent / "golden" / "successors"
CLASSES, CODES, SIZE = 3, 32, 16  # of the tiny files; 8x8 codes


def draw(shapes: dict, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)


def tokenizer_file(kind: str, path: Path) -> Path:
    """A tokenizer of two levels, as it is published."""
    c = config_files.load("imagenet_llamagen_vq")
    c.data.size = SIZE
    c.model.update(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=8, attn_resolutions=(8,))
    if kind == "maskgit_vq":
        c.model.update(network="maskgit", attn_resolutions=())
        c.quantizer = ConfigDict(dict(name="vq", commitment_weight=0.25, legacy=True))
    c.quantizer.update(codebook_size=CODES, embed_dim=8)
    params = draw(make_first_stage(c).parameter_shapes(), 0)
    tensors = to_torch(params, generator_rules(c), "")
    if kind == "llamagen_vq":
        tensors[successors.USAGE] = np.zeros(successors.USAGE_SIZE, np.float32)
    return write_safetensors(path, tensors)


def transformer_file(kind: str, path: Path) -> Path:
    """A transformer of two layers on such codes, as it is published."""
    fields = dict(vocab_size=CODES, cond_size=CLASSES + 1, num_layers=2, n_unmasked=0, mlp_dim=96)
    fields |= dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, unrolled=True)
    if kind == "llamagen":
        net = llamagen.LlamaGPT(**fields, num_heads=2, embed_dim=128, prefix=1, side=8, block_size=64)
    else:
        net = rar.RAR(**fields, num_heads=2, embed_dim=32, num_codes=64, block_size=65)
    shapes = jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, 64), np.int32))["params"]
    tensors = to_torch(draw(shapes, 1), successors.RULES[kind], "")
    return write_safetensors(path, successors.join(kind, tensors))


TOKENIZER_OF = {"llamagen": "llamagen_vq", "rar": "maskgit_vq"}


def converted(kind: str, folder: Path) -> tuple[Path, Path, Path]:
    """-> the files of a transformer and of its tokenizer, and the run that they become."""
    folder.mkdir(exist_ok=True)
    tokenizer = tokenizer_file(TOKENIZER_OF[kind], folder / "vq.safetensors")
    file, workdir = transformer_file(kind, folder / "model.safetensors"), folder / "run"
    from_checkpoint(file, None, workdir, Asked(SIZE if kind == "llamagen" else None, tokenizer))
    return file, tokenizer, workdir


@pytest.fixture(scope="module")
def runs(make_once) -> dict[str, tuple[Path, Path, Path]]:
    return {
        kind: (folder / "model.safetensors", folder / "vq.safetensors", folder / "run")
        for kind in TOKENIZER_OF
        for folder in [make_once(f"successor_{kind}", lambda folder, kind=kind: converted(kind, folder))]
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOKENIZER_OF)
def test_a_converted_run_paints_scores_and_goes_back(kind, runs):
    file, tokenizer, workdir = runs[kind]
    generator = Generator.load(workdir)
    assert generator.class_names == tuple(map(str, range(CLASSES))) and generator.stage.null == CLASSES
    images = generator.sample(1, classes=[0, 2], guidance=2.0, guidance_power=1.5, progress=False)
    assert images.shape == (2, SIZE, SIZE, 3)
    assert np.isfinite(generator.score(images, classes=[0, 2])).all()
    for source, folder in ((file, workdir), (tokenizer, workdir / "first_stage")):
        config, step = completion.load_config(folder)
        content = successors.to_file(successors.kind_of_run(config), folder, step, config)
        back = content.get("model", content)
        found, original = successors.read_kind(source)
        assert found == successors.kind_of_run(config) and back.keys() == original.keys()
        for name, value in back.items():
            np.testing.assert_array_equal(value, original[name])


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOKENIZER_OF)
def test_the_cache_and_the_window_give_what_the_whole_sequence_does(kind, runs):
    """Greedy codes are the likeliest ones of one pass over all of them; larger images are painted by either method."""
    generator = Generator.load(runs[kind][2])
    stage, nets = generator.stage, generator.nets
    images = generator.sample(1, classes=[1], top_k=1, guidance=1.0, progress=False)
    larger = [
        generator.sample(1, classes=[1], top_k=1, guidance=1.0, size=(SIZE, SIZE + 4), method=m, progress=False)
        for m in ("cached", "wavefront")
    ]
    np.testing.assert_array_equal(*larger)
    np.testing.assert_array_equal(larger[0].shape, (1, SIZE, SIZE + 4, 3))
    decode, init_cache = stage.make_decode(False)
    begin, step = jax.jit(lambda params, c, cache: decode(params, c, 0, cache)), jax.jit(decode)
    c = np.array([[1]], np.int32)
    logits, cache = begin(nets["gpt"], c, init_cache(1))
    ids = [np.argmax(logits[:, -1], -1)]
    for position in range(1, stage.first.side**2):
        logits, cache = step(nets["gpt"], np.int32(ids[-1])[:, None], np.int32(position), cache)
        ids.append(np.argmax(logits[:, -1], -1))
    ids = np.stack(ids, 1)
    np.testing.assert_array_equal(np.argmax(jax.jit(stage.logits)(nets["gpt"], c, ids), -1), ids)
    painted = np.asarray(jax.jit(stage.first.decode)(nets["gen"], ids.reshape(1, 8, 8)))
    assert np.abs((np.clip(painted, -1, 1) + 1) * 127.5 - images).max() < 1


@pytest.mark.parametrize("kind", TOKENIZER_OF)
def test_fine_tuning_on_other_classes_keeps_all_else(kind, runs, tmp_path):
    """Also where there are fewer of them."""
    config = config_files.load(f"finetune:{runs[kind][2]}")
    config.data.path = str(tmp_path)
    config = completion.complete(config)
    config.data.class_names = ("a", "b")
    shapes = jax.eval_shape(make_task(config).init, jax.random.key(0))
    found = origin.load(config, completion.find_origin(config), shapes)["gpt"]
    assert shapes.params["gpt"].keys() - found.keys() == {"cond_embedding"}
    assert shapes.params["gpt"]["cond_embedding"].shape[0] == 3


def test_files_of_another_kind_get_one_line(tmp_path, runs):
    llama, llama_vq, _ = runs["llamagen"]
    model, maskgit_vq, _ = runs["rar"]
    other = write_safetensors(tmp_path / "other.safetensors", {"a.weight": np.ones(3, np.float32)})
    named = tmp_path / "c2i_B_384.safetensors"
    named.write_bytes(llama.read_bytes())
    _, tensors = successors.read_kind(llama_vq)
    surplus = write_safetensors(tmp_path / "surplus.safetensors", {**tensors, "extra": np.ones(3, np.float32)})
    lacking = {name: value for name, value in tensors.items() if name != "decoder.norm_out.bias"}
    lacking = write_safetensors(tmp_path / "lacking.safetensors", lacking)
    for file, asked, message in (
        (other, Asked(), r"ckpt=.* holds none of LlamaGen's .* a.weight, .* need their YAML file, --config"),
        (llama, Asked(SIZE), r"first_stage is missing: .* vq_ds16_c2i.pt"),
        (llama, Asked(None, llama_vq), r"size is missing: .* 256 or 384"),
        (named, Asked(256, llama_vq), r"size=256: .* for images of 384 pixels"),
        (llama, Asked(SIZE, model), r"first_stage=.* holds neither LlamaGen's tokenizer"),
        (llama, Asked(SIZE, llama_vq, 3), r"num_heads .* a divisor of 128"),
        (llama, Asked(SIZE, tmp_path / "none"), "first_stage=.*no such file"),
        (model, Asked(32, maskgit_vq), "size=32: .* images of 16 pixels, by its tensors"),
        (llama_vq, Asked(SIZE, llama_vq), "first_stage: only a transformer has it"),
        (surplus, Asked(SIZE), "unexpected tensors: extra"),
        (lacking, Asked(SIZE), r"tensor 'decoder.norm_out.bias' \(32,\) is missing"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            from_checkpoint(file, None, tmp_path / "run", asked)
        assert "\n" not in str(caught.value) and not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(ArgumentError, match="multiples of 2 from 16 on"):
        Generator.load(runs["llamagen"][2]).plan(size="8x8")


def full_size(name: str) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of published files, without storage, of `KEYS_*.txt`: {model: {name: zeros}}."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for line in (KEYS / f"KEYS_{name}.txt").read_text().splitlines():
        if line.startswith("## "):
            tensors = found[line[3:].split(" (")[0]] = {}
        elif match := re.fullmatch(r"(\S+) \[([\d, ]*)\]", line):
            value = np.broadcast_to(np.float32(0), tuple(map(int, match[2].split(","))))
            parts = re.split(r"<(\d+)\.\.(\d+)>|<(\d+)>", match[1])
            names = [parts[0]]
            for first, last, only, rest in zip(*(parts[i::4] for i in (1, 2, 3, 4)), strict=True):
                numbers = [int(only)] if only else range(int(first), int(last) + 1)
                names = [f"{before}{number}{rest}" for before in names for number in numbers]
            tensors |= dict.fromkeys(names, value)
    return found


@pytest.mark.parametrize("name", ["llamagen_vq", "llamagen_gpt", "rar", "maskgit_vqgan"])
def test_published_files_have_the_tensors_that_are_asked_for(name):
    """By names and shapes, at full size; the counts of parameters are those of the files' own code."""
    text = (KEYS / f"KEYS_{name}.txt").read_text()
    counted = [int(n.replace(",", "")) for n in re.findall(r"^parameters ([\d,]+)", text, re.MULTILINE)]
    for (model, tensors), parameters in zip(full_size(name).items(), counted, strict=True):
        kind = successors.kind_of(tensors)
        assert kind == {"llamagen_gpt": "llamagen", "maskgit_vqgan": "maskgit_vq"}.get(name, name)
        if kind in successors.TOKENIZERS:
            tensors.pop(successors.USAGE, None)
            config = successors.first_stage_config(kind, tensors, 256)
            assert config.model.ch_mult == ((1, 2, 2, 4) if model == "VQ-8" else (1, 1, 2, 2, 4)), model
            shapes, rules = make_first_stage(config).parameter_shapes(), generator_rules(config)
        else:
            successors.split(kind, tensors)
            shapes, rules = transformer_shapes(kind, tensors), successors.RULES[kind]
        flat = flatten_dict(shapes, sep="/")
        assert sum(int(np.prod(leaf.shape)) for leaf in flat.values()) == parameters, model
        ours = {
            torch_name(path, rules): to_layout(path, np.broadcast_to(np.float32(0), leaf.shape)).shape
            for path, leaf in flat.items()
        }
        assert ours == {name: value.shape for name, value in tensors.items()}, model


def transformer_shapes(kind: str, tensors: dict) -> dict:
    """The parameters of the net that a file's sizes make, layer by layer."""
    fields = successors.llamagen_fields(tensors, None) if kind == "llamagen" else successors.rar_fields(tensors)
    gpt, sizes = fields["gpt"], fields["sizes"]
    common = dict(vocab_size=sizes["codes"], cond_size=sizes["classes"] + 1, n_unmasked=0, unrolled=True)
    common |= {k: v for k, v in gpt.items() if k != "architecture"}
    if kind == "llamagen":
        assert gpt["embed_dim"] // gpt["num_heads"] == (100 if gpt["embed_dim"] == 3200 else 64)
        net = llamagen.LlamaGPT(**common, prefix=1, side=24, block_size=576)
    else:
        net = rar.RAR(**common, num_codes=sizes["length"], block_size=sizes["length"] + 1)
    return jax.eval_shape(net.init, jax.random.key(0), np.zeros((1, 16), np.int32))["params"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOKENIZER_OF)
def test_by_command(kind, tmp_path, annotated_folder, picture_folder):
    """Convert, sample, evaluate, ten steps of training, and where PyTorch is there, back and once more."""
    tokenizer = tokenizer_file(TOKENIZER_OF[kind], tmp_path / "vq.safetensors")
    file, workdir = transformer_file(kind, tmp_path / "model.safetensors"), tmp_path / "run"
    images = tmp_path / "images"
    for label, folder in enumerate(sorted(path for path in picture_folder.iterdir() if path.is_dir())):
        (images / str(label)).mkdir(parents=True)
        for picture in folder.iterdir():
            (images / str(label) / picture.name).write_bytes(picture.read_bytes())

    def succeed(*args: str) -> str:
        done = run(*args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    size = [f"--size={SIZE}"] if kind == "llamagen" else []
    succeed("convert", f"--ckpt={file}", f"--first_stage={tokenizer}", f"--workdir={workdir}", *size)
    out = tmp_path / "out"
    succeed("sample", f"--workdir={workdir}", f"--out={out}", "--num_samples=1", "--guidance=3", "--guidance_power=1")
    assert (out / "samples.png").exists()
    succeed("evaluate", f"--workdir={workdir}", f"--data_path={images}")
    more = ["--config.steps=10", "--config.batch_size=8", "--config.log_every=1", "--config.eval_every=10"]
    more += [f"--config.data.path={images}", "--config.checkpoint_every=10"]
    more += ["--config.gpt.random_order=(5,10)"] if kind == "rar" else []
    succeed("train", f"--config=stored:{workdir}", f"--workdir={workdir}", *more)
    assert checkpoint.steps(workdir)[-1] == 10
    losses = [record["loss"] for record in records(workdir, "train")]
    assert len(losses) == 10 and np.isfinite(losses).all()
    succeed("train", f"--config=stored:{workdir}/first_stage", f"--workdir={workdir}/first_stage", *more[:6])
    pytest.importorskip("torch")
    succeed("convert", f"--workdir={workdir}", f"--to-torch={tmp_path / 'back.pt'}")
    again = [
        "convert",
        f"--ckpt={tmp_path / 'back.pt'}",
        f"--first_stage={tokenizer}",
        f"--workdir={tmp_path / 'again'}",
    ]
    succeed(*again, *size)
    shapes = completion.net_shapes(completion.load_config(workdir)[0])
    trained, returned = (
        checkpoint.load_net(path, step, "gpt", shapes) for path, step in ((workdir, 10), (tmp_path / "again", 0))
    )
    jax.tree.map(np.testing.assert_array_equal, unstack(trained), unstack(returned))
