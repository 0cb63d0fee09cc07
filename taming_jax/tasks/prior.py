"""Stage two: the transformer over the first stage's codes, after a condition."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from taming_jax import checkpoint, losses, metrics, optim, permute, sampling, sharding
from taming_jax import state as states
from taming_jax.errors import UserError, not_among
from taming_jax.images import Sheet
from taming_jax.models import conditioners
from taming_jax.models.gpt import GPT, Cache
from taming_jax.models.quantize import remap, unmap
from taming_jax.tasks import vqgan

CONDITIONS = ("none", "class", "coordinates", "image", "objects")


def complete(config: ConfigDict, stored: ConfigDict | None) -> ConfigDict:
    """Takes the data and the codes from the first stage's run, so that nothing is configured twice.

    `config.data` overrides single fields of the first stage's. A resumed run keeps the checkpoints of the first stages
    that it began with: other weights would be another code.
    """
    config = config.copy_and_resolve_references()
    check_decoding(config.sample)
    for name, value, allowed in (
        ("cond.name", config.cond.name, CONDITIONS),
        ("order", config.order, permute.ORDERS),
    ):
        if value not in allowed:
            raise not_among(name, value, allowed)
    unknown, used = config.first_stage.unknown, len(config.first_stage.used)
    if used and unknown not in ("random", "extra", *map(str, range(used))):
        raise UserError(
            f"first_stage.unknown={unknown!r}: 'random', 'extra', or a position among the {used} used codes"
        )
    for name, needed in (("image", ("workdir",)), ("objects", ("length", "vocab_size"))):
        if config.cond.name == name and not all(config.cond[field] for field in needed):
            raise UserError(f"cond.name={name!r} needs {' and '.join(f'cond.{field}' for field in needed)}")
    if config.gpt.embed_dim % config.gpt.num_heads:
        raise UserError(f"gpt.embed_dim={config.gpt.embed_dim} is not divided by gpt.num_heads={config.gpt.num_heads}")
    if not 0 < config.pkeep <= 1:
        raise UserError(f"pkeep={config.pkeep:g}: it must be in (0, 1]")

    first = find_stage(config, stored, "first_stage")
    if config.cond.name == "image":
        find_stage(config, stored, "cond")
    with config.unlocked():
        moved = {k: v for k, v in config.data.items() if v is not None}
        config.data = ConfigDict({**first.data, "features": features(config), **moved})
    if config.data.size != first.data.size:
        raise UserError(f"data.size={config.data.size}: the first stage was trained at {first.data.size}")
    if config.cond.name == "image" and config.cond.config.data.size != config.data.size:
        size = config.cond.config.data.size
        raise UserError(f"cond.workdir={config.cond.workdir} was trained at {size} pixels, not {config.data.size}")
    if config.cond.name == "coordinates" and config.data.size % config.cond.down:
        raise UserError(f"cond.down={config.cond.down} does not divide data.size={config.data.size}")
    cond = make_conditioner(config)
    for name, value, least in (
        ("vocab_size", config.gpt.vocab_size, max(num_codes(config), cond.vocab_size)),
        ("block_size", config.gpt.block_size, cond.length + side(first) ** 2 - 1),
    ):
        if value is not None and value < least:
            raise UserError(f"gpt.{name}={value}: condition and codes need at least {least}")
    if config.gpt.n_unmasked > cond.length:
        raise UserError(f"gpt.n_unmasked={config.gpt.n_unmasked}: the condition has {cond.length} ids")
    return config


def check_classes(config: ConfigDict, class_names: tuple[str, ...]) -> None:
    """Raises UserError where a transformer on classes was trained with another number of them than the data has."""
    if config.task == "prior" and config.cond.name == "class" and num_classes(config) != max(1, len(class_names)):
        raise UserError(
            f"{config.data.path or config.data.name} has {len(class_names)} classes,"
            f" the run was trained with {num_classes(config)}"
        )


def features(config: ConfigDict) -> tuple[str, ...]:
    """What records must hold for the codes and the condition."""
    needed = {"image", config.first_stage.config.input}
    if config.cond.name == "image":
        needed.add(config.cond.config.input)
    needed |= {"coordinates": {"coord"}, "objects": {"objects"}}.get(config.cond.name, set())
    return tuple(sorted(needed))


def find_stage(config: ConfigDict, stored: ConfigDict | None, name: str) -> ConfigDict:
    """Fills in the step and the config of a VQGAN's run that `config[name].workdir` points to; -> its config."""
    stage = config[name]
    if stored is not None and stage.step is None:
        stage.step = stored[name].step
    found, step = checkpoint.load_config(Path(stage.workdir), stage.step)
    if found.task != "vqgan":
        raise UserError(f"{name}.workdir={stage.workdir} holds a {found.task!r} run; a first stage is a 'vqgan' run")
    with config.unlocked():
        stage.update(step=step, config=found)
    return found


def check_decoding(options: Mapping[str, float]) -> None:
    """Raises UserError for a temperature, top_k or top_p outside its range."""
    if options["temperature"] <= 0:
        raise UserError(f"temperature={options['temperature']:g}: it must be above 0")
    if options["top_k"] < 1:
        raise UserError(f"top_k={options['top_k']}: it must be at least 1; over the codebook's size it keeps all codes")
    if not 0 < options["top_p"] <= 1:
        raise UserError(f"top_p={options['top_p']:g}: it must be in (0, 1]")


def num_classes(config: ConfigDict) -> int:
    return max(1, len(config.data.class_names))


def side(stage: ConfigDict) -> int:
    """Side of a first stage's grid of codes."""
    return stage.data.size // 2 ** (len(stage.model.ch_mult) - 1)


def num_codes(config: ConfigDict) -> int:
    """How many codes the transformer knows: the first stage's, or those that it uses."""
    used = len(config.first_stage.used)
    return used + (config.first_stage.unknown == "extra") if used else config.first_stage.config.quantizer.codebook_size


def make_conditioner(config: ConfigDict) -> conditioners.Conditioner:
    """The condition of a completed config."""
    cond = config.cond
    if cond.name == "none":
        return conditioners.none(cond.sos)
    if cond.name == "class":
        return conditioners.label(num_classes(config))
    if cond.name == "coordinates":
        return conditioners.coordinates(cond.levels, config.data.size, cond.down)
    if cond.name == "objects":
        return conditioners.objects(cond.length, cond.vocab_size)
    vq = vqgan.make_model(cond.config)

    def encode(frozen, batch):
        seen = vqgan.to_input(cond.config, batch)
        return vq.apply({"params": sharding.gather(frozen["cond"])}, seen, method="encode")[1]["ids"]

    return conditioners.image(encode, cond.config.quantizer.codebook_size, (side(cond.config),) * 2)


def make_model(config: ConfigDict) -> GPT:
    """The transformer of a completed config. Conditions and codes share one vocabulary, as in the original."""
    cond, fields = make_conditioner(config), config.gpt.to_dict()
    fields["vocab_size"] = fields["vocab_size"] or max(num_codes(config), cond.vocab_size)
    fields["block_size"] = fields["block_size"] or cond.length + side(config.first_stage.config) ** 2 - 1
    return GPT(dtype=jnp.dtype(config.dtype), **fields)


def corrupt(ids: jax.Array, pkeep: float, vocab_size: int, key: jax.Array) -> jax.Array:
    """Each id stays with probability `pkeep`, or becomes any other (the original's pkeep). [B,T] -> [B,T]."""
    keep_key, key = jax.random.split(key)
    keep = jax.random.bernoulli(keep_key, pkeep, ids.shape)
    return jnp.where(keep, ids, jax.random.randint(key, ids.shape, 0, vocab_size))


def make(config: ConfigDict) -> states.Task:
    """Binds modules, optimizers and numbers once; everything returned is pure but `load_frozen`."""
    first = config.first_stage.config
    vq, gpt, cond = vqgan.make_model(first), make_model(config), make_conditioner(config)
    optimizers = {"gpt": optim.make_optimizer(config.optim, config.steps)}
    ema_decay = {"gpt": config.ema_decay}
    order = permute.ORDERS[config.order](side(first), side(first))
    used = jnp.asarray(config.first_stage.used, jnp.int32)

    def init(key: jax.Array) -> states.TrainState:
        params = {"gpt": gpt.init(key, jnp.zeros((1, gpt.block_size), jnp.int32))["params"]}
        return states.create(optimizers, params, {}, ema_decay)

    def load_frozen() -> dict:
        stages = {"gen": config.first_stage} | ({"cond": config.cond} if config.cond.name == "image" else {})
        frozen = {}
        for name, stage in stages.items():
            size = stage.config.data.size
            images = jnp.zeros((1, size, size, stage.config.model.out_ch))
            like = jax.eval_shape(vqgan.make_model(stage.config).init, jax.random.key(0), images)["params"]
            frozen[name] = checkpoint.load_net(Path(stage.workdir), stage.step, "gen", like)
        return frozen

    def tokens(state: states.TrainState, batch: dict, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """-> condition [B,S] and codes [B,T] in the order of writing, both int32."""
        images = vqgan.to_input(first, batch)
        _, codes = vq.apply({"params": sharding.gather(state.frozen["gen"])}, images, method="encode")
        ids = codes["ids"].reshape(len(images), -1)[:, order]
        if len(used):
            unknown = config.first_stage.unknown
            ids = remap(ids, used, int(unknown) if unknown.isdecimal() else unknown, key)
        return cond.tokens(state.frozen, batch), ids

    def predict(params: dict, c: jax.Array, ids: jax.Array, **kwargs) -> jax.Array:
        """Logits of every code, given the condition and the codes before it. [B,S], [B,T] -> [B,T,V]."""
        inputs = jnp.concatenate([c, ids[:, :-1]], 1)
        return gpt.apply({"params": params}, inputs, **kwargs)[:, cond.length - 1 :]

    def phase(step: int) -> None:
        return None

    def train_step(state: states.TrainState, batch: dict, key: jax.Array, phase: None):
        """One update of the transformer on the cross-entropy of the codes."""
        dropout_key, remap_key, corrupt_key = jax.random.split(key, 3)
        c, targets = tokens(state, batch, remap_key)
        ids = corrupt(targets, config.pkeep, gpt.vocab_size, corrupt_key) if config.pkeep < 1 else targets

        def loss_fn(params):
            logits = predict(params, c, ids, train=True, rngs={"dropout": dropout_key})
            return losses.cross_entropy(logits, targets).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params["gpt"])
        new = states.apply_updates(state, optimizers, {"gpt": grads}, {}, ema_decay)
        return new, metrics.collection(
            dict(loss=loss), codes=metrics.CodeUse(metrics.count_codes(targets, num_codes(config)))
        )

    def eval_step(state: states.TrainState, batch: dict):
        c, targets = tokens(state, batch, jax.random.key(0))
        logits = predict(states.averaged(state, "gpt"), c, targets)
        return metrics.collection(
            dict(nll=losses.cross_entropy(logits, targets)),
            mask=batch["mask"],
            codes=metrics.CodeUse(metrics.count_codes(targets, num_codes(config), batch["mask"])),
        )

    def pictures(state: states.TrainState, batch: dict, key: jax.Array) -> dict[str, Sheet]:
        """Four samples for each of the first classes, or for each of the first conditions, sixteen at most."""
        columns = 4
        if config.cond.name == "class":
            rows = min(16, num_classes(config))
            batch = {"label": jnp.arange(rows)}
            captions = tuple(config.data.class_names[:rows])
        else:
            rows, captions = min(16, len(batch["image"])), ()
        batch = jax.tree.map(lambda x: jnp.repeat(x[:rows], columns, 0), batch)
        c = cond.tokens(state.frozen, batch)
        keys = jax.random.split(key, rows * columns)
        images = sample(config, states.averaged(state, "gpt"), state.frozen["gen"], c, keys, **config.sample)
        images = images.reshape(rows, columns, *images.shape[1:])
        if config.cond.name == "image":
            seen = vqgan.to_picture(config.cond.config, vqgan.to_input(config.cond.config, batch))
            images = jnp.concatenate([seen.reshape(rows, columns, *seen.shape[1:])[:, :1], images], 1)
        return {"samples": Sheet(images, captions)}

    return states.Task(init, load_frozen, phase, train_step, eval_step, pictures)


def sample(
    config: ConfigDict,
    gpt_params: dict,
    first_stage: dict,
    c: jax.Array,
    keys: jax.Array,
    temperature: float,
    top_k: int,
    top_p: float,
) -> jax.Array:
    """Images of the given conditions. c [B,S] int32, keys [B] -> [B,H,W,3] roughly in [-1, 1].

    Pure, to be jitted with a completed config bound; temperature > 0, 1 <= top_k, 0 < top_p <= 1 may be traced.
    """
    gpt, n, limit = make_model(config), side(config.first_stage.config), num_codes(config)
    decode = functools.partial(next_code, gpt, limit, gpt_params)
    cache = gpt.init_cache(len(c))
    ids = sampling.sample_full(decode, cache, c, n * n, keys, temperature, jnp.minimum(top_k, limit), top_p)
    grid = ids[:, np.argsort(permute.ORDERS[config.order](n, n))].reshape(-1, n, n)
    return decode_grid(config, first_stage, grid)


def next_code(
    gpt: GPT, limit: int, params: dict, ids: jax.Array, position: jax.Array, cache: Cache, at: jax.Array | None = None
) -> tuple[jax.Array, Cache]:
    """`GPT.decode` over codes alone: the first `limit` ids, what else is in the vocabulary is cut off."""
    logits, cache = gpt.apply({"params": params}, ids, position, cache, at=at, method="decode")
    return logits[..., :limit], cache


def make_painter(config: ConfigDict, method: str, stride: int) -> Callable:
    """`sampling.make_painter` for a completed config, for grids larger than the first stage's.

    Raises UserError where the transformer does not write row by row, and for a stride that is too long.
    """
    if config.order != "row_major":
        raise UserError(f"a sliding window follows rows; this transformer writes in the order {config.order!r}")
    gpt, window = make_model(config), side(config.first_stage.config)
    try:
        decode = functools.partial(next_code, gpt, num_codes(config))
        return sampling.make_painter(decode, gpt.init_cache, window, method, stride)
    except ValueError as e:
        raise UserError(str(e)) from e


def decode_grid(config: ConfigDict, first_stage: dict, grid: jax.Array) -> jax.Array:
    """The transformer's codes [B,h,w] -> images [B,H,W,3] roughly in [-1, 1]."""
    first = config.first_stage.config
    if len(config.first_stage.used):
        grid = unmap(grid, jnp.asarray(config.first_stage.used, jnp.int32))
    decoded = vqgan.make_model(first).apply({"params": sharding.gather(first_stage)}, grid, method="decode_ids")
    return vqgan.to_picture(first, decoded)
