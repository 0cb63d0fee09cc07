"""Every field of a config: its type and its range. A config is checked by this table once, where it enters.

A new field gets a line here. What several fields must be together is said in the modules that read them.
"""

import re
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import RequiredValueError

from taming_jax import losses, optim, permute, trackers
from taming_jax.conditions import CONDITIONS, layout
from taming_jax.data.annotations import TABLES
from taming_jax.data.features import FEATURES, LEARNABLE
from taming_jax.errors import UserError, nearest, printable, shorten, show
from taming_jax.models.gpt import REMAT
from taming_jax.models.quantize import QUANTIZERS
from taming_jax.parts import FRESH, PARTS
from taming_jax.quality.options import KINDS
from taming_jax.sampling.draw import RULES as SAMPLING
from taming_jax.values import INT64, Rule, among, folder, line, optional, path, real, run, several, switch, text, whole

COUNT = whole(1, INT64)  # a number over steps means never
STEP = whole(0, INT64)
WIDTH = whole(1, 2**16)
SHARE = real(0, below=1)
WEIGHT = real(0)


def devices(name: str, value: Any, kind: type[UserError] = UserError) -> None:
    """A number of devices, or -1 for the rest of them."""
    whole(-1, 2**16)(name, value, kind)
    if value == 0:
        raise kind(f"{name}=0: it is a number of devices, or -1 for the rest")


def parts(allowed: tuple[str, ...]) -> Rule:
    """Some parts of a net; tells how several are written in a flag."""

    def check(name: str, value: Any, kind: type[UserError] = UserError) -> None:
        if isinstance(value, (tuple, list)) and len(value) == 1 and "," in str(value[0]):
            words = tuple(word.strip() for word in str(value[0]).split(","))
            raise kind(f'{name}={show(value[0])}: several are written as --config.{name}="{shorten(str(words))}"')
        several(among(allowed))(name, value, kind)

    return check


COMMON: dict[str, Rule] = {
    "seed": STEP,
    "dtype": among(("float32", "bfloat16")),
    "batch_size": whole(1, 2**20),
    "accumulate": whole(1),
    "steps": whole(1),
    "log_every": COUNT,
    "eval_every": COUNT,
    "checkpoint_every": COUNT,
    "keep_checkpoints": whole(1),
    "checkpoint_best": line,
    "max_skipped": COUNT,
    "ema_decay": SHARE,
    "init_from": run,
    "tracker": trackers.rule,
    **{f"mesh.{axis}": devices for axis in ("data", "fsdp", "tensor")},
    "optim.name": among(optim.OPTIMIZERS),
    "optim.momentum": SHARE,
    "optim.learning_rate": real(above=0),
    "optim.schedule": among(optim.SCHEDULES),
    "optim.warmup_steps": whole(),
    "optim.final_share": real(0, 1),
    "optim.b1": SHARE,
    "optim.b2": SHARE,
    "optim.eps": WEIGHT,
    "optim.weight_decay": WEIGHT,
    "optim.clip_norm": WEIGHT,
}

LAYOUT: dict[str, Rule] = {
    "kind": among(layout.KINDS),
    "min_objects": whole(),
    "max_objects": whole(1, 2**16),
    "min_area": real(0, 1),
    "categories": among(("", *TABLES)),
    "num_tokens": whole(4),
    "encode_crop": switch,
    "use_group": switch,
}

DATA: dict[str, Rule] = {
    "name": line,
    "dir": path,
    "path": path,
    "validation_share": real(0, 1),
    "num_labels": whole(0, 256),
    "label_shift": whole(0, 255),
    "splits.train": line,
    "splits.validation": line,
    "features": several(among(FEATURES)),
    "downscale": whole(1, 2**12),
    "size": whole(1, 2**12),
    "resize_factor": real(1, 64),
    "random_scale": switch,
    "random_crop": switch,
    "flip": switch,
    "workers": whole(0, 1024),
    "max_bad_share": real(0, 1),
    "class_names": several(text),
}

STAGE: dict[str, Rule] = {"workdir": run, "step": optional(STEP), "digest": line, "origin": run}

OF_TASK: dict[str, dict[str, Rule]] = {
    "vqgan": {
        **{f"data.{name}": rule for name, rule in DATA.items()},
        "freeze": parts(PARTS["vqgan"]),
        "fresh": parts(FRESH["vqgan"]),
        "input": among(LEARNABLE),
        "model.ch": WIDTH,
        "model.ch_mult": several(whole(1, 2**10), 1, 12),
        "model.num_res_blocks": whole(0, 2**10),
        "model.attn_resolutions": several(whole(1)),
        "model.z_channels": WIDTH,
        "model.out_ch": whole(1, 256),
        "model.network": among(("vqgan", "maskgit", "local")),
        "model.remat": switch,
        "model.patch": whole(1, 64),
        "quantizer.name": among(QUANTIZERS),
        "restart_codes_after": whole(),
        "loss.pixel": among(losses.PIXEL_LOSSES),
        "loss.pixel_weight": WEIGHT,
        "loss.perceptual_weight": WEIGHT,
        "loss.perceptual_start": STEP,
        "loss.perceptual_crop": whole(),
        "loss.codebook_weight": WEIGHT,
        "disc.network": among(("patch", "blurred")),
        "disc.ndf": WIDTH,
        "disc.n_layers": whole(1, 2**10),
        "disc.use_actnorm": switch,
        "disc.loss": among(losses.DISCRIMINATOR_LOSSES),
        "disc.start": STEP,
        "disc.gen_start": STEP,
        "disc.ramp_steps": whole(),
        "disc.weight": WEIGHT,
        "disc.adaptive": switch,
        "disc.lecam_weight": WEIGHT,
        "disc.lecam_decay": SHARE,
        "disc.delta": WEIGHT,
        "disc.max_weight": WEIGHT,
    },
    "transformer": {
        "freeze": parts(PARTS["transformer"]),
        "fresh": parts(FRESH["transformer"]),
        **{f"first_stage.{name}": rule for name, rule in STAGE.items()},
        "first_stage.used": several(whole()),
        "first_stage.unknown": line,
        **{f"cond.{name}": rule for name, rule in STAGE.items()},
        "cond.name": among(CONDITIONS),
        "cond.drop": SHARE,
        "cond.aligned": switch,
        "cond.sos": whole(0, 2**24),
        "cond.levels": whole(1, 2**24),
        "cond.down": whole(1, 2**12),
        "cond.max_words": whole(1, 2**16),
        "cond.max_vocabulary": whole(1),
        "cond.vocabulary": several(text),
        **{f"cond.layout.{name}": rule for name, rule in LAYOUT.items()},
        "order": among(permute.ORDERS),
        "pkeep": real(above=0, most=1),
        "noise_until": whole(),
        "vector_weight": WEIGHT,
        "vector_init": WEIGHT,
        "codes": folder,
        "gpt.num_layers": whole(1, 2**12),
        "gpt.num_heads": WIDTH,
        "gpt.embed_dim": WIDTH,
        "gpt.embd_pdrop": SHARE,
        "gpt.attn_pdrop": SHARE,
        "gpt.resid_pdrop": SHARE,
        "gpt.n_unmasked": whole(),
        "gpt.architecture": among(("gpt", "llamagen", "rar", "modern")),
        "gpt.mlp_dim": optional(WIDTH),
        "gpt.num_kv_heads": optional(WIDTH),
        "gpt.random_order": several(STEP, 2, 2),
        "gpt.remat": among(REMAT),
        "gpt.context.kind": among(("window", "wavefront", "masked")),
        "gpt.context.places": switch,
        "gpt.context.label_smoothing": SHARE,
        "gpt.context.unmasked_weight": WEIGHT,
        "gpt.context.lag": whole(1, 2**15),
        "gpt.context.reach": several(whole(1, 2**15), 2, 2),
        "gpt.vocab_size": optional(whole(1)),
        "gpt.block_size": optional(whole(1, 2**20)),
        "canvas": several(whole(0, 2**15), 2, 2),
        **{f"sample.{name}": rule for name, rule in SAMPLING.items()},
    },
}

# What a config of a task may have besides: the run whose stored config it is; the data that a transformer does not name
# are its first stage's.
EXTRA: dict[str, dict[str, Rule]] = {
    "vqgan": {"run": folder},
    "transformer": {
        "run": folder,
        **{f"data.{name}": optional(rule) for name, rule in DATA.items()},
        **{f"data.layout.{name}": rule for name, rule in LAYOUT.items()},
    },
}
COMPLETED = ("first_stage.config", "cond.config")  # configs in themselves, taken from runs


def check_fields(config: ConfigDict, complete: bool = False) -> None:
    """Raises UserError for a field that is missing, unknown, or not of its type or range; it names the field.

    complete: as runs store it, with all fields of the data.
    """
    try:
        given = flat(config)
    except RequiredValueError as e:
        raise UserError(f"the config leaves a field open: {' '.join(str(e).split())}") from e
    among(OF_TASK)("task", given.get("task"))
    needed, extra = {"task": text} | COMMON | OF_TASK[given["task"]], EXTRA[given["task"]]
    if "quantizer.name" in needed:
        needed = needed | rules_of_quantizer(given)
    extra = extra | rules_of_evals(config)
    if complete:
        needed = needed | {f"data.{name}": rule for name, rule in DATA.items()}
    known = extra | needed
    groups = {group for name in known for group in parents(name)} | {"evals"}
    for name, value in given.items():
        if name in groups and not isinstance(value, ConfigDict):
            raise UserError(f"{name}={show(value)}: it is a group of fields")
        if name not in known and name not in groups:
            raise UserError(f"{shorten(printable(name))}: there is no such field{nearest(name, known)}")
        if name in known:
            known[name](name, value)
            parts = value if isinstance(value, (tuple, list)) else [value]
            if any(isinstance(part, np.generic) and not isinstance(part, float) for part in parts):
                raise UserError(f"{name}={show(value)}: a numpy number, which JSON does not hold; write int or float")
    if missing := [name for name in (*needed, "evals") if name not in given]:
        like = {"vqgan": "openmoji_vq", "transformer": "openmoji_transformer"}[given["task"]]
        raise UserError(f"{missing[0]} is missing from the config; {like} has it, for example")


def rules_of_quantizer(given: dict[str, Any]) -> dict[str, Rule]:
    """The fields of the quantizer that a config names; raises UserError where the config has others."""
    name = given.get("quantizer.name")
    among(QUANTIZERS)("quantizer.name", name)
    rules = {f"quantizer.{field}": rule for field, rule in QUANTIZERS[name].RULES.items()}
    found = {field for field in given if field.startswith("quantizer.") and not isinstance(given[field], ConfigDict)}
    if found - {"quantizer.name"} != set(rules):
        has, got = (sorted(f.removeprefix("quantizer.") for f in x) for x in (rules, found - {"quantizer.name"}))
        raise UserError(
            f"quantizer.name={name!r} has the fields {', '.join(has)}, the config {', '.join(got)[:100]};"
            " begin from a config with that quantizer"
        )
    return rules


def rules_of_evals(config: ConfigDict) -> dict[str, Rule]:
    """The fields of the evaluators that a config names; raises UserError for one that is none of its task's."""
    evals = config.get("evals")
    rules = {}
    for name, fields in evals.items() if isinstance(evals, ConfigDict) else ():
        name = str(name)
        if not re.fullmatch(r"[\w-]{1,64}", name) or name in ("train", "validation"):
            raise UserError(f"evals.{shorten(printable(name))}: another name, of letters, digits, _ and -")
        if not isinstance(fields, ConfigDict):
            raise UserError(f"evals.{name}={show(fields)}: it is a group of fields, {{'kind': 'samples'}} for example")
        kinds = [kind for kind, its in KINDS.items() if its.task == config.task]
        among(kinds)(f"evals.{name}.kind", fields.get("kind", ""))
        options = KINDS[fields.kind].options
        rules |= {f"evals.{name}.kind": line} | {f"evals.{name}.{f}": option.rule for f, option in options.items()}
    return rules


def parents(name: str) -> list[str]:
    """The groups that a field is in: 'a.b.c' -> 'a', 'a.b'."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Every field and every group by its full name, except for configs in a config."""
    found = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name not in COMPLETED:
            found[name] = value
            found |= flat(value, f"{name}.") if isinstance(value, ConfigDict) else {}
    return found


def differences(old: ConfigDict | dict, new: ConfigDict | dict, prefix: str = "") -> list[str]:
    """'batch_size 8 -> 16' for each field that differs, by full name."""
    found = []
    for key in sorted(set(old) | set(new)):
        a, b = old.get(key), new.get(key)
        if isinstance(a, (ConfigDict, dict)) and isinstance(b, (ConfigDict, dict)):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            words = [repr(value.to_dict() if isinstance(value, ConfigDict) else value) for value in (a, b)]
            found.append(f"{shorten(printable(prefix + key))} {' -> '.join(map(shorten, words))}")
    return found
