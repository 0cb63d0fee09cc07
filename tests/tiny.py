"""What the tests share: small data, small configs, runs and commands, and looks at what they leave."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageOps

from configs import openmoji_transformer, openmoji_vq
from taming_jax import checkpoint
from taming_jax.generator import Generator
from taming_jax.sampling.draw import Sampling
from taming_jax.sampling.sequence import sample_full

ROOT = Path(__file__).parents[1]


def draw_pictures(root: Path) -> None:
    """48 coloured shapes of many sizes in three class folders."""
    rng = np.random.default_rng(0)
    for name in ("circle", "cross", "square"):
        (root / name).mkdir(parents=True)
        for i in range(16):
            w, h = rng.integers(20, 40, 2)
            image = Image.new("RGB", (int(w), int(h)), tuple(rng.integers(128, 256, 3).tolist()))
            draw, ink = ImageDraw.Draw(image), tuple(rng.integers(0, 128, 3).tolist())
            box = (4, 4, int(w) - 4, int(h) - 4)
            if name == "circle":
                draw.ellipse(box, fill=ink)
            elif name == "square":
                draw.rectangle(box, fill=ink)
            else:
                draw.line(box, fill=ink, width=3)
                draw.line((box[0], box[3], box[2], box[1]), fill=ink, width=3)
            image.save(root / name / f"{i}.png")


def annotate(folder: Path, root: Path) -> None:
    """A folder's pictures in the layout of docs/data.md, with all that can belong to them."""
    names = ["circle", "cross", "square"]
    described, objects = [], []
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        relative = file.relative_to(folder)
        with Image.open(file) as picture:
            grey = np.asarray(picture.convert("L")).astype(np.float32)
            (w, h), image = picture.size, picture.copy()
        labels = np.where(grey > grey[0, 0] - 30, 255, names.index(relative.parts[0])).astype(np.uint8)
        depth = Image.fromarray(np.ascontiguousarray(grey / 7 + 1).view(np.uint8).reshape(h, w, 4), "RGBA")
        kinds = dict(images=image, segmentations=Image.fromarray(labels), depths=depth, lines=image.convert("L"))
        kinds["others"] = ImageOps.invert(image)
        for kind, content in kinds.items():
            (root / kind / relative).parent.mkdir(parents=True, exist_ok=True)
            content.save(root / kind / relative)
        (root / "captions" / relative.parent).mkdir(parents=True, exist_ok=True)
        name = relative.parts[0]
        (root / "captions" / relative).with_suffix(".txt").write_text(f"A {name}, Nr. {number % 4}\none {name}\n")
        described.append(dict(id=number, file_name=relative.as_posix(), width=w, height=h))
        category = names.index(relative.parts[0])
        objects.append(dict(image_id=number, category_id=category, bbox=[4, 4, w - 8, h - 8], iscrowd=0))
    categories = [dict(id=i, name=name) for i, name in enumerate(names)]
    content = dict(images=described, annotations=objects, categories=categories)
    (root / "objects").mkdir()
    (root / "objects" / "shapes.json").write_text(json.dumps(content))


def changed(config: ConfigDict, **fields) -> ConfigDict:
    """The config with some fields set: data__size=17 for config.data.size."""
    with config.unlocked():
        config.update_from_flattened_dict({key.replace("__", "."): value for key, value in fields.items()})
    return config


def tiny_vq(folder: Path) -> ConfigDict:
    """A VQGAN on OpenMoji, small: 16 pixels, 8x8 codes, discriminator from step 2; no LPIPS, half of the time."""
    c = openmoji_vq.get_base()
    c.data.update(name="folder", path=str(folder), size=16, resize_factor=1.125, validation_share=0.2)
    c.model.update(ch_mult=(1, 1), num_res_blocks=1, z_channels=32)
    c.quantizer.update(codebook_size=32, embed_dim=8)
    c.loss.update(perceptual_start=0, perceptual_weight=0.0)
    c.disc.update(ndf=8, n_layers=1, start=0, gen_start=2, ramp_steps=2)
    c.update(batch_size=8, steps=4, log_every=1, eval_every=4, checkpoint_every=2)
    # Adam, since Muon takes longer to compile.
    c.optim.update(name="adam", learning_rate=1e-3, warmup_steps=0, schedule="constant")
    return c


def tiny_transformer(first_stage: Path) -> ConfigDict:
    """The paper's transformer, small, on a finished first one."""
    c = openmoji_transformer.get_base()
    c.first_stage.workdir = str(first_stage)
    c.gpt.update(num_layers=2, num_heads=2, embed_dim=32)
    c.update(batch_size=8, steps=4, log_every=1, eval_every=4, checkpoint_every=2)
    c.optim.update(name="adam", learning_rate=1e-3, warmup_steps=0, schedule="constant")
    return c


def mesh_of(**sizes) -> ConfigDict:
    """A config's mesh with these sides, the others of one device."""
    return ConfigDict(dict(data=1, fsdp=1, tensor=1) | sizes)


def run(module: str, *args: str) -> subprocess.CompletedProcess:
    """A command as a user types it."""
    command = [sys.executable, "-m", f"taming_jax.{module}", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def finish(processes: list[subprocess.Popen]) -> list[str]:
    """Waits for processes that must succeed; -> what each has printed."""
    printed = [process.communicate(timeout=280)[0] for process in processes]
    for process, text in zip(processes, printed, strict=True):
        assert process.returncode == 0, text
    return printed


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def records(workdir: Path, split: str) -> list[dict]:
    """What a run has logged of a split, in order."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["split"] == split]


def state_of(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint by its path."""
    step = checkpoint.steps(workdir)[-1]
    with checkpoint.ocp.PyTreeCheckpointer() as reader:
        path = workdir.absolute() / "checkpoints" / str(step) / "state"
        shapes = reader.metadata(path).item_metadata.tree
        numpy = jax.tree.map(lambda _: checkpoint.ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        tree = reader.restore(path, restore_args=numpy)
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def change_stored(workdir: Path, change: Callable[[dict], object]) -> None:
    """Changes the configs that a run has stored, as if they had been stored so."""
    for step in checkpoint.steps(workdir):
        config = json.loads((workdir / "checkpoints" / str(step) / "config" / "metadata").read_text())
        change(config)
        store(workdir, step, config)


def store(workdir: Path, step: int, config: object) -> None:
    """Puts another config in place of a stored one, with its sum."""
    folder = workdir / "checkpoints" / str(step)
    sums = json.loads((folder / "sums" / "metadata").read_text())
    (folder / "config" / "metadata").write_text(json.dumps(config))
    (folder / "sums" / "metadata").write_text(json.dumps(sums | {"config": checkpoint.sum_json(config)}))


def put(tree: object, path: str, value: object) -> object:
    """A copy of what JSON holds with another value at a path, 'a.b'; '' is all of it, and ... means to remove."""
    if not path:
        return value
    name, _, rest = path.partition(".")
    if value is ... and not rest:
        return {key: inner for key, inner in tree.items() if key != name}
    return {**tree, name: put(tree.get(name), rest, value)}


def forget_copies(workdir: Path, first_stage: str) -> None:
    """Makes a transformer's run like those from before there were sums and copies of first stages."""
    shutil.rmtree(workdir / "first_stage", ignore_errors=True)
    for step in checkpoint.steps(workdir):
        shutil.rmtree(workdir / "checkpoints" / str(step) / "sums", ignore_errors=True)
        stored = workdir / "checkpoints" / str(step) / "config" / "metadata"
        config = json.loads(stored.read_text())
        config["first_stage"] |= {"workdir": first_stage, "digest": "", "origin": ""}
        stored.write_text(json.dumps(config))
        place = workdir / "checkpoints" / str(step) / "data" / "metadata"
        place.write_text(json.dumps({k: v for k, v in json.loads(place.read_text()).items() if k != "summed"}))


def sample_plainly(decode, cache, prefix, length: int, keys, top_k: int, temperature=1.0, top_p=1.0) -> jax.Array:
    """`sample_full` row by row of nothing that is known."""
    codes, known = jnp.zeros((len(prefix), length), jnp.int32), jnp.zeros(length, bool)
    options = (jnp.arange(length), keys, Sampling(temperature, top_k, top_p))
    return jax.jit(sample_full, static_argnums=0)(decode, cache, jnp.asarray(prefix), codes, known, *options)


def paint(generator: Generator, labels: list[int], columns: int, batch_size: int = 8, **asked) -> np.ndarray:
    """Images [labels,columns,H,W,3] of classes. asked: of `Generator.plan`."""
    rows = {
        "label": np.repeat(np.int32(labels), columns),
        "index": np.tile(np.arange(columns, dtype=np.int32), len(labels)),
    }
    painted = np.concatenate(list(generator.paint(rows, generator.plan(**asked), batch_size, progress=False)))
    return painted.reshape(len(labels), columns, *painted.shape[1:])
