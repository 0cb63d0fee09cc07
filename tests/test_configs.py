"""Every config builds, has the size that it should, and trains when its sizes are made small."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from taming_jax.completion import complete_ahead
from taming_jax.loop import train
from taming_jax.tasks import make_task
from tests.tiny import changed

# Parameters of each net.
PARAMETERS = {
    "ade20k_segmentation_vq": {"gen": 72_482_839},
    "ade20k_transformer": {"gpt": 304_932_864},
    "ade20k_vq": {"gen": 72_141_699, "disc": 2_765_633},
    "celebahq_transformer": {"gpt": 304_670_720},
    "coco_scenes_transformer": {"gpt": 975_876_352},
    "coco_segmentation_vq": {"gen": 72_556_599},
    "coco_transformer": {"gpt": 304_932_864},
    "coco_vq": {"gen": 72_141_699, "disc": 2_765_633},
    "custom_modern_transformer": {"gpt": 87_379_968, "guesses": 1_771_776},
    "custom_modern_vq": {"gen": 54_515_587, "disc": 7_431_297},
    "custom_small_transformer": {"gpt": 5_622_656, "guesses": 143_920},
    "custom_small_vq": {"gen": 1_522_956},
    "custom_transformer": {"gpt": 304_670_720},
    "custom_vq": {"gen": 72_141_699, "disc": 2_765_633},
    "drin_depth_vq": {"gen": 72_137_089, "disc": 2_763_585},
    "drin_transformer": {"gpt": 304_932_864},
    "faceshq_transformer": {"gpt": 304_932_864},
    "faceshq_vq": {"gen": 72_141_699, "disc": 2_765_633},
    "ffhq_transformer": {"gpt": 304_670_720},
    "imagenet_llamagen_vq": {"gen": 71_883_403, "disc": 2_765_633},
    "imagenet_modern_transformer": {"gpt": 306_865_152, "guesses": 2_886_400},
    "imagenet_modern_vq": {"gen": 54_515_587, "disc": 7_431_297},
    "imagenet_transformer": {"gpt": 1_410_640_896},
    "imagenet_vq": {"gen": 72_141_699, "disc": 2_765_633},
    "lsun_transformer": {"gpt": 304_670_720},
    "lsun_vq": {"gen": 72_141_699, "disc": 2_765_633},
    "open_images_scenes_transformer": {"gpt": 1_045_638_144},
    "open_images_vq": {"gen": 73_976_707, "disc": 2_765_633},
    "openmoji_captions_transformer": {"gpt": 3_722_496},
    "openmoji_coordinates_transformer": {"gpt": 3_716_352},
    "openmoji_crops_vq": {"gen": 715_324},
    "openmoji_ema_vq": {"gen": 818_035, "disc": 167_841},
    "openmoji_fsq_vq": {"gen": 800_103, "disc": 167_841},
    "openmoji_gumbel_vq": {"gen": 818_547, "disc": 167_841},
    "openmoji_l2_vq": {"gen": 818_035},
    "openmoji_large_low_vq": {"gen": 752_944},
    "openmoji_large_transformer": {"gpt": 5_317_376, "guesses": 143_920},
    "openmoji_large_vq": {"gen": 715_324},
    "openmoji_line_transformer": {"gpt": 5_218_304, "guesses": 143_920},
    "openmoji_line_vq": {"gen": 696_372},
    "openmoji_low_vq": {"gen": 624_288},
    "openmoji_masked_transformer": {"gpt": 3_721_472},
    "openmoji_scenes_transformer": {"gpt": 5_189_888, "guesses": 143_920},
    "openmoji_scenes_vq": {"gen": 715_324},
    "openmoji_segmentation_transformer": {"gpt": 5_251_072, "guesses": 143_920},
    "openmoji_segmentation_vq": {"gen": 728_424},
    "openmoji_superres_transformer": {"gpt": 5_251_072, "guesses": 143_920},
    "openmoji_transformer": {"gpt": 4_011_776, "guesses": 143_920},
    "openmoji_vq": {"gen": 715_324},
    "sflckr_segmentation_vq": {"gen": 72_554_294},
    "sflckr_transformer": {"gpt": 304_932_864},
    "sflckr_vq": {"gen": 72_141_699, "disc": 2_765_633},
}


def load(name: str) -> ConfigDict:
    if name in ("coco_8192_vq", "imagenet_16384_vq"):  # as the configs of transformers say they are made
        data, size, _ = name.split("_")
        return changed(load(f"{data}_vq"), quantizer__codebook_size=int(size))
    return importlib.import_module(f"configs.{name}").get_config()


def test_no_config_is_left_untested():
    assert {p.stem for p in Path("configs").glob("*.py")} - {"common", "finetune", "stored"} == set(PARAMETERS)


def bases(name: str) -> set[str]:
    """The configs that a config imports, but for `common`, which all share."""
    tree = ast.parse(Path(f"configs/{name}.py").read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    full = {f"{getattr(n, 'module', None) or ''}.{alias.name}".strip(".") for n in imports for alias in n.names}
    return {x.split(".")[1] for x in full if x.startswith("configs.")} - {"common"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_name_ends_in_its_stage_and_at_most_one_other_config_is_to_be_read(name):
    assert name.endswith(("_vq", "_transformer"))
    assert len(bases(name)) <= 1 and not any(bases(base) for base in ("common", *bases(name)))


def completed(name: str) -> ConfigDict:
    config = load(name)
    if config.task == "vqgan":
        return config
    stages = {"first_stage": load(Path(config.first_stage.workdir).name)}
    if config.cond.workdir:
        stages["cond"] = load(Path(config.cond.workdir).name)
    return complete_ahead(config, stages)


@pytest.mark.parametrize("name", PARAMETERS)
def test_config_builds_with_its_exact_size(name):
    config = completed(name)
    shapes = jax.eval_shape(make_task(config).init, jax.random.key(0))
    counts = {net: sum(leaf.size for leaf in jax.tree.leaves(p)) for net, p in shapes.params.items()}
    assert counts == PARAMETERS[name]


SMALL_VQ = dict(
    batch_size=8,
    steps=2,
    eval_every=2,
    data__size=16,
    data__workers=0,
    model__ch=32,
    model__ch_mult=(1, 1),
    model__num_res_blocks=1,
    disc__ndf=32,
    disc__n_layers=1,
    quantizer__codebook_size=16,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet_vq", "custom_vq", "custom_modern_vq", "custom_small_vq"])
def test_first_stages_run_small(name, picture_folder, tmp_path):
    """The paper's config on TFDS's mock of ImageNet, the others on a folder; with all of their losses on."""
    config = changed(load(name), **SMALL_VQ, loss__perceptual_start=0, disc__start=0, disc__gen_start=0)
    config.loss.perceptual_crop = 0  # images are smaller here
    if name == "imagenet_vq":
        with tfds.testing.mock_data(num_examples=16):
            assert train(config, tmp_path)["psnr"] > 0
    else:
        config = changed(config, data__name="folder", data__path=str(picture_folder), data__validation_share=0.2)
        assert train(config, tmp_path)["psnr"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"openmoji_{name}_vq" for name in ("fsq", "l2", "ema", "gumbel")])
def test_relatives_of_the_vqgan_run_small(name, picture_folder, tmp_path):
    """With the plain loss alone; what else they have is in the others."""
    config, small = load(name), SMALL_VQ | dict(loss__perceptual_weight=0.0, disc__weight=0.0)
    if "codebook_size" not in config.quantizer:
        del small["quantizer__codebook_size"]
    config = changed(config, **small)
    config = changed(config, data__name="folder", data__path=str(picture_folder), data__validation_share=0.2)
    assert train(config, tmp_path)["psnr"] > 0


# What a few hundred steps must beat on held-out drawings. The median drawing has an L1 of 0.30, and the share of each
# label at each pixel a BCE of 0.34.
BEATS = {
    "openmoji_vq": ("l1", 0.2),
    "openmoji_l2_vq": ("l1", 0.2),
    "openmoji_ema_vq": ("l1", 0.2),
    "openmoji_gumbel_vq": ("l1", 0.24),
    "openmoji_fsq_vq": ("l1", 0.2),
    "openmoji_segmentation_vq": ("bce", 0.16),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BEATS)
def test_first_stages_learn(name, tmp_path):
    """300 steps at the config's own size, as typed; the losses on pixels and codes alone."""
    fields = "steps=300 eval_every=300 loss.perceptual_start=300 disc.start=300 disc.gen_start=300"
    if "segmentation" in name:  # its bound is that of whole drawings, of which little is ink
        fields += " data.resize_factor=1.0 data.random_crop=False"
    flags = [f"--config.{field}" for field in fields.split()]
    command = [sys.executable, "-m", "taming_jax.train", f"--config=configs/{name}.py", f"--workdir={tmp_path}", *flags]
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}  # those of the tests
    subprocess.run(command, check=True, env=env, timeout=900)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    result = [r for r in map(json.loads, lines) if r["split"] == "validation"][-1]
    metric, bound = BEATS[name]
    assert result[metric] < bound, result
    assert result["code_use"] > (0.03 if name == "openmoji_gumbel_vq" else 0.5)  # its codes come into use late


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [f"{name}_transformer" for name in ("custom", "custom_modern", "custom_small", "openmoji")]
)
def test_second_stages_run_small(name, vq_run, tmp_path):
    small = dict(batch_size=8, steps=2, eval_every=2, gpt__num_layers=1, gpt__num_heads=2, gpt__embed_dim=16)
    config = changed(load(name), first_stage__workdir=str(vq_run), **small)
    assert 0 < train(config, tmp_path)["nll"] < 10
