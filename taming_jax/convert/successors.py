"""Published successors, known by their tensors and without a YAML file.

LlamaGen's tokenizers and class-conditional transformers (Sun et al. 2024, arXiv 2406.06525), RAR's transformers (Yu et
al. 2024, arXiv 2411.00776), and MaskGIT's VQGAN (Chang et al. 2022), which RAR reads. Sizes are those of the tensors;
what no tensor tells (rates of training, guidance) is the published recipe's.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from taming_jax import checkpoint, config_files
from taming_jax.completion import check_stored, net_shapes
from taming_jax.console import say
from taming_jax.convert.files import STATE_DICTS
from taming_jax.convert.names import LLAMAGEN, RAR, generator_rules
from taming_jax.convert.tensors import Tensors, account, from_torch, read_tensors, to_torch, without_prefix
from taming_jax.convert.transformer import completed
from taming_jax.errors import ArgumentError, UserError
from taming_jax.first_stage import make_first_stage
from taming_jax.models.gpt import stack, unstack
from taming_jax.models.quantize import make_quantizer
from taming_jax.models.rar import SPARE_PLACES
from taming_jax.state import TrainState

# A tensor that all files of a kind have, and no file of the kinds below it.
KINDS = {
    "llamagen_vq": "encoder.conv_blocks.0.res.0.conv1.weight",
    "maskgit_vq": "encoder.mid.0.conv1.weight",
    "llamagen": "cls_embedding.embedding_table.weight",
    "rar": "target_aware_pos_embed",
}
# Tensors of tokenizers, one for each resolution, and one for each block of the first.
TOKENIZERS = {
    "llamagen_vq": ("encoder.conv_blocks.{}.res.0.conv1.weight", "encoder.conv_blocks.0.res.{}.conv1.weight"),
    "maskgit_vq": ("encoder.down.{}.block.0.conv1.weight", "encoder.down.0.block.{}.conv1.weight"),
}
SAMPLED = ("model", "module", "state_dict")  # of a training's file, what LlamaGen's scripts sample with
RULES = {"llamagen": LLAMAGEN, "rar": RAR}
JOINED = {"llamagen": "wqkv", "rar": "qkv"}  # what holds queries, keys and values, one after the other
USAGE, USAGE_SIZE = "quantize.codebook_used", 65536  # of LlamaGen: codes of the last batches, a statistic
# By the width. Of LlamaGen: heads of another size than 64, and the guidance of the commands beside the published FIDs;
# of RAR: its temperature, guidance and its power.
HEADS = {3200: 32}
GUIDANCE = {768: 2.0, 1024: 2.0, 1280: 1.75, 1536: 1.75, 3200: 1.65}
RAR_SAMPLING = {768: (1.0, 16.0, 2.75), 1024: (1.02, 15.5, 2.5), 1280: (1.02, 6.9, 1.5), 1408: (1.02, 8.0, 1.2)}

Runs = dict[Path, tuple[ConfigDict, TrainState]]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a user adds to a file. size: pixels on a side of training images. first_stage: the tokenizer's file.

    num_heads: of LlamaGen's transformers, where they are not the published ones.
    """

    size: int | None = None
    first_stage: Path | None = None
    num_heads: int | None = None


def kind_of(tensors: Tensors) -> str | None:
    """The kind of a file, of KINDS; None where it is none of them."""
    return next((kind for kind, name in KINDS.items() if name in tensors), None)


def read_kind(ckpt: Path, prefer: tuple[str, ...] = STATE_DICTS) -> tuple[str | None, Tensors]:
    """A file's kind and its tensors. prefer: see `files.read`."""
    tensors, _ = read_tensors(ckpt, prefer)
    for name in KINDS.values():
        tensors = without_prefix(tensors, name)
    return kind_of(tensors), tensors


def from_file(ckpt: Path, workdir: Path, asked: Asked) -> Runs:
    """The runs of a file, each with its run directory; raises UserError where it is of no kind that is known."""
    kind, tensors = read_kind(ckpt)
    if kind is None:
        known = "LlamaGen's and RAR's class-conditional models and MaskGIT's VQGAN"
        names = ", ".join(sorted(tensors)[:2])
        raise ArgumentError(
            f"ckpt={ckpt} holds none of {known}, but {names}, ...; checkpoints of taming-transformers and"
            " latent-diffusion need their YAML file, --config"
        )
    if kind == "llamagen":
        kind, tensors = read_kind(ckpt, (*SAMPLED, *STATE_DICTS))
    with about_file(ckpt):
        if kind in TOKENIZERS:
            for name in ("first_stage", "num_heads"):
                if getattr(asked, name) is not None:
                    raise ArgumentError(f"{name}: only a transformer has it, and ckpt={ckpt} is a tokenizer")
            runs = {workdir: first_stage_from_torch(kind, tensors, asked.size or 256)}
        else:
            runs = transformer_from_torch(kind, tensors, ckpt, workdir, asked)
        account(tensors)
    return runs


def shape_of(tensors: Tensors, name: str, ndim: int) -> tuple[int, ...]:
    """A tensor's shape; raises UserError where it is missing, or has another number of axes."""
    if name not in tensors:
        raise UserError(f"tensor {name!r} is missing")
    if tensors[name].ndim != ndim:
        raise UserError(f"tensor {name!r} is {tensors[name].shape}, not of {ndim} axes")
    return tensors[name].shape


def count(tensors: Tensors, pattern: str) -> int:
    """How many tensors are named by the pattern with 0, 1, ... in place of '{}'."""
    number = 0
    while pattern.format(number) in tensors:
        number += 1
    return number


def first_stage_config(kind: str, tensors: Tensors, size: int) -> ConfigDict:
    """The config of a tokenizer; its sizes from its tensors, but for the pixels on a side of training images.

    Losses and rates are LlamaGen's, without its discriminator, which published files do not hold.
    """
    c = config_files.load("imagenet_llamagen_vq")
    c.data = config_files.module("common").get_data("folder", size=size)
    ch, out_ch, *_ = shape_of(tensors, "encoder.conv_in.weight", 4)
    level, block = TOKENIZERS[kind]
    widths = [shape_of(tensors, level.format(i), 4)[0] for i in range(count(tensors, level))]
    if ch == 0 or not widths or any(width % ch for width in widths):
        raise UserError(f"its levels have {widths} channels, which are no multiples of {ch} as those of this kind")
    codebook_size, embed_dim = shape_of(tensors, "quantize.embedding.weight", 2)
    c.model.update(
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=count(tensors, block),
        z_channels=shape_of(tensors, "decoder.conv_in.weight", 4)[1],
        out_ch=out_ch,
    )
    if kind == "llamagen_vq":
        c.model.attn_resolutions = (size >> (len(widths) - 1),)
    else:
        c.model.update(network="maskgit", attn_resolutions=())
        c.quantizer = ConfigDict(dict(name="vq", commitment_weight=0.25, legacy=True))
    c.quantizer.update(codebook_size=codebook_size, embed_dim=embed_dim)
    c.disc.weight, c.batch_size = 0.0, 8
    if size < 16:  # which LPIPS does not take
        c.loss.perceptual_weight = 0.0
    check_stored(c)
    return c


def first_stage_from_torch(kind: str, tensors: Tensors, size: int) -> tuple[ConfigDict, TrainState]:
    """A tokenizer's config and state, from tensors that are taken out of `tensors`."""
    config = first_stage_config(kind, tensors, size)
    tensors.pop(USAGE, None)
    gen = from_torch(tensors, make_first_stage(config).parameter_shapes(), generator_rules(config), "")
    stats = jax.device_get(make_quantizer(config.quantizer).init_stats(gen["quantize"]))
    return config, TrainState(np.zeros((), np.int32), {"gen": gen}, {}, {"gen": stats}, {})


def patch_of(kind: str, tensors: Tensors) -> int:
    """Pixels on a side of the patch that a tokenizer's code stands for."""
    return 2 ** max(0, count(tensors, TOKENIZERS[kind][0]) - 1)


def read_tokenizer(kind: str, asked: Asked) -> tuple[str, Tensors]:
    """The tokenizer of a transformer; of a training's file, those weights whose codes the transformer has seen."""
    if asked.first_stage is None:
        usual = "vq_ds16_c2i.pt" if kind == "llamagen" else "maskgit-vqgan-imagenet-f16-256.bin"
        raise ArgumentError(f"first_stage is missing: the transformer's file does not hold its tokenizer, {usual}")
    try:
        found, tensors = read_kind(asked.first_stage, (*SAMPLED, *STATE_DICTS))
    except ArgumentError as e:
        raise ArgumentError(f"first_stage{str(e).removeprefix('ckpt')}") from e
    if found not in TOKENIZERS:
        raise ArgumentError(f"first_stage={asked.first_stage} holds neither LlamaGen's tokenizer nor MaskGIT's VQGAN")
    return found, tensors


@contextmanager
def about_file(path: Path) -> Iterator[None]:
    """Within, a UserError names the file that it is about; an ArgumentError names its argument already."""
    try:
        yield
    except ArgumentError:
        raise
    except UserError as e:
        raise UserError(f"{path}: {e}") from e


def split(kind: str, tensors: Tensors) -> None:
    """Cuts the tensors that hold queries, keys and values into three, and RAR's embeddings into two, in place."""
    name = JOINED[kind]
    if kind == "rar":
        codes, _ = shape_of(tensors, "lm_head.weight", 2)
        shape_of(tensors, "embeddings.weight", 2)
        tensors["embeddings.weight"], tensors["embeddings.cond"] = np.split(tensors["embeddings.weight"], [codes + 1])
    for full in [full for full in tensors if f".{name}." in full]:
        whole, (parent, leaf) = tensors.pop(full), full.rsplit(f"{name}.", 1)
        if whole.ndim not in (1, 2):
            raise UserError(f"tensor {full!r} is {whole.shape}, not of 1 or 2 axes")
        width = whole.shape[1] if whole.ndim == 2 else len(whole) // 3
        rest = (len(whole) - width) // 2
        for part, rows in zip(("query", "key", "value"), np.split(whole, [width, width + rest]), strict=True):
            tensors[f"{parent}{part}.{leaf}"] = rows


def join(kind: str, tensors: Tensors) -> Tensors:
    """The inverse, of a copy."""
    name, joined = JOINED[kind], {}
    for full, value in tensors.items():
        if match := re.fullmatch(r"(.+\.)query\.(\w+)", full):
            parts = (value, *(tensors[f"{match[1]}{part}.{match[2]}"] for part in ("key", "value")))
            joined[f"{match[1]}{name}.{match[2]}"] = np.concatenate(parts)
        elif not re.search(r"\.(key|value)\.\w+$", full):
            joined[full] = value
    if kind == "rar":
        joined["embeddings.weight"] = np.concatenate([joined["embeddings.weight"], joined.pop("embeddings.cond")])
    return joined


def training_size(ckpt: Path, asked: Asked) -> int:
    """Pixels on a side of LlamaGen's training images, which its files do not hold but their names do."""
    named = re.search(r"(?<!\d)(256|384|512)(?!\d)", ckpt.stem)
    if asked.size is None and named is None:
        raise ArgumentError(f"size is missing: ckpt={ckpt} does not say for which images it is; 256 or 384, say")
    if None not in (asked.size, named) and asked.size != int(named[1]):
        raise ArgumentError(f"size={asked.size}: ckpt={ckpt} is for images of {named[1]} pixels, by its name")
    return asked.size or int(named[1])


def llamagen_fields(tensors: Tensors, num_heads: int | None) -> dict[str, dict]:
    """What a config has of LlamaGen's transformers, by group; of tensors that are split, see `split`."""
    classes, width = shape_of(tensors, KINDS["llamagen"], 2)
    codes, _ = shape_of(tensors, "output.weight", 2)
    heads = num_heads or HEADS.get(width, width // 64)
    if heads < 1 or width % heads:
        raise ArgumentError(f"num_heads is missing, or wrong: a divisor of {width}, which the file does not tell")
    head_dim, kv = width // heads, shape_of(tensors, "layers.0.attention.key.weight", 2)[0]
    if kv == 0 or kv % head_dim:
        raise UserError(f"'layers.0.attention.wqkv.weight' does not fit {heads} heads of {head_dim}")
    gpt = dict(
        architecture="llamagen",
        num_layers=count(tensors, "layers.{}.attention_norm.weight"),
        num_heads=heads,
        embed_dim=width,
        mlp_dim=shape_of(tensors, "layers.0.feed_forward.w1.weight", 2)[0],
        **(dict(num_kv_heads=kv // head_dim) if kv < width else {}),
        **dict(embd_pdrop=0.1, attn_pdrop=0.0, resid_pdrop=0.1),
    )
    sample = dict(temperature=1.0, top_k=codes, top_p=1.0, guidance=GUIDANCE.get(width, 1.5))
    optim = dict(learning_rate=1e-4, b1=0.9, b2=0.95, weight_decay=0.05)
    return dict(gpt=gpt, sample=sample, optim=optim, sizes=dict(codes=codes, classes=classes - 1, length=None))


def rar_fields(tensors: Tensors) -> dict[str, dict]:
    """What a config has of RAR's transformers, by group; of tensors that are split, see `split`."""
    _, places, width = shape_of(tensors, KINDS["rar"], 3)
    codes, _ = shape_of(tensors, "lm_head.weight", 2)
    head_dim = shape_of(tensors, "blocks.0.attn.q_norm.weight", 1)[0]
    if head_dim < 1 or width % head_dim:
        raise UserError(f"tensor 'blocks.0.attn.q_norm.weight' has {head_dim} numbers, no divisor of {width}")
    gpt = dict(
        architecture="rar",
        num_layers=count(tensors, "blocks.{}.norm1.weight"),
        num_heads=width // head_dim,
        embed_dim=width,
        mlp_dim=shape_of(tensors, "blocks.0.mlp.fc1.weight", 2)[0],
        **dict(embd_pdrop=0.0, attn_pdrop=0.1, resid_pdrop=0.1),
    )
    temperature, guidance, power = RAR_SAMPLING.get(width, (1.0, 4.0, 0.0))
    sample = dict(temperature=temperature, top_k=codes, top_p=1.0, guidance=guidance, guidance_power=power)
    optim = dict(learning_rate=1e-5, b1=0.9, b2=0.96, weight_decay=0.03)  # the rate at the end of its schedule
    classes = shape_of(tensors, "embeddings.cond", 2)[0] - 1  # without the id for none
    return dict(
        gpt=gpt, sample=sample, optim=optim, sizes=dict(codes=codes, classes=classes, length=places - SPARE_PLACES)
    )


def transformer_from_torch(kind: str, tensors: Tensors, ckpt: Path, workdir: Path, asked: Asked) -> Runs:
    """A transformer and its tokenizer, from tensors that are taken out of `tensors`."""
    tensors.pop("freqs_cis", None)  # LlamaGen's rotary table, which follows from the sizes
    split(kind, tensors)
    if kind == "rar":
        if asked.num_heads is not None:
            raise ArgumentError(f"num_heads: ckpt={ckpt} tells it by itself")
        fields = rar_fields(tensors)
    else:
        fields = llamagen_fields(tensors, asked.num_heads)
    codes, classes, length = fields.pop("sizes").values()
    if classes < 1:
        raise UserError("it has no classes")
    found, parts = read_tokenizer(kind, asked)
    if length is None:
        size = training_size(ckpt, asked)
    else:
        size = math.isqrt(max(0, length)) * patch_of(found, parts)
        if math.isqrt(max(1, length)) ** 2 != length:
            raise UserError(f"tensor {KINDS[kind]!r} is for {length} codes, which are no square grid")
    if asked.size not in (None, size):
        raise ArgumentError(f"size={asked.size}: ckpt={ckpt} is for images of {size} pixels, by its tensors")
    with about_file(asked.first_stage):
        first, state = first_stage_from_torch(found, parts, size)
        account(parts)
    if first.quantizer.codebook_size != codes:
        raise UserError(f"it has {codes} codes, and first_stage={asked.first_stage} {first.quantizer.codebook_size}")
    config, common = config_files.load("custom_transformer"), config_files.module("common")
    with config.unlocked():
        config.cond = common.get_cond("class")
        config.sample = common.get_sample(**fields["sample"])
    config.first_stage.update(workdir=str(workdir / "first_stage"), step=0)
    config.cond.drop, config.ema_decay = 0.1, 0.0
    config.gpt.update(fields["gpt"])
    config.optim.update(fields["optim"], schedule="constant", warmup_steps=0, clip_norm=1.0)
    runs: Runs = {workdir / "first_stage": (first, state)}
    config = completed(config, runs, tuple(map(str, range(classes))))
    shapes = jax.eval_shape(unstack, net_shapes(config))
    gpt = stack(from_torch(tensors, shapes, RULES[kind], ""))
    runs[workdir] = (config, TrainState(np.zeros((), np.int32), {"gpt": gpt}, {}, {"gpt": {}}, {}))
    return runs


def kind_of_run(config: ConfigDict) -> str | None:
    """The kind of file that a run of this config is written as, of KINDS; None for the original's."""
    if config.task == "transformer":
        return config.gpt.architecture if config.gpt.architecture in RULES else None
    if config.model.network == "maskgit":
        return "maskgit_vq"
    return "llamagen_vq" if config.quantizer.name == "normalized" else None


def to_file(kind: str, workdir: Path, step: int, config: ConfigDict) -> dict:
    """What a file of a kind holds, in numpy: tensors as its own code names them, which loads them with strict=True.

    A transformer's tokenizer is a file of its own, that of the run `first_stage` in its run.
    """
    net = "gpt" if config.task == "transformer" else "gen"
    params = checkpoint.load_net(workdir, step, net, net_shapes(config))
    if config.task == "transformer":
        tensors = join(kind, to_torch(unstack(params), RULES[kind], ""))
        say(f"its tokenizer is another file: --workdir={workdir / 'first_stage'}")
        return tensors if kind == "rar" else {"model": tensors}
    tensors = to_torch(params, generator_rules(config), "")
    if kind == "maskgit_vq":
        return tensors
    lowest = (config.data.size >> (len(config.model.ch_mult) - 1),)
    if tuple(config.model.attn_resolutions) != lowest:
        raise UserError(f"LlamaGen's tokenizer attends at the lowest level alone, model.attn_resolutions={lowest}")
    return {"model": tensors | {USAGE: np.zeros(USAGE_SIZE, np.float32)}}
