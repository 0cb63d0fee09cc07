"""First stages: their configs from the original's YAML, their tensors from and to its checkpoints."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from taming_jax import checkpoint, config_files
from taming_jax.completion import check_stored, upgrade
from taming_jax.console import say
from taming_jax.convert.names import generator_rules
from taming_jax.convert.settings import Section
from taming_jax.convert.tensors import (
    Tensors,
    averages_from_torch,
    discriminator_from_torch,
    discriminator_to_torch,
    from_torch,
    lpips_to_torch,
    take,
    to_torch,
)
from taming_jax.data.features import LEARNABLE
from taming_jax.first_stage import make_first_stage
from taming_jax.images import color_labels
from taming_jax.losses import DISCRIMINATOR_LOSSES
from taming_jax.models.discriminator import NLayerDiscriminator
from taming_jax.models.perceptual import load_weights
from taming_jax.models.quantize import make_quantizer
from taming_jax.state import TrainState
from taming_jax.tasks.vqgan import has_discriminator, make_task

MAX_WIDTH = 2**16  # of any layer


KINDS = ("VQModel", "VQModelInterface", "VQNoDiscModel", "VQSegmentationModel", "GumbelVQ", "EMAVQ")


def vq_config(model: Section | dict, image_key: str = "image") -> ConfigDict:
    """Our config for a first stage of the original's YAML, {'target', 'params'}.

    image_key: what it is a model of, where the YAML does not say so itself. Raises UserError for a wrong field.
    """
    if isinstance(model, dict):
        model = Section("model", (model,))
    params, kind = model.section("params"), model.target(KINDS)
    lossconfig = params.section("lossconfig", {"target": "none"})
    dd, loss = params.section("ddconfig"), lossconfig.section("params", {})
    for name, value in (("double_z", False), ("dropout", 0.0), ("resamp_with_conv", True)):
        if (given := dd.find(name, value)[0]) != value:
            raise dd.wrong(name, given, f"{value}, nothing else is supported")
    c = config_files.load("imagenet_vq")
    c.data = config_files.module("common").get_data("folder", size=dd.integer("resolution", most=4096))
    c.batch_size = 8
    c.model.update(
        ch=dd.integer("ch", most=MAX_WIDTH),
        ch_mult=dd.integers("ch_mult", 1, 10, most=256),
        num_res_blocks=dd.integer("num_res_blocks", most=64),
        attn_resolutions=dd.integers("attn_resolutions", 0, 100),
        z_channels=dd.integer("z_channels", most=MAX_WIDTH),
        out_ch=dd.integer("out_ch", most=MAX_WIDTH),
    )
    sizes = dict(codebook_size=params.integer("n_embed"), embed_dim=params.integer("embed_dim", most=MAX_WIDTH))
    if kind == "GumbelVQ":
        t = params.section("temperature_scheduler_config").section("params")
        temperature = dict(
            init_value=t.number("lr_start", least=0),
            peak_value=t.number("lr_max", least=0),
            warmup_steps=t.integer("warm_up_steps", least=0),
            decay_steps=t.integer("max_decay_steps"),
            end_value=t.number("lr_min", least=0),
        )
        kl = params.number("kl_weight", 1e-8)
        constant = dict(init_value=kl, peak_value=kl, warmup_steps=0, decay_steps=1, end_value=kl)
        c.quantizer = ConfigDict(
            dict(name="gumbel", straight_through=True, temperature=temperature, kl_weight=constant, **sizes)
        )
    elif kind == "EMAVQ":
        decay, eps = params.number("decay", 0.99, 0, 1), params.number("eps", 1e-5, 0)
        c.quantizer = ConfigDict(dict(name="ema", commitment_weight=params.number("beta"), decay=decay, eps=eps))
        c.quantizer.update(**sizes)
    else:
        c.quantizer = ConfigDict(dict(name="vq", commitment_weight=0.25, legacy=True, **sizes))
    key = "segmentation" if kind == "VQSegmentationModel" else params.text("image_key", image_key)
    c.input = key if key in LEARNABLE else "image"
    c.data.features = tuple(sorted({"image", c.input}))
    # The original's COCO-Stuff has 182 labels from 0 and 255 for none, which it stores as 0 before the others.
    c.data.num_labels = c.model.out_ch if c.input == "segmentation" else 0
    c.data.label_shift = int(c.data.num_labels == 183)
    c.loss.codebook_weight = loss.number("codebook_weight", 1.0)
    # The original takes a pixelloss_weight and never uses it: c.loss.pixel_weight stays 1.
    if c.input == "segmentation":
        c.loss.pixel = "bce"
    if not lossconfig.text("target").endswith("VQLPIPSWithDiscriminator"):
        c.loss.perceptual_weight = c.disc.weight = 0.0
        return c
    c.loss.perceptual_weight = loss.number("perceptual_weight", 1.0)
    start = loss.integer("disc_start", least=0)
    c.disc.update(
        ndf=loss.integer("disc_ndf", 64, most=MAX_WIDTH),
        n_layers=loss.integer("disc_num_layers", 3, most=20),
        use_actnorm=loss.flag("use_actnorm", False),
        loss=loss.text("disc_loss", "hinge", DISCRIMINATOR_LOSSES),
        weight=loss.number("disc_weight", 1.0) * loss.number("disc_factor", 1.0),
        start=start,
        gen_start=start,
    )
    return c


def vq_from_torch(
    tensors: Tensors, model: Section, prefix: str, image_key: str = "image"
) -> tuple[ConfigDict, TrainState]:
    """A first stage's config and state, without an optimizer, from the tensors below a prefix."""
    config = vq_config(model, image_key)
    if has_discriminator(config) and not any(name.startswith(f"{prefix}loss.discriminator.") for name in tensors):
        say(f"the file holds no discriminator, {prefix}loss.discriminator: trained further, the run has none")
        config.disc.weight = 0.0
    check_stored(upgrade(config))
    quantizer, size = make_quantizer(config.quantizer), config.data.size
    x = jax.ShapeDtypeStruct((1, size, size, config.model.out_ch), jnp.float32)
    shapes, rules = make_first_stage(config).parameter_shapes(), generator_rules(config)
    gen = from_torch(tensors, shapes, rules, prefix)
    stats = quantizer.init_stats(gen["quantize"])
    means = {k: take(tensors, f"{prefix}quantize.embedding.{k}", v.shape) for k, v in stats["codebook"].items()}
    params, extra = {"gen": gen}, {"gen": jax.device_get({**stats, "codebook": means})}
    averages, config.ema_decay = averages_from_torch(tensors, shapes, rules, prefix)
    if averages:
        extra["gen"]["ema"] = averages
    if has_discriminator(config):
        disc = NLayerDiscriminator(config.disc.ndf, config.disc.n_layers, config.disc.use_actnorm)
        shapes = jax.eval_shape(lambda key, x: disc.init(key, x, True), jax.random.key(0), x)
        params["disc"], stats = discriminator_from_torch(
            tensors, shapes, config.disc.n_layers, f"{prefix}loss.discriminator."
        )
        extra["disc"] = {"batch_stats": stats}
    return config, TrainState(np.zeros((), np.int32), params, {}, extra, {})


def vq_to_torch(workdir: Path, step: int, config: ConfigDict, prefix: str = "") -> Tensors:
    """A first stage under the original's names; with LPIPS where it has its discriminator, whose loss holds both."""
    shapes = jax.eval_shape(make_task(config).init, jax.random.key(0))
    gen = checkpoint.load_net(workdir, step, "gen", shapes.params["gen"])
    tensors = to_torch(gen, generator_rules(config), prefix)
    stats = checkpoint.load_tree(workdir, step, ("extra", "gen", "codebook"), shapes.extra["gen"]["codebook"])
    if stats:  # the codes that belong to them, not their average
        codes = checkpoint.load_tree(workdir, step, ("params", "gen", "quantize"), shapes.params["gen"]["quantize"])
        tensors |= to_torch({"quantize": codes}, generator_rules(config), prefix)
    tensors |= {f"{prefix}quantize.embedding.{name}": value for name, value in stats.items()}
    if config.input == "segmentation":
        colors = color_labels(jnp.arange(config.model.out_ch))
        tensors[f"{prefix}colorize"] = np.asarray(colors).T[:, :, None, None]
    if "disc" in shapes.params and config.disc.network == "patch":
        disc = checkpoint.load_net(workdir, step, "disc", shapes.params["disc"])
        place = ("extra", "disc", "batch_stats")
        batch_stats = checkpoint.load_tree(workdir, step, place, shapes.extra["disc"]["batch_stats"])
        tensors |= discriminator_to_torch(disc, batch_stats, config.disc.n_layers, f"{prefix}loss.discriminator.")
        tensors |= lpips_to_torch(load_weights(), f"{prefix}loss.perceptual_loss.")
    return tensors
