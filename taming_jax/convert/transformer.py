"""Transformers with their first stages, conditions and layouts, from and to the original's checkpoints."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from taming_jax import checkpoint, config_files
from taming_jax.completion import complete
from taming_jax.conditions.layout import KINDS
from taming_jax.convert.names import LAYOUTS, ORDERS, TRANSFORMER, class_name
from taming_jax.convert.tensors import Tensors, from_torch, to_torch
from taming_jax.convert.vqgan import vq_from_torch, vq_to_torch
from taming_jax.data import annotations
from taming_jax.errors import UserError, not_among
from taming_jax.first_stage import make_first_stage
from taming_jax.models.gpt import stack, unstack
from taming_jax.second_stage import make_second_stage
from taming_jax.state import TrainState


def transformer_from_torch(
    tensors: Tensors, params: dict, data: dict, workdir: Path
) -> dict[Path, tuple[ConfigDict, TrainState]]:
    """A transformer and its first stages, each with the run directory that it goes into.

    params, data: the YAML's, of the model and of what it was trained on.
    """
    t, config = params["transformer_config"]["params"], config_files.load("custom_transformer")
    if params.get("downsample_cond_size", -1) > -1:
        raise UserError("downsample_cond_size is not supported")
    first_key = params.get("first_stage_key", "image")
    first, state = vq_from_torch(tensors, params["first_stage_config"], "first_stage_model.", first_key)
    runs = {workdir / "first_stage": (first, state)}
    order = class_name(params.get("permuter_config") or {"target": "Identity"})
    if order not in ORDERS:
        raise not_among("permuter_config.target", order, ORDERS)
    with config.unlocked():
        config.first_stage.update(workdir=str(workdir / "first_stage"), step=0)
        config.cond, class_names = condition(tensors, params, data, workdir, runs)
        config.gpt.update(num_layers=t["n_layer"], num_heads=t["n_head"], embed_dim=t["n_embd"])
        config.gpt.update({name: float(t.get(name, 0.0)) for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")})
        config.gpt.update(n_unmasked=t.get("n_unmasked", 0), vocab_size=t["vocab_size"], block_size=t["block_size"])
        config.update(pkeep=float(params.get("pkeep", 1.0)), order=ORDERS[order], ema_decay=0.0)
        if (used := tensors.pop("first_stage_model.quantize.used", None)) is not None:
            config.first_stage.used = tuple(int(code) for code in used)
    config = complete(config, None, lambda path, step: (runs[path][0], step))
    config.data.class_names = class_names
    stage = make_second_stage(config)
    side = stage.first.side
    stored = tensors.get("permuter.forward_shuffle_idx", np.arange(side * side))
    if not np.array_equal(stored, stage.order):
        raise UserError(f"tensor 'permuter.forward_shuffle_idx' is not the order of {order} on {side}x{side} codes")
    like = jax.eval_shape(lambda key: unstack(stage.init(key)), jax.random.key(0))
    gpt = stack(from_torch(tensors, like, TRANSFORMER, "transformer."))
    runs[workdir] = (config, TrainState(np.zeros((), np.int32), {"gpt": gpt}, {}, {"gpt": {}}, {}))
    return runs


def condition(
    tensors: Tensors, params: dict, data: dict, workdir: Path, runs: dict
) -> tuple[ConfigDict, tuple[str, ...]]:
    """Our `cond` for the original's `cond_stage_config`, and the names of the classes; a VQGAN is added to `runs`."""
    stage = params["cond_stage_config"]

    def cond(name: str, **fields) -> ConfigDict:
        return ConfigDict({**config_files.module("common").get_cond(name), **fields})

    if stage == "__is_unconditional__" or params.get("unconditional", False):
        return cond("none", sos=params.get("sos_token", 0)), ()
    if stage == "__is_first_stage__":  # stored twice; the second is read and dropped
        vq_from_torch(tensors, params["first_stage_config"], "cond_stage_model.")
        return cond("image", workdir=str(workdir / "first_stage"), step=0), ()
    kind, given = class_name(stage), stage.get("params") or {}
    if kind == "Labelator":
        return cond("class"), tuple(map(str, range(given["n_classes"])))
    if kind == "SOSProvider":
        return cond("none", sos=given["sos_token"]), ()
    if kind == "CoordStage":
        return cond("coordinates", levels=given["n_embed"], down=given["down_factor"]), ()
    if kind == "DummyCondStage":
        t, first = params["transformer_config"]["params"], runs[workdir / "first_stage"][0]
        length = t["block_size"] - make_first_stage(first).side ** 2
        return layout(given["conditional_key"], length, t["vocab_size"], data)
    key = params.get("cond_stage_key", "image")
    runs[workdir / "cond_stage"] = vq_from_torch(tensors, stage, "cond_stage_model.", key)
    return cond("image", workdir=str(workdir / "cond_stage"), step=0), ()


def layout(key: str, length: int, num_tokens: int, data: dict) -> tuple[ConfigDict, tuple[str, ...]]:
    """The condition on objects, `length` ids, and its classes, which the YAML's data section lets one know."""
    if key not in LAYOUTS:
        raise not_among("conditional_key", key, LAYOUTS)
    cond, kind = config_files.module("common").get_cond("objects"), LAYOUTS[key]
    train = (data.get("params") or {}).get("train") or {}
    given = train.get("params") or {}
    encode_crop = length % 3 == 2 if kind == "bbox" else bool(given.get("encode_crop"))
    cond.layout.update(
        kind=kind,
        num_tokens=num_tokens,
        max_objects=(length - 2 * encode_crop) // KINDS[kind],
        encode_crop=encode_crop,
        min_objects=given.get("min_objects_per_image", 2),
        min_area=float(given.get("min_object_area", 1e-5)),
        use_group=given.get("use_group_parameter", True),
    )
    source, table = class_name(train or {"target": ""}), ""
    if source == "AnnotatedObjectsCoco" and given.get("use_things", True) and given.get("use_stuff", True):
        table = "coco"
    elif source == "AnnotatedObjectsOpenImages":
        chosen = (given.get(f"category_{kind}_target") or "" for kind in ("allow_list", "mapping"))
        known = ("top_300_classes_plus_coco_compatibility", "open_images_unify_categories_for_coco")
        table = "open_images" if all(map(str.endswith, chosen, known)) else ""
    cond.layout.categories = table
    return cond, tuple(annotations.read_categories(table)[1]) if table else ()


def transformer_to_torch(workdir: Path, step: int, config: ConfigDict) -> Tensors:
    """A transformer and its first stages under the original's names."""
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
