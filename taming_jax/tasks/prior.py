"""Stage two: the transformer over the first stage's codes, after a condition."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from taming_jax import checkpoint, losses, metrics, optim, permute, sampling, sharding
from taming_jax import state as states
from taming_jax.animation import Animation
from taming_jax.data import annotations, layouts
from taming_jax.data.transforms import coordinates
from taming_jax.errors import UserError, not_among
from taming_jax.images import Sheet, to_uint8
from taming_jax.models.gpt import GPT, REMAT, Cache, align, unstack
from taming_jax.models.quantize import remap, unmap
from taming_jax.tasks import conditioners, vqgan
from taming_jax.tiling import decode_tiled


def complete(
    config: ConfigDict, stored: ConfigDict | None, load_config: Callable = checkpoint.load_config
) -> ConfigDict:
    """Takes the data and the codes from the first stage's run, so that nothing is configured twice.

    `config.data` overrides single fields of the first stage's. A resumed run keeps the checkpoints of the first stages
    that it began with: other weights would be another code.
    """
    config = config.copy_and_resolve_references()
    check_decoding(config)
    for name, value, allowed in (
        ("cond.name", config.cond.name, conditioners.FEATURES),
        ("order", config.order, permute.ORDERS),
        ("gpt.remat", config.gpt.remat, REMAT),
    ):
        if value not in allowed:
            raise not_among(name, value, allowed)
    unknown, used = config.first_stage.unknown, len(config.first_stage.used)
    if used and unknown not in ("random", "extra", *map(str, range(used))):
        raise UserError(
            f"first_stage.unknown={unknown!r}: 'random', 'extra', or a position among the {used} used codes"
        )
    if config.cond.name == "image" and not config.cond.workdir:
        raise UserError("cond.name='image' needs cond.workdir, the run directory of that image's first stage")
    if config.cond.layout.kind not in layouts.KINDS:
        raise not_among("cond.layout.kind", config.cond.layout.kind, layouts.KINDS)
    if table := config.cond.layout.get("categories", ""):  # not in runs that are older than the field
        annotations.check_table(table)
    if config.gpt.embed_dim % config.gpt.num_heads:
        raise UserError(f"gpt.embed_dim={config.gpt.embed_dim} is not divided by gpt.num_heads={config.gpt.num_heads}")
    if not 0 < config.pkeep <= 1:
        raise UserError(f"pkeep={config.pkeep:g}: it must be in (0, 1]")
    if not 0 <= config.cond.drop < 1 or (config.cond.drop and config.cond.name == "none"):
        raise UserError(f"cond.drop={config.cond.drop:g}: it must be in [0, 1), and 0 where there is no condition")

    first = find_stage(config, stored, "first_stage", load_config)
    if config.cond.name == "image":
        find_stage(config, stored, "cond", load_config)
    with config.unlocked():
        moved = {k: v for k, v in config.data.items() if v is not None}
        if config.cond.name == "image":
            seen = config.cond.config.data
            moved = {name: seen[name] for name in ("num_labels", "label_shift", "downscale") if name in seen} | moved
        config.data = ConfigDict({**first.data, **moved, "features": features(config), "layout": config.cond.layout})
    if config.data.size != first.data.size:
        raise UserError(f"data.size={config.data.size}: the first stage was trained at {first.data.size}")
    if config.cond.name == "image" and config.cond.config.data.size != config.data.size:
        size = config.cond.config.data.size
        raise UserError(f"cond.workdir={config.cond.workdir} was trained at {size} pixels, not {config.data.size}")
    if config.cond.get("aligned"):
        if config.cond.name not in ("image", "coordinates", "objects"):
            raise UserError(f"cond.aligned: a condition on {config.cond.name!r} has no place in the picture")
        if config.cond.name == "objects" and config.cond.layout.encode_crop:
            raise UserError(
                "cond.aligned: with cond.layout.encode_crop, places are those of the whole picture, not a crop's"
            )
        if config.gpt.embed_dim % 4:
            raise UserError(f"gpt.embed_dim={config.gpt.embed_dim}: cond.aligned needs a multiple of 4")
    if config.cond.name == "coordinates" and config.data.size % config.cond.down:
        raise UserError(f"cond.down={config.cond.down} does not divide data.size={config.data.size}")
    if any(config.canvas):
        check_size(config, "canvas", tuple(config.canvas))
        if config.cond.name in ("image", "objects"):
            raise UserError(f"canvas: a transformer conditioned on {config.cond.name!r} has none in training")
    cond = conditioners.make(config)
    for name, value, least in (
        ("vocab_size", config.gpt.vocab_size, vocab_size(config)),
        ("block_size", config.gpt.block_size, cond.length + vqgan.side(first) ** 2 - 1),
    ):
        if value is not None and value < least:
            raise UserError(f"gpt.{name}={value}: condition and codes need at least {least}")
    if config.gpt.n_unmasked > cond.length:
        raise UserError(f"gpt.n_unmasked={config.gpt.n_unmasked}: the condition has {cond.length} ids")
    return config


def complete_ahead(config: ConfigDict, stages: dict[str, ConfigDict]) -> ConfigDict:
    """`complete`, where first stages are not trained yet: from their configs, by the keys 'first_stage' and 'cond'."""
    ahead = {Path(config[name].workdir): vqgan.complete(stage, None) for name, stage in stages.items()}

    def load_config(workdir: Path, step: int | None) -> tuple[ConfigDict, int]:
        if workdir in ahead:
            return ahead[workdir].copy_and_resolve_references(), 0
        return checkpoint.load_config(workdir, step)

    return complete(config, None, load_config)


def check_classes(config: ConfigDict, class_names: tuple[str, ...]) -> None:
    """Raises UserError where a transformer was trained on another number of classes than the data has."""
    if config.task == "prior" and config.cond.name in ("class", "objects"):
        if conditioners.num_classes(config) != max(1, len(class_names)):
            raise UserError(
                f"{config.data.path or config.data.name} has {len(class_names)} classes,"
                f" the run was trained with {conditioners.num_classes(config)}"
            )


def features(config: ConfigDict) -> tuple[str, ...]:
    """What records must hold for the codes and the condition."""
    needed = {"image", config.first_stage.config.input}
    if config.cond.name == "image":
        needed.add(config.cond.config.input)
    return tuple(sorted(needed | conditioners.FEATURES[config.cond.name]))


def find_stage(config: ConfigDict, stored: ConfigDict | None, name: str, load_config: Callable) -> ConfigDict:
    """Fills in the step and the config of a VQGAN's run that `config[name].workdir` points to; -> its config."""
    stage = config[name]
    if stored is not None and stage.step is None:
        stage.step = stored[name].step
    found, step = load_config(Path(stage.workdir), stage.step)
    if found.task != "vqgan":
        raise UserError(f"{name}.workdir={stage.workdir} holds a {found.task!r} run; a first stage is a 'vqgan' run")
    with config.unlocked():
        stage.update(step=step, config=found)
    return found


def check_decoding(config: ConfigDict) -> None:
    """Raises UserError for a temperature, top_k, top_p or guidance in `config.sample` outside its range."""
    options = config.sample
    if not options.temperature > 0:
        raise UserError(f"temperature={options.temperature:g}: it must be above 0")
    if options.top_k < 1:
        raise UserError(f"top_k={options.top_k}: it must be at least 1; over the codebook's size it keeps all codes")
    if not 0 < options.top_p <= 1:
        raise UserError(f"top_p={options.top_p:g}: it must be in (0, 1]")
    if options.guidance != 1 and not config.cond.drop:
        raise UserError(
            f"guidance={options.guidance:g}: it needs a transformer trained with dropped conditions, such as"
            " cond.drop=0.1; this one's is 0"
        )


def code_size(config: ConfigDict) -> int:
    """How many pixels a side belong to one code."""
    return config.data.size // vqgan.side(config.first_stage.config)


def num_codes(config: ConfigDict) -> int:
    """How many codes the transformer knows: the first stage's, or those that it uses."""
    used = len(config.first_stage.used)
    return used + (config.first_stage.unknown == "extra") if used else config.first_stage.config.quantizer.codebook_size


def vocab_size(config: ConfigDict) -> int:
    """What the transformer must know at least: codes, conditions, and the id that stands for a dropped one."""
    return max(num_codes(config), conditioners.make(config).vocab_size + (config.cond.drop > 0))


def make_model(config: ConfigDict) -> GPT:
    """The transformer of a completed config. Conditions and codes share one vocabulary, as in the original."""
    cond, fields = conditioners.make(config), config.gpt.to_dict()
    fields["vocab_size"] = fields["vocab_size"] or vocab_size(config)
    fields["block_size"] = fields["block_size"] or cond.length + vqgan.side(config.first_stage.config) ** 2 - 1
    return GPT(dtype=jnp.dtype(config.dtype), **fields)


def frozen_shapes(config: ConfigDict) -> dict:
    """The parameters of the first stages that a completed config needs, as shapes."""
    stages = {"gen": config.first_stage.config} | ({"cond": config.cond.config} if config.cond.name == "image" else {})
    return {name: vqgan.parameter_shapes(stage) for name, stage in stages.items()}


def corrupt(ids: jax.Array, pkeep: float, vocab_size: int, key: jax.Array) -> jax.Array:
    """Each id stays with probability `pkeep`, or becomes any other (the original's pkeep). [B,T] -> [B,T]."""
    keep_key, key = jax.random.split(key)
    keep = jax.random.bernoulli(keep_key, pkeep, ids.shape)
    return jnp.where(keep, ids, jax.random.randint(key, ids.shape, 0, vocab_size))


def drop(c: jax.Array, share: float, null: int, key: jax.Array) -> jax.Array:
    """Each condition becomes `null` throughout with probability `share`, for guidance. [B,S] -> [B,S]."""
    return jnp.where(jax.random.bernoulli(key, share, (len(c), 1)), null, c)


def make(config: ConfigDict) -> states.Task:
    """Binds modules, optimizers and numbers once; everything returned is pure but `load_frozen`."""
    first = config.first_stage.config
    gpt, cond = make_model(config), conditioners.make(config)
    optimizers = {"gpt": optim.make_optimizer(config.optim, config.steps)}
    ema_decay = {"gpt": config.ema_decay}
    n = vqgan.side(first)
    order = permute.ORDERS[config.order](n, n)

    def init(key: jax.Array) -> states.TrainState:
        params = {"gpt": gpt.init(key, jnp.zeros((1, gpt.block_size), jnp.int32))["params"]}
        if config.cond.get("aligned"):  # not in runs that are older than the field
            named = layouts.places(config.cond.layout) * (n - 1) if config.cond.name == "objects" else None
            params["gpt"] = align(params["gpt"], places(config)[: gpt.block_size], gpt.num_heads, named)
        return states.create(optimizers, params, {}, ema_decay)

    def load_frozen() -> dict:
        stages = {"gen": config.first_stage, "cond": config.cond}
        return {
            name: checkpoint.load_net(Path(stages[name].workdir), stages[name].step, "gen", like)
            for name, like in frozen_shapes(config).items()
        }

    def tokens(state: states.TrainState, batch: dict, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """-> condition [B,S] and codes [B,T] in the order of writing, both int32."""
        c, codes = read(config, state.frozen, batch)
        grid = remap_grid(config, codes, key)
        return c, grid.reshape(len(grid), -1)[:, order]

    def predict(params: dict, c: jax.Array, ids: jax.Array, **kwargs) -> jax.Array:
        """Logits of every code, given the condition and the codes before it. [B,S], [B,T] -> [B,T,V]."""
        inputs = jnp.concatenate([c, ids[:, :-1]], 1)
        outside = {name: value for name, value in params.items() if name != "blocks"}
        params = {**sharding.gather(outside, "gpt"), "blocks": params["blocks"]}  # those are gathered layer by layer
        return gpt.apply({"params": params}, inputs, start=cond.length - 1, **kwargs)

    def phase(step: int) -> None:
        return None

    def train_step(state: states.TrainState, batch: dict, key: jax.Array, phase: None):
        """One update of the transformer on the cross-entropy of the codes."""

        def part(_, batch, key):
            dropout_key, remap_key, corrupt_key, drop_key = jax.random.split(key, 4)
            c, targets = tokens(state, batch, remap_key)
            c = drop(c, config.cond.drop, cond.vocab_size, drop_key) if config.cond.drop else c
            ids = corrupt(targets, config.pkeep, gpt.vocab_size, corrupt_key) if config.pkeep < 1 else targets

            def loss_fn(params):
                logits = predict(params, c, ids, train=True, rngs={"dropout": dropout_key})
                return losses.cross_entropy(logits, targets).mean()

            loss, grads = jax.value_and_grad(loss_fn)(state.params["gpt"])
            counts = metrics.CodeUse(metrics.count_codes(targets, num_codes(config)))
            return None, {"gpt": grads}, metrics.collection(dict(loss=loss), codes=counts), None

        _, grads, logged, _ = states.accumulate(part, None, batch, key, config.accumulate)
        return states.apply_updates(state, optimizers, grads, {}, ema_decay), logged

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
            rows = min(16, conditioners.num_classes(config))
            batch = {"label": jnp.arange(rows)}
            captions = tuple(config.data.class_names[:rows])
        else:
            rows, captions = min(16, len(batch["image"])), ()
        batch = jax.tree.map(lambda x: jnp.repeat(x[:rows], columns, 0), batch)
        c = cond.tokens(state.frozen, batch)
        keys = jax.random.split(key, rows * columns)
        params = decode_params(config, states.averaged(state, "gpt"))
        images = sample(config, params, state.frozen["gen"], c, keys)
        images = images.reshape(rows, columns, *images.shape[1:])
        if config.cond.name == "image":
            seen = vqgan.to_picture(config.cond.config, vqgan.to_input(config.cond.config, batch))
            images = jnp.concatenate([seen.reshape(rows, columns, *seen.shape[1:])[:, :1], images], 1)
        return {"samples": Sheet(images, captions)}

    size = tuple(n // code_size(config) for n in config.canvas)
    painter = make_painter(config, "cached", 1) if any(config.canvas) else None
    decode_canvas = jax.jit(lambda params, grid: decode_grid(config, params, grid))

    def paint(state: states.TrainState, key: jax.Array) -> dict[str, Animation]:
        """The first condition as a large image, painted by the sliding window."""
        batch = {"label": jnp.zeros(1, jnp.int32), "coord": coordinates(*config.canvas)[None]}
        c = fold_condition(config, cond.tokens(state.frozen, batch), size)
        params, codes, known = states.averaged(state, "gpt"), jnp.zeros((1, *size), jnp.int32), jnp.zeros(size, bool)
        parts = painter(decode_params(config, params), c, codes, known, key[None], *draw_options(config))
        *_, (grid, _) = parts
        image = to_uint8(decode_tiled(functools.partial(decode_canvas, state.frozen["gen"]), grid))[0]
        return {"painting": Animation(image, painting_order(config, size, "cached"), n)}

    paint = paint if any(config.canvas) else None
    return states.Task(init, load_frozen, phase, train_step, eval_step, pictures, paint)


def sample(
    config: ConfigDict,
    params: dict | tuple,
    first_stage: dict,
    c: jax.Array,
    keys: jax.Array,
) -> jax.Array:
    """Images of the given conditions, as large as in training. c [B,S] int32, keys [B] -> [B,H,W,3] in about [-1, 1].

    params: `decode_params`. Pure, to be jitted with a completed config bound. The codes are those of `make_painter`.
    """
    n = vqgan.side(config.first_stage.config)
    decode, init_cache = make_decode(config)
    painter = sampling.make_sequence_painter(decode, init_cache, permute.ORDERS[config.order](n, n))
    codes, known = jnp.zeros((len(c), n, n), jnp.int32), jnp.zeros((n, n), bool)
    ((grid, _),) = painter(params, c, codes, known, keys, *draw_options(config))
    return decode_grid(config, first_stage, grid)


def next_code(
    gpt: GPT, limit: int, params: dict, ids: jax.Array, position: jax.Array, cache: Cache, at: jax.Array | None = None
) -> tuple[jax.Array, Cache]:
    """`GPT.decode` over codes alone: the first `limit` ids, what else is in the vocabulary is cut off."""
    logits, cache = gpt.apply({"params": params}, ids, position, cache, at=at, method="decode")
    return logits[..., :limit], cache


def make_decode(config: ConfigDict) -> tuple[Callable, Callable]:
    """`decode` and `init_cache` for `sampling`, of a completed config, guided if its `sample.guidance` is not 1."""
    gpt, cond = make_model(config).clone(unrolled=True), conditioners.make(config)
    decode, init_cache = functools.partial(next_code, gpt, num_codes(config)), gpt.init_cache
    if config.sample.guidance == 1:
        return decode, init_cache
    return sampling.guide(decode, init_cache, cond.length, cond.vocab_size)


def decode_params(config: ConfigDict, gpt_params: dict) -> dict | tuple[dict, float]:
    """What `make_decode`'s function takes as its parameters: cast and whole along 'fsdp' once for all codes."""
    params = sharding.gather(unstack(gpt_params), "gpt")
    dtype = jnp.dtype(config.dtype)
    for name in params:
        if name == "head" or name.startswith("blocks_"):
            params[name] = jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, params[name])
    return params if config.sample.guidance == 1 else (params, config.sample.guidance)


def draw_options(config: ConfigDict) -> tuple[float, int, float]:
    """Temperature, top-k and top-p, as `sampling` takes them."""
    return config.sample.temperature, min(config.sample.top_k, num_codes(config)), config.sample.top_p


def make_painter(config: ConfigDict, method: str, stride: int) -> sampling.Painter:
    """The painter of a completed config, guided if `config.sample` says so; raises UserError for a stride too long."""
    n = vqgan.side(config.first_stage.config)
    decode, init_cache = make_decode(config)
    if config.order != "row_major":
        if (method, stride) != ("cached", 1):
            raise UserError(
                f"method={method}, stride={stride}: ways of a window that follows rows; this transformer's order is"
                f" {config.order!r}"
            )
        return sampling.make_sequence_painter(decode, init_cache, permute.ORDERS[config.order](n, n))
    try:
        return sampling.make_painter(decode, init_cache, n, method, stride)
    except ValueError as e:
        raise UserError(str(e)) from e


def painting_order(config: ConfigDict, size: tuple[int, int], method: str) -> np.ndarray:
    """At which step `make_painter`'s painter paints each code, [h,w] int."""
    n = vqgan.side(config.first_stage.config)
    if config.order == "row_major":
        return sampling.painting_order(*size, n, method)
    return np.argsort(permute.ORDERS[config.order](n, n)).reshape(n, n)


def places(config: ConfigDict) -> np.ndarray:
    """What each position is about, [condition and codes,3], for `gpt.align`; a code asks for the next one."""
    cond, n = conditioners.make(config), vqgan.side(config.first_stage.config)
    order = permute.ORDERS[config.order](n, n)
    if cond.grid is None:  # objects: their ids say where they are, positions do not
        seen = np.zeros((cond.length, 2))
    else:
        seen = np.indices(cond.grid).reshape(2, -1).T * (n / np.array(cond.grid))
    asked = np.stack(np.unravel_index(np.append(order[1:], order[-1]), (n, n)), 1)
    both = np.concatenate([seen, asked])
    return np.concatenate([both, (np.arange(len(both)) >= len(seen))[:, None]], 1)


def fold_condition(config: ConfigDict, c: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Ids [B,S] as a grid [B,h,w], where they lie on one and the codes' grid `size` is larger than in training."""
    grid, n = conditioners.make(config).grid, vqgan.side(config.first_stage.config)
    if grid is None or size == (n, n):
        return c
    return c.reshape(len(c), grid[0] * size[0] // n, grid[1] * size[1] // n)


def check_size(config: ConfigDict, name: str, size: tuple[int, int]) -> None:
    """Raises UserError for a picture (height, width) that the transformer cannot paint; `name` is the option's."""
    text, factor, least = "x".join(map(str, size)), code_size(config), config.data.size
    if len(size) != 2 or min(size) < least or any(n % factor for n in size):
        raise UserError(f"{name}={text}: multiples of {factor} from {least} on, the size of training")
    if size != (least, least) and config.order != "row_major":
        raise UserError(f"{name}={text}: a sliding window follows rows; this transformer's order is {config.order!r}")
    grid, n = conditioners.make(config).grid, vqgan.side(config.first_stage.config)
    if grid is not None and any(pixels // factor * grid[0] % n for pixels in size):
        raise UserError(f"{name}={text}: the condition has {grid[0]} ids where there are {n} codes, which must divide")


def encode_grid(config: ConfigDict, first_stage: dict, images: jax.Array, key: jax.Array) -> jax.Array:
    """What the first stage sees [B,H,W,C] -> the transformer's codes [B,h,w] int32; of any size."""
    return remap_grid(config, vqgan.encode(config.first_stage.config, first_stage, images), key)


def remap_grid(config: ConfigDict, ids: jax.Array, key: jax.Array) -> jax.Array:
    """The first stage's codes [B,h,w] -> the transformer's, which are fewer where `first_stage.used` names some."""
    if used := config.first_stage.used:
        unknown = config.first_stage.unknown
        ids = remap(ids, jnp.asarray(used, jnp.int32), int(unknown) if unknown.isdecimal() else unknown, key)
    return ids


def read(config: ConfigDict, frozen: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Condition [B,S] and the first stage's codes [B,h,w] of a batch, int32: of its pictures, or as it holds them."""
    if "codes" in batch:
        return batch["cond"], batch["codes"]
    first = config.first_stage.config
    codes = vqgan.encode(first, frozen["gen"], vqgan.to_input(first, batch))
    return conditioners.make(config).tokens(frozen, batch), codes


def decode_grid(config: ConfigDict, first_stage: dict, grid: jax.Array) -> jax.Array:
    """The transformer's codes [B,h,w] -> images [B,H,W,3] roughly in [-1, 1]."""
    first = config.first_stage.config
    if len(config.first_stage.used):
        grid = unmap(grid, jnp.asarray(config.first_stage.used, jnp.int32))
    decoded = vqgan.make_model(first).apply({"params": sharding.gather(first_stage)}, grid, method="decode_ids")
    return vqgan.to_picture(first, decoded)
