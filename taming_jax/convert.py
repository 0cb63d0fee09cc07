"""Checkpoints of the original PyTorch code <-> run directories.

    python -m taming_jax.convert --ckpt=model.ckpt --config=model.yaml --workdir=runs/vqgan_imagenet_f16_16384
    python -m taming_jax.convert --workdir=runs/vqgan_imagenet_f16_16384 --to-torch=model.ckpt
    python -m taming_jax.convert --workdir=runs/vqgan_imagenet_f16_16384 --to-diffusers=folder

Takes VQGANs, Gumbel and EMA quantizers, segmentation models and transformers of CompVis' taming-transformers, and the
VQ autoencoders of its latent-diffusion. A transformer's first stages become run directories inside its own. Reads
tensors and nothing else. Needs PyTorch: pip install -e '.[convert]'.
"""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from absl import flags
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from configs import common, custom_transformer, imagenet_vq
from taming_jax import checkpoint, cli, permute
from taming_jax.data import annotations, layouts
from taming_jax.errors import UserError, not_among
from taming_jax.images import color_labels
from taming_jax.metrics import say
from taming_jax.models.discriminator import NLayerDiscriminator
from taming_jax.models.gpt import stack, unstack
from taming_jax.models.perceptual import VGG16_DEPTHS, load_weights
from taming_jax.models.quantize import make_quantizer
from taming_jax.state import TrainState
from taming_jax.tasks import prior, vqgan

Tensors = dict[str, np.ndarray]
Rules = tuple[tuple[str, str], ...]

# Our paths -> the original's, one substitution after the other; then '/' becomes '.', and kernels and scales 'weight'.
GENERATOR: Rules = (
    (r"^(encoder|decoder)/(down|up)_(\d+)_(block|attn)_(\d+)", r"\1/\2/\3/\4/\5"),
    (r"^encoder/down_(\d+)_conv", r"encoder/down/\1/downsample/conv"),
    (r"^decoder/up_(\d+)_conv", r"decoder/up/\1/upsample/conv"),
    (r"^(encoder|decoder)/mid_(block|attn)_(\d)", r"\1/mid/\2_\3"),
    (r"^conv_out/", r"decoder/conv_out/"),
    (r"^quantize/embedding$", r"quantize/embedding/weight"),
)
GUMBEL: Rules = (*GENERATOR, (r"^quantize/embedding/weight$", r"quantize/embed/weight"))
TRANSFORMER: Rules = (
    (r"^token_embedding$", r"tok_emb/weight"),
    (r"^position_embedding$", r"pos_emb"),
    (r"^blocks_(\d+)/", r"blocks/\1/"),
    (r"/mlp_in/", r"/mlp/0/"),
    (r"/mlp_out/", r"/mlp/2/"),
)
ORDERS = {
    "Identity": "row_major",
    "Subsample": "subsample",
    "ZCurve": "z_curve",
    "SpiralOut": "spiral_out",
    "SpiralIn": "spiral_in",
    "Random": "random",
    "AlternateParsing": "alternate",
}
LAYOUTS = {"objects_bbox": "bbox", "objects_center_points": "center"}
# Follows from the config, or is LPIPS, whose weights are the same in every checkpoint.
DERIVED = r"attn\.mask$|(^|\.)colorize$|^permuter\.|num_batches_tracked$|(^|\.)loss\.perceptual_loss\."


def discriminator_rules(n_layers: int) -> Rules:
    """For the discriminator, a plain sequence in the original: convolution and norm are followed by a leaky ReLU."""
    pairs = [(f"^conv_{n}/", f"main/{3 * n - 1}/") for n in range(1, n_layers + 1)]
    pairs += [(f"^norm_{n}/", f"main/{3 * n}/") for n in range(1, n_layers + 1)]
    return (("^conv_0/", "main/0/"), ("^conv_out/", f"main/{3 * n_layers + 2}/"), *pairs)


def diffusers_rules(levels: int) -> Rules:
    """For the generator as `diffusers.VQModel` names it, whose decoder counts its levels from the inside."""
    ups = tuple((rf"^decoder/up_{i}_", f"decoder/up_blocks/{levels - 1 - i}/") for i in range(levels))
    return (
        *ups,
        (r"^encoder/down_(\d+)_", r"encoder/down_blocks/\1/"),
        (r"(_blocks/\d+/)block_(\d+)", r"\1resnets/\2"),
        (r"(_blocks/\d+/)attn_(\d+)", r"\1attentions/\2"),
        (r"^(encoder/down_blocks/\d+)/conv/", r"\1/downsamplers/0/conv/"),
        (r"^(decoder/up_blocks/\d+)/conv/", r"\1/upsamplers/0/conv/"),
        (r"/mid_block_1/", r"/mid_block/resnets/0/"),
        (r"/mid_block_2/", r"/mid_block/resnets/1/"),
        (r"/mid_attn_1/", r"/mid_block/attentions/0/"),
        (r"nin_shortcut", r"conv_shortcut"),
        (r"(attentions/\d+)/norm/", r"\1/group_norm/"),
        (r"(attentions/\d+)/([qkv])/", r"\1/to_\2/"),
        (r"(attentions/\d+)/proj_out/", r"\1/to_out/0/"),
        (r"^(encoder|decoder)/norm_out/", r"\1/conv_norm_out/"),
        (r"^conv_out/", r"decoder/conv_out/"),
        (r"^quantize/embedding$", r"quantize/embedding/weight"),
    )


def torch_name(path: str, rules: Rules) -> str:
    """'encoder/conv_in/kernel' -> 'encoder.conv_in.weight'."""
    for pattern, name in rules:
        path = re.sub(pattern, name, path)
    path = re.sub(r"/(kernel|scale)$", "/weight", path)
    return path.replace("/", ".")


def to_layout(path: str, value: np.ndarray) -> np.ndarray:
    """Our axes -> PyTorch's: HWIO to OIHW, [in,out] to [out,in]."""
    value = np.asarray(value)
    if path.endswith("quantize/proj/kernel"):
        return value.T[:, :, None, None]
    if path.endswith("kernel"):
        return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value[None] if path.endswith("position_embedding") else value


def from_layout(path: str, value: np.ndarray) -> np.ndarray:
    """The inverse of `to_layout`."""
    if path.endswith("quantize/proj/kernel"):
        return value[:, :, 0, 0].T
    if path.endswith("kernel"):
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return value[0] if path.endswith("position_embedding") else value


def take(tensors: Tensors, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Removes a tensor from the file's; raises UserError where it is missing or has another shape."""
    if name not in tensors:
        raise UserError(f"tensor {name!r} {shape} is missing")
    if tensors[name].shape != shape:
        raise UserError(f"tensor {name!r} is {tensors[name].shape}, the config says {shape}")
    return np.array(tensors.pop(name), np.float32, order="C")


def from_torch(tensors: Tensors, like: dict, rules: Rules, prefix: str) -> dict:
    """The tensors below a prefix as our parameters, taken out of `tensors`. like: arrays or shapes."""
    found = {}
    for path, leaf in flatten_dict(like, sep="/").items():
        shape = to_layout(path, np.broadcast_to(np.float32(0), leaf.shape)).shape
        found[path] = from_layout(path, take(tensors, prefix + torch_name(path, rules), shape))
    return unflatten_dict(found, sep="/")


def to_torch(params: dict, rules: Rules, prefix: str) -> Tensors:
    """Our parameters under the original's names."""
    flat = flatten_dict(params, sep="/")
    return {prefix + torch_name(path, rules): to_layout(path, leaf) for path, leaf in flat.items()}


def discriminator_from_torch(tensors: Tensors, like: dict, n_layers: int, prefix: str) -> tuple[dict, dict]:
    """-> (params, batch_stats). like: shapes of both, as `NLayerDiscriminator.init` gives them."""
    rules, params, stats = discriminator_rules(n_layers), {}, {}
    for layer, leaves in like["params"].items():
        if "loc" not in leaves:
            params |= from_torch(tensors, {layer: leaves}, rules, prefix)
            continue
        name = prefix + torch_name(f"{layer}/", rules)
        loc, scale = (take(tensors, name + leaf, (1, *leaves["loc"].shape, 1, 1)).ravel() for leaf in ("loc", "scale"))
        initialized = take(tensors, name + "initialized", ()).astype(bool)
        params[layer] = {"loc": np.zeros_like(loc), "scale": np.zeros_like(scale)}
        stats[layer] = {"loc": loc, "scale": scale, "initialized": initialized}
    for layer, leaves in like.get("batch_stats", {}).items():
        if "mean" in leaves:
            name = prefix + torch_name(f"{layer}/", rules)
            stats[layer] = {
                leaf: take(tensors, f"{name}running_{leaf}", leaves[leaf].shape) for leaf in ("mean", "var")
            }
    return params, stats


def discriminator_to_torch(params: dict, stats: dict, n_layers: int, prefix: str) -> Tensors:
    """The inverse; the number of batches that BatchNorm saw is not known and set to 0, which nothing reads."""
    rules, tensors = discriminator_rules(n_layers), {}
    for layer, leaves in params.items():
        if "loc" not in leaves:
            tensors |= to_torch({layer: leaves}, rules, prefix)
            continue
        name, first = prefix + torch_name(f"{layer}/", rules), stats[layer]
        tensors |= {name + leaf: (first[leaf] + leaves[leaf]).reshape(1, -1, 1, 1) for leaf in ("loc", "scale")}
        tensors[name + "initialized"] = np.asarray(first["initialized"], np.uint8)
    for layer, leaves in stats.items():
        if "mean" in leaves:
            name = prefix + torch_name(f"{layer}/", rules)
            tensors |= {f"{name}running_{leaf}": np.asarray(leaves[leaf]) for leaf in ("mean", "var")}
            tensors[name + "num_batches_tracked"] = np.zeros((), np.int64)
    return tensors


def lpips_names() -> dict[str, str]:
    """Convolution of our VGG16 -> its name in the original's LPIPS, where a max-pool counts as a layer too."""
    names, layer = {}, 0
    for block, depth in enumerate(VGG16_DEPTHS, 1):
        for i in range(1, depth + 1):
            names[f"conv{block}_{i}"] = f"net.slice{block}.{layer}"
            layer += 2  # and its ReLU
        layer += 1
    return names


def lpips_from_torch(tensors: Tensors, prefix: str) -> dict:
    """LPIPS as `perceptual.load_weights` gives it, of any width."""
    vgg = {
        ours: {
            "kernel": from_layout("kernel", tensors[f"{prefix}{name}.weight"]),
            "bias": tensors[f"{prefix}{name}.bias"],
        }
        for ours, name in lpips_names().items()
    }
    return {"vgg": vgg, "lins": [tensors[f"{prefix}lin{i}.model.1.weight"].ravel() for i in range(5)]}


def lpips_to_torch(weights: dict, prefix: str) -> Tensors:
    tensors = {
        f"{prefix}scaling_layer.shift": np.float32([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1),
        f"{prefix}scaling_layer.scale": np.float32([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1),
    }
    for ours, name in lpips_names().items():
        tensors[f"{prefix}{name}.weight"] = to_layout("kernel", weights["vgg"][ours]["kernel"])
        tensors[f"{prefix}{name}.bias"] = weights["vgg"][ours]["bias"]
    for i, lin in enumerate(weights["lins"]):
        tensors[f"{prefix}lin{i}.model.1.weight"] = lin.reshape(1, -1, 1, 1)
    return tensors


def read_tensors(path: Path) -> tuple[Tensors, int]:
    """All tensors of a checkpoint as numpy arrays, and its step (0 where it does not say).

    Classes that the file names, such as a trainer's callbacks, are replaced by an empty one and never imported. Raises
    UserError for what is no checkpoint.
    """
    try:
        import torch
    except ImportError as e:
        raise UserError("reading a PyTorch checkpoint needs PyTorch: pip install -e '.[convert]'") from e

    class Inert:
        """Stands for whatever the file names."""

        def __init__(self, *args, **kwargs):
            pass

        def __setstate__(self, state):
            pass

    if not path.is_file():
        raise UserError(f"--ckpt={path}: there is no such file")
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(Inert, name) for name in named]):
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as e:  # torch raises whatever its unpickler and its zip reader do
        reason = " ".join(str(e).split("WeightsUnpickler error:")[-1].split())[:200]
        raise UserError(f"--ckpt={path} cannot be read as tensors: {reason}") from e
    tensors = stored.get("state_dict", stored) if isinstance(stored, dict) else None
    if (
        not isinstance(tensors, dict)
        or not tensors
        or not all(isinstance(value, torch.Tensor) for value in tensors.values())
    ):
        raise UserError(f"--ckpt={path} holds no state dict of tensors")
    step = stored.get("global_step", 0)
    return {name: value.float().numpy() for name, value in tensors.items()}, step if isinstance(step, int) else 0


def vq_config(model: dict, image_key: str = "image") -> ConfigDict:
    """Our config for a first stage of the original's YAML, {'target', 'params'}.

    image_key: what it is a model of, where the YAML does not say so itself.
    """
    params, kind = model["params"], class_name(model)
    lossconfig = params.get("lossconfig") or {"target": "none"}
    dd, loss = params["ddconfig"], lossconfig.get("params") or {}
    for name, value in (("double_z", False), ("dropout", 0.0), ("resamp_with_conv", True)):
        if dd.get(name, value) != value:
            raise UserError(f"ddconfig.{name}={dd[name]}: only {value} is supported")
    c = imagenet_vq.get_config()
    c.data = common.get_data("folder", size=dd["resolution"])
    c.batch_size = 8
    names = ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "z_channels", "out_ch")
    c.model = ConfigDict({name: tuple(dd[name]) if isinstance(dd[name], list) else dd[name] for name in names})
    sizes = dict(codebook_size=params["n_embed"], embed_dim=params["embed_dim"])
    if kind == "GumbelVQ":
        t = params["temperature_scheduler_config"]["params"]
        temperature = dict(
            init_value=t["lr_start"],
            peak_value=t["lr_max"],
            warmup_steps=t["warm_up_steps"],
            decay_steps=t["max_decay_steps"],
            end_value=t["lr_min"],
        )
        kl = params.get("kl_weight", 1e-8)
        constant = dict(init_value=kl, peak_value=kl, warmup_steps=0, decay_steps=1, end_value=kl)
        c.quantizer = ConfigDict(
            dict(name="gumbel", straight_through=True, temperature=temperature, kl_weight=constant, **sizes)
        )
    elif kind == "EMAVQ":
        c.quantizer = ConfigDict(dict(name="ema", commitment_weight=params["beta"], decay=params.get("decay", 0.99)))
        c.quantizer.update(eps=params.get("eps", 1e-5), **sizes)
    elif kind in ("VQModel", "VQModelInterface", "VQNoDiscModel", "VQSegmentationModel"):
        c.quantizer = ConfigDict(dict(name="vq", commitment_weight=0.25, legacy=True, **sizes))
    else:
        known = ("VQModel", "VQModelInterface", "VQNoDiscModel", "VQSegmentationModel", "GumbelVQ", "EMAVQ")
        raise not_among("model.target", kind, known)
    key = "segmentation" if kind == "VQSegmentationModel" else params.get("image_key", image_key)
    c.input = key if key in vqgan.INPUTS else "image"
    c.data.features = tuple(sorted({"image", c.input}))
    # The original's COCO-Stuff has 182 labels from 0 and 255 for none, which it stores as 0 before the others.
    c.data.num_labels = dd["out_ch"] if c.input == "segmentation" else 0
    c.data.label_shift = int(c.data.num_labels == 183)
    c.loss.codebook_weight = float(loss.get("codebook_weight", 1.0))
    # The original takes a pixelloss_weight and never uses it: c.loss.pixel_weight stays 1.
    if c.input == "segmentation":
        c.loss.pixel = "bce"
    if not lossconfig["target"].endswith("VQLPIPSWithDiscriminator"):
        c.loss.perceptual_weight = c.disc.weight = 0.0
        return c
    c.loss.perceptual_weight = float(loss.get("perceptual_weight", 1.0))
    start = loss["disc_start"]
    c.disc.update(
        ndf=loss.get("disc_ndf", 64),
        n_layers=loss.get("disc_num_layers", 3),
        use_actnorm=loss.get("use_actnorm", False),
        loss=loss.get("disc_loss", "hinge"),
        weight=float(loss.get("disc_weight", 1.0) * loss.get("disc_factor", 1.0)),
        start=start,
        gen_start=start,
    )
    return c


def class_name(config: dict) -> str:
    """'VQModel' of {'target': 'taming.models.vqgan.VQModel'}."""
    return config["target"].rsplit(".", 1)[-1]


def vq_from_torch(
    tensors: Tensors, model: dict, prefix: str, image_key: str = "image"
) -> tuple[ConfigDict, TrainState]:
    """A first stage's config and state, without an optimizer, from the tensors below a prefix."""
    config = vq_config(model, image_key)
    quantizer, size = make_quantizer(config.quantizer), config.data.size
    x = jax.ShapeDtypeStruct((1, size, size, config.model.out_ch), jnp.float32)
    gen = from_torch(tensors, vqgan.parameter_shapes(config), generator_rules(config), prefix)
    stats = jax.eval_shape(quantizer.init_stats, gen["quantize"]["embedding"])
    codebook = {k: take(tensors, f"{prefix}quantize.embedding.{k}", v.shape) for k, v in stats.items()}
    params = {"gen": gen}
    extra = {"gen": {"idle": np.zeros(config.quantizer.codebook_size, np.int32), "codebook": codebook}}
    if vqgan.competes(config):
        disc = NLayerDiscriminator(config.disc.ndf, config.disc.n_layers, config.disc.use_actnorm)
        shapes = jax.eval_shape(lambda key, x: disc.init(key, x, True), jax.random.key(0), x)
        params["disc"], stats = discriminator_from_torch(
            tensors, shapes, config.disc.n_layers, f"{prefix}loss.discriminator."
        )
        extra["disc"] = {"batch_stats": stats}
    return config, TrainState(np.zeros((), np.int32), params, {}, extra, {})


def generator_rules(config: ConfigDict) -> Rules:
    return GUMBEL if config.quantizer.name == "gumbel" else GENERATOR


def prior_from_torch(
    tensors: Tensors, params: dict, data: dict, workdir: Path
) -> dict[Path, tuple[ConfigDict, TrainState]]:
    """A transformer and its first stages, each with the run directory that it goes into.

    params, data: the YAML's, of the model and of what it was trained on.
    """
    t, config = params["transformer_config"]["params"], custom_transformer.get_config()
    if params.get("downsample_cond_size", -1) > -1:
        raise UserError("downsample_cond_size is not supported")
    first_key = params.get("first_stage_key", "image")
    first, state = vq_from_torch(tensors, params["first_stage_config"], "first_stage_model.", first_key)
    runs = {workdir / "first_stage": (first, state)}
    with config.unlocked():
        config.first_stage.update(workdir=str(workdir / "first_stage"), step=0, config=first)
        config.cond, class_names = condition(tensors, params, data, workdir, runs)
        config.data = ConfigDict({**first.data, "class_names": class_names})
        config.data.update(features=prior.features(config), layout=config.cond.layout)
        if config.cond.name == "image":
            seen = config.cond.config.data
            config.data.update(num_labels=seen.num_labels, label_shift=seen.label_shift)
        config.gpt.update(num_layers=t["n_layer"], num_heads=t["n_head"], embed_dim=t["n_embd"])
        config.gpt.update({name: float(t.get(name, 0.0)) for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop")})
        config.gpt.update(n_unmasked=t.get("n_unmasked", 0), vocab_size=t["vocab_size"], block_size=t["block_size"])
        config.pkeep = float(params.get("pkeep", 1.0))
        order = class_name(params.get("permuter_config") or {"target": "Identity"})
        if order not in ORDERS:
            raise not_among("permuter_config.target", order, ORDERS)
        config.order = ORDERS[order]
        side = vqgan.side(first)
        stored = tensors.get("permuter.forward_shuffle_idx", np.arange(side * side))
        if not np.array_equal(stored, permute.ORDERS[config.order](side, side)):
            raise UserError(f"tensor 'permuter.forward_shuffle_idx' is not the order of {order} on {side}x{side} codes")
        config.ema_decay = 0.0
        if (used := tensors.pop("first_stage_model.quantize.used", None)) is not None:
            config.first_stage.used = tuple(int(code) for code in used)
    ids = jax.ShapeDtypeStruct((1, t["block_size"]), jnp.int32)
    like = jax.eval_shape(prior.make_model(config).init, jax.random.key(0), ids)["params"]
    like = jax.eval_shape(unstack, like)
    gpt = stack(from_torch(tensors, like, TRANSFORMER, "transformer."))
    runs[workdir] = (config, TrainState(np.zeros((), np.int32), {"gpt": gpt}, {}, {"gpt": {}}, {}))
    return runs


def condition(
    tensors: Tensors, params: dict, data: dict, workdir: Path, runs: dict
) -> tuple[ConfigDict, tuple[str, ...]]:
    """Our `cond` for the original's `cond_stage_config`, and the names of the classes; a VQGAN is added to `runs`."""
    stage = params["cond_stage_config"]

    def cond(name: str, **fields) -> ConfigDict:
        return ConfigDict({**common.get_cond(name), **fields})

    if stage == "__is_unconditional__" or params.get("unconditional", False):
        return cond("none", sos=params.get("sos_token", 0)), ()
    if stage == "__is_first_stage__":  # stored twice; the second is read and dropped
        first, _ = vq_from_torch(tensors, params["first_stage_config"], "cond_stage_model.")
        return cond("image", workdir=str(workdir / "first_stage"), step=0, config=first), ()
    kind, given = class_name(stage), stage.get("params") or {}
    if kind == "Labelator":
        return cond("class"), tuple(map(str, range(given["n_classes"])))
    if kind == "SOSProvider":
        return cond("none", sos=given["sos_token"]), ()
    if kind == "CoordStage":
        return cond("coordinates", levels=given["n_embed"], down=given["down_factor"]), ()
    if kind == "DummyCondStage":
        t, first = params["transformer_config"]["params"], runs[workdir / "first_stage"][0]
        return layout(given["conditional_key"], t["block_size"] - vqgan.side(first) ** 2, t["vocab_size"], data)
    key = params.get("cond_stage_key", "image")
    runs[workdir / "cond_stage"] = vq_from_torch(tensors, stage, "cond_stage_model.", key)
    config = runs[workdir / "cond_stage"][0]
    return cond("image", workdir=str(workdir / "cond_stage"), step=0, config=config), ()


def layout(key: str, length: int, num_tokens: int, data: dict) -> tuple[ConfigDict, tuple[str, ...]]:
    """The condition on objects, `length` ids, and its classes, which the YAML's data section lets one know."""
    if key not in LAYOUTS:
        raise not_among("conditional_key", key, LAYOUTS)
    cond, kind = common.get_cond("objects"), LAYOUTS[key]
    train = (data.get("params") or {}).get("train") or {}
    given = train.get("params") or {}
    encode_crop = length % 3 == 2 if kind == "bbox" else bool(given.get("encode_crop"))
    cond.layout.update(
        kind=kind,
        num_tokens=num_tokens,
        max_objects=(length - 2 * encode_crop) // layouts.KINDS[kind],
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


def account(tensors: Tensors) -> None:
    """Raises UserError for tensors that nothing took and that do not follow from the config."""
    unexpected = sorted(name for name in tensors if not re.search(DERIVED, name))
    if unexpected:
        more = f" and {len(unexpected) - 5} more" if len(unexpected) > 5 else ""
        raise UserError(f"unexpected tensors: {', '.join(unexpected[:5])}{more}")


def from_checkpoint(ckpt: Path, config_file: Path, workdir: Path) -> None:
    """Writes the run directories of a checkpoint; raises UserError where a tensor is missing, surplus or misshapen."""
    if not config_file.is_file():
        raise UserError(f"--config={config_file}: there is no such file")
    try:
        content = yaml.safe_load(config_file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"--config={config_file} is no YAML: {' '.join(str(e).split())[:200]}") from e
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not {"target", "params"} <= set(model):
        raise UserError(
            f"--config={config_file} holds no 'model' with 'target' and 'params', as the original's files do"
        )
    for path in (workdir, workdir / "first_stage", workdir / "cond_stage"):
        if checkpoint.steps(path):
            raise UserError(f"{path} already holds a run; name another --workdir")
    tensors, step = read_tensors(ckpt)
    try:
        if model["target"].endswith("Net2NetTransformer"):
            runs = prior_from_torch(tensors, model["params"], content.get("data") or {}, workdir)
        else:
            runs = {workdir: vq_from_torch(tensors, model, "")}
        account(tensors)
    except UserError as e:
        raise UserError(f"{ckpt} with {config_file}: {e}") from e
    except KeyError as e:
        raise UserError(f"--config={config_file} has no {e.args[0]!r}") from e
    for path, (config, state) in runs.items():
        state = state.replace(step=np.asarray(step if path == workdir else 0, np.int32))
        path.mkdir(parents=True, exist_ok=True)
        with checkpoint.open_manager(path) as manager:
            checkpoint.save(manager, state, int(state.step), config)
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        say(f"{path}: a {config.task!r} run of {count / 1e6:.1f} M parameters at step {state.step}")


def vq_to_torch(workdir: Path, step: int, config: ConfigDict, prefix: str) -> Tensors:
    """A first stage under the original's names; with LPIPS where it has a discriminator, whose loss holds both."""
    shapes = jax.eval_shape(vqgan.make(config).init, jax.random.key(0))
    gen = checkpoint.load_net(workdir, step, "gen", shapes.params["gen"])
    tensors = to_torch(gen, generator_rules(config), prefix)
    stats = checkpoint.load_tree(workdir, step, ("extra", "gen", "codebook"), shapes.extra["gen"]["codebook"])
    if stats:  # the codes that belong to them, not their average
        codes = checkpoint.load_tree(workdir, step, ("params", "gen", "quantize"), shapes.params["gen"]["quantize"])
        stats["weight"] = codes["embedding"]
    tensors |= {f"{prefix}quantize.embedding.{name}": value for name, value in stats.items()}
    if config.input == "segmentation":
        colors = color_labels(jnp.arange(config.model.out_ch))
        tensors[f"{prefix}colorize"] = np.asarray(colors).T[:, :, None, None]
    if "disc" in shapes.params:
        disc = checkpoint.load_net(workdir, step, "disc", shapes.params["disc"])
        place = ("extra", "disc", "batch_stats")
        batch_stats = checkpoint.load_tree(workdir, step, place, shapes.extra["disc"]["batch_stats"])
        tensors |= discriminator_to_torch(disc, batch_stats, config.disc.n_layers, f"{prefix}loss.discriminator.")
        tensors |= lpips_to_torch(load_weights(), f"{prefix}loss.perceptual_loss.")
    return tensors


def prior_to_torch(workdir: Path, step: int, config: ConfigDict) -> Tensors:
    """A transformer and its first stages under the original's names."""
    stages = {"first_stage_model.": config.first_stage}
    if config.cond.name == "image":
        stages["cond_stage_model."] = config.cond
    tensors = {}
    for prefix, stage in stages.items():
        tensors |= vq_to_torch(Path(stage.workdir), stage.step, stage.config, prefix)
    shapes = jax.eval_shape(prior.make(config).init, jax.random.key(0)).params["gpt"]
    tensors |= to_torch(unstack(checkpoint.load_net(workdir, step, "gpt", shapes)), TRANSFORMER, "transformer.")
    gpt = prior.make_model(config)
    mask = np.tril(np.ones((gpt.block_size, gpt.block_size), np.float32))
    mask[: gpt.n_unmasked, : gpt.n_unmasked] = 1
    tensors |= {f"transformer.blocks.{i}.attn.mask": mask[None, None] for i in range(gpt.num_layers)}
    if config.order != "row_major":
        side = vqgan.side(config.first_stage.config)
        order = permute.ORDERS[config.order](side, side).astype(np.int64)
        tensors |= {"permuter.forward_shuffle_idx": order, "permuter.backward_shuffle_idx": np.argsort(order)}
    if config.first_stage.used:
        tensors["first_stage_model.quantize.used"] = np.array(config.first_stage.used, np.int64)
    return tensors


def to_checkpoint(workdir: Path, out: Path) -> None:
    """Writes a run as a checkpoint that the original's model loads with `strict=True`."""
    try:
        import torch
    except ImportError as e:
        raise UserError("writing a PyTorch checkpoint needs PyTorch: pip install -e '.[convert]'") from e
    if out.exists():
        raise UserError(f"--to-torch={out} exists already; name another file")
    config, step = checkpoint.load_config(workdir)
    tensors = (
        prior_to_torch(workdir, step, config) if config.task == "prior" else vq_to_torch(workdir, step, config, "")
    )
    state_dict = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state_dict, "global_step": step}, out)
    say(f"{len(state_dict)} tensors of step {step}: {out}")


def to_diffusers(workdir: Path, out: Path) -> None:
    """Writes a first stage as a directory for `diffusers.VQModel.from_pretrained`."""
    try:
        from safetensors.numpy import save_file
    except ImportError as e:
        raise UserError("writing for diffusers needs safetensors: pip install -e '.[convert]'") from e
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"--to-diffusers={out} is not empty; name another folder")
    config, step = checkpoint.load_config(workdir)
    if config.task != "vqgan" or config.quantizer.name == "gumbel":
        raise UserError(f"{workdir}: diffusers has a VQModel, and neither transformers nor Gumbel quantizers")
    model = config.model
    levels = len(model.ch_mult)
    attends = [(config.data.size >> level) in model.attn_resolutions for level in range(levels)]
    fields = {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": [model.ch * mult for mult in model.ch_mult],
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
        "in_channels": model.out_ch,
        "out_channels": model.out_ch,
        "latent_channels": model.z_channels,
        "layers_per_block": model.num_res_blocks,
        "norm_num_groups": 32,
        "num_vq_embeddings": config.quantizer.codebook_size,
        "vq_embed_dim": config.quantizer.embed_dim,
        "sample_size": config.data.size,
    }
    shapes = jax.eval_shape(vqgan.make(config).init, jax.random.key(0)).params["gen"]
    tensors = to_torch(checkpoint.load_net(workdir, step, "gen", shapes), diffusers_rules(levels), "")
    for name, value in tensors.items():
        if re.search(r"attentions\.\d+\.to_.*weight$", name):
            tensors[name] = value[:, :, 0, 0]  # a linear layer there
    out.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(contiguous, out / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(fields, indent=2))
    say(f"{len(tensors)} tensors of step {step}: {out}")


def main() -> None:
    given = {name: flags.FLAGS[name].value for name in ("ckpt", "to-torch", "to-diffusers")}
    workdir = Path(cli.required("workdir"))
    asked = [name for name, value in given.items() if value is not None]
    if len(asked) != 1:
        raise UserError("give one of --ckpt (with --config), --to-torch and --to-diffusers")
    if asked == ["ckpt"]:
        from_checkpoint(Path(given["ckpt"]), Path(cli.required("config")), workdir)
    elif asked == ["to-torch"]:
        to_checkpoint(workdir, Path(given["to-torch"]))
    else:
        to_diffusers(workdir, Path(given["to-diffusers"]))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Run directory: written with --ckpt, read otherwise.")
    flags.DEFINE_string("ckpt", None, "Checkpoint of the original's or latent-diffusion's code.")
    flags.DEFINE_string("config", None, "The YAML file that came with it.")
    flags.DEFINE_string("to-torch", None, "File to write a checkpoint for the original's code into.")
    flags.DEFINE_string("to-diffusers", None, "Folder to write a model for Hugging Face's diffusers into.")
    cli.run(main)
