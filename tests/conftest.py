"""Every test sees eight CPU devices, so that any of them can build a mesh; runs go to temporary folders."""

import json
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Most of the tests' time is XLA's: the models are tiny, so quick compilation beats quick programs.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_experimental_ynn_fusion_type=")
# Tests compile the same small programs over and over, in this process and in those that they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jax_cache_"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageOps

from configs import openmoji_transformer, openmoji_vq
from taming_jax import sampling
from taming_jax.train import train

flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 coloured shapes of many sizes in three class folders."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("circle", "cross", "square"):
        (root / name).mkdir()
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
    return root


@pytest.fixture(scope="session")
def annotated_folder(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures in the layout of docs/data.md, with all that can belong to them."""
    root = tmp_path_factory.mktemp("annotated")
    names = ["circle", "cross", "square"]
    pictures, objects = [], []
    for number, file in enumerate(sorted(picture_folder.rglob("*.png"))):
        relative = file.relative_to(picture_folder)
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
        pictures.append(dict(id=number, file_name=relative.as_posix(), width=w, height=h))
        category = names.index(relative.parts[0])
        objects.append(dict(image_id=number, category_id=category, bbox=[4, 4, w - 8, h - 8], iscrowd=0))
    categories = [dict(id=i, name=name) for i, name in enumerate(names)]
    content = dict(images=pictures, annotations=objects, categories=categories)
    (root / "objects").mkdir()
    (root / "objects" / "shapes.json").write_text(json.dumps(content))
    return root


def changed(config: ConfigDict, **fields) -> ConfigDict:
    """The config with some fields set: data__size=17 for config.data.size."""
    with config.unlocked():
        config.update_from_flattened_dict({key.replace("__", "."): value for key, value in fields.items()})
    return config


def tiny_vq(folder: Path) -> ConfigDict:
    """The demo's first stage, small: 16 pixels, 8x8 codes, all losses on from step 2."""
    c = openmoji_vq.get_config()
    c.data.update(name="folder", path=str(folder), size=16, resize_factor=1.125, validation_share=0.2)
    c.model.update(ch_mult=(1, 1), num_res_blocks=1, z_channels=32)
    c.quantizer.update(codebook_size=32, embed_dim=8)
    c.loss.perceptual_start = 0
    c.disc.update(ndf=8, n_layers=1, start=0, gen_start=2, ramp_steps=2)
    c.update(batch_size=8, steps=4, log_every=1, eval_every=4, checkpoint_every=2)
    c.optim.update(learning_rate=1e-3, warmup_steps=0, schedule="constant")
    return c


def tiny_prior(first_stage: Path) -> ConfigDict:
    c = openmoji_transformer.get_config()
    c.first_stage.workdir = str(first_stage)
    c.gpt.update(num_layers=2, num_heads=2, embed_dim=32)
    c.update(batch_size=8, steps=4, log_every=1, eval_every=4, checkpoint_every=2)
    c.optim.update(warmup_steps=0, schedule="constant")
    return c


def sample_plainly(decode, cache, prefix, length: int, keys, top_k: int, temperature=1.0, top_p=1.0):
    """`sample_full` row by row of nothing that is known."""
    codes, known = jnp.zeros((len(prefix), length), jnp.int32), jnp.zeros(length, bool)
    options = (jnp.arange(length), keys, temperature, top_k, top_p)
    return jax.jit(sampling.sample_full, static_argnums=0)(decode, cache, jnp.asarray(prefix), codes, known, *options)


@pytest.fixture(scope="session")
def vq_run(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished first stage, profiled on its way."""
    workdir = tmp_path_factory.mktemp("runs") / "vq"
    train(tiny_vq(picture_folder), workdir, profile_step=2)
    return workdir


@pytest.fixture(scope="session")
def prior_run(vq_run: Path) -> Path:
    """A finished second stage on top of `vq_run`."""
    workdir = vq_run.parent / "prior"
    train(tiny_prior(vq_run), workdir)
    return workdir
