"""Transformers with their first stages, conditions and layouts, from and to the original's checkpoints."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from taming_jax import checkpoint, config_files
from taming_jax.completion import complete, stages_of
from taming_jax.conditions.layout import KINDS
from taming_jax.convert.names import LAYOUTS, ORDERS, TRANSFORMER
from taming_jax.convert.settings import Section
from taming_jax.convert.tensors import Tensors, from_torch, to_torch
from taming_jax.convert.vqgan import KINDS as FIRST_STAGES
from taming_jax.convert.vqgan import MAX_WIDTH, vq_from_torch, vq_to_torch
from taming_jax.data import annotations
from taming_jax.errors import UserError
from taming_jax.first_stage import make_first_stage
from taming_jax.models.gpt import stack, unstack
from taming_jax.second_stage import make_second_stage
from taming_jax.state import TrainState

MAX_CLASSES, MAX_LENGTH = 100_000, 2**14
CONDITIONS = ("Labelator", "SOSProvider", "CoordStage", "DummyCondStage", *FIRST_STAGES)


def transformer_from_torch(
    tensors: Tensors, params: Section, data: Section, workdir: Path
) -> dict[Path, tuple[ConfigDict, TrainState]]:
    """A transformer and its first stages, each with the run directory that it goes into.

    params, data: the YAML's, of the model and of what it was trained on.
    """
    t, config = params.section("transformer_config").section("params"), config_files.load("custom_transformer")
    if params.integer("downsample_cond_size", -1, least=-1) > -1:
        raise UserError(f"{params.full('downsample_cond_size')} is not supported")
    first_key = params.text("first_stage_key", "image")
    first, state = vq_from_torch(tensors, params.section("first_stage_config"), "first_stage_model.", first_key)
    runs = {workdir / "first_stage": (first, state)}
    order = params.section("permuter_config", {"target": "Identity"}).target(ORDERS)
    with config.unlocked():
        config.first_stage.update(workdir=str(workdir / "first_stage"), step=0)
        config.cond, class_names = condition(tensors, params, data, workdir, runs)
        heads, width = t.integer("n_head", most=MAX_WIDTH), t.integer("n_embd", most=MAX_WIDTH)
        if width % heads:
            raise t.wrong("n_embd", width, f"a multiple of n_head={heads}")
        config.gpt.update(num_layers=t.integer("n_layer", most=500), num_heads=heads, embed_dim=width)
        config.gpt.update({name: t.number(name, 0.0, 0, 1) for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")})
        config.gpt.update(n_unmasked=t.integer("n_unmasked", 0, least=0))
        config.gpt.update(vocab_size=t.integer("vocab_size"), block_size=t.integer("block_size", most=MAX_LENGTH))
        config.update(pkeep=params.number("pkeep", 1.0, 0, 1), order=ORDERS[order], ema_decay=0.0)
        if (used := tensors.pop("first_stage_model.quantize.used", None)) is not None:
            size = first.quantizer.codebook_size
            if used.ndim != 1 or used.dtype.kind not in "iu" or not np.all((used >= 0) & (used < size)):
                raise UserError(f"tensor 'first_stage_model.quantize.used' is no list of codes below {size}")
            config.first_stage.used = tuple(map(int, used))
    config = completed(config, runs, class_names)
    stage = make_second_stage(config)
    side = stage.first.side
    stored = tensors.get("permuter.forward_shuffle_idx", np.arange(side * side))
    if not np.array_equal(stored, stage.order):
        raise UserError(f"tensor 'permuter.forward_shuffle_idx' is not the order of {order} on {side}x{side} codes")
    like = jax.eval_shape(lambda key: unstack(stage.init(key)), jax.random.key(0))
    gpt = stack(from_torch(tensors, like, TRANSFORMER, "transformer."))
    runs[workdir] = (config, TrainState(np.zeros((), np.int32), {"gpt": gpt}, {}, {"gpt": {}}, {}))
    return runs


def completed(config: ConfigDict, runs: dict, class_names: tuple[str, ...]) -> ConfigDict:
    """A transformer's config, completed from its first stages, which are among `runs`."""
    config = complete(config, None, lambda path, step: (runs[path][0], step))
    config.data.class_names = class_names
    for name in stages_of(config):
        _, state = runs[Path(config[name].workdir)]
        weights = state.extra["gen"].get("ema", state.params["gen"])
        with config.unlocked():
            config[name].update(origin=config[name].workdir, digest=checkpoint.digest(weights))
    return config


def condition(
    tensors: Tensors, params: Section, data: Section, workdir: Path, runs: dict
) -> tuple[ConfigDict, tuple[str, ...]]:
    """Our `cond` for the original's `cond_stage_config`, and the names of the classes; a VQGAN is added to `runs`."""
    stage, _ = params.find("cond_stage_config")

    def cond(name: str, **fields) -> ConfigDict:
        return ConfigDict({**config_files.module("common").get_cond(name), **fields})

    if stage == "__is_unconditional__" or params.flag("unconditional", False):
        return cond("none", sos=params.integer("sos_token", 0, least=0)), ()
    if stage == "__is_first_stage__":  # stored twice; the second is read and dropped
        vq_from_torch(tensors, params.section("first_stage_config"), "cond_stage_model.")
        return cond("image", workdir=str(workdir / "first_stage"), step=0), ()
    stage = params.section("cond_stage_config")
    kind, given = stage.target(CONDITIONS), stage.section("params", {})
    if kind == "Labelator":
        return cond("class"), tuple(map(str, range(given.integer("n_classes", most=MAX_CLASSES))))
    if kind == "SOSProvider":
        return cond("none", sos=given.integer("sos_token", least=0)), ()
    if kind == "CoordStage":
        return cond("coordinates", levels=given.integer("n_embed"), down=given.integer("down_factor", most=4096)), ()
    if kind == "DummyCondStage":
        t, first = params.section("transformer_config").section("params"), runs[workdir / "first_stage"][0]
        length = t.integer("block_size", most=MAX_LENGTH) - make_first_stage(first).side ** 2
        return layout(given, length, t.integer("vocab_size"), data)
    key = params.text("cond_stage_key", "image")
    runs[workdir / "cond_stage"] = vq_from_torch(tensors, stage, "cond_stage_model.", key)
    return cond("image", workdir=str(workdir / "cond_stage"), step=0), ()


def layout(stage: Section, length: int, num_tokens: int, data: Section) -> tuple[ConfigDict, tuple[str, ...]]:
    """The condition on objects, `length` ids, and its classes, which the YAML's data section lets one know."""
    kind = LAYOUTS[stage.text("conditional_key", allowed=LAYOUTS)]
    cond = config_files.module("common").get_cond("objects")
    train = data.section("params", {}).section("train", {"target": ""})
    given = train.section("params", {})
    encode_crop = length % 3 == 2 if kind == "bbox" else given.flag("encode_crop", False)
    cond.layout.update(
        kind=kind,
        num_tokens=num_tokens,
        max_objects=(length - 2 * encode_crop) // KINDS[kind],
        encode_crop=encode_crop,
        min_objects=given.integer("min_objects_per_image", 2, least=0),
        min_area=given.number("min_object_area", 1e-5, 0),
        use_group=given.flag("use_group_parameter", True),
    )
    source, table = train.target(), ""
    if source == "AnnotatedObjectsCoco" and given.flag("use_things", True) and given.flag("use_stuff", True):
        table = "coco"
    elif source == "AnnotatedObjectsOpenImages":
        chosen = (given.text(f"category_{kind}_target", "") for kind in ("allow_list", "mapping"))
        known = ("top_300_classes_plus_coco_compatibility", "open_images_unify_categories_for_coco")
        table = "open_images" if all(map(str.endswith, chosen, known)) else ""
    cond.layout.categories = table
    return cond, tuple(annotations.read_categories(table)[1]) if table else ()


def transformer_to_torch(workdir: Path, step: int, config: ConfigDict) -> Tensors:
    """A transformer and its first stages under the original's names."""
    if config.gpt.context.kind != "window":
        raise UserError(f"{workdir} has a {config.gpt.context.kind} transformer, which the original does not know")
    stage, stages = make_second_stage(config), {"first_stage_model.": config.first_stage}
    if stage.cond.stage is not None:
        stages["cond_stage_model."] = config.cond
    tensors = {}
    for prefix, run in stages.items():
        tensors |= vq_to_torch(Path(run.workdir), run.step, run.config, prefix)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    tensors |= to_torch(unstack(checkpoint.load_net(workdir, step, "gpt", shapes)), TRANSFORMER, "transformer.")
    gpt = stage.gpt
    mask = np.tril(np.ones((gpt.block_size, gpt.block_size), np.float32))
    mask[: gpt.n_unmasked, : gpt.n_unmasked] = 1
    tensors |= {f"transformer.blocks.{i}.attn.mask": mask[None, None] for i in range(gpt.num_layers)}
    if not stage.slides:
        order = stage.order.astype(np.int64)
        tensors |= {"permuter.forward_shuffle_idx": order, "permuter.backward_shuffle_idx": np.argsort(order)}
    if stage.first.used:
        tensors["first_stage_model.quantize.used"] = np.array(stage.first.used, np.int64)
    return tensors
