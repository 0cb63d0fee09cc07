"""Stage two: the transformer over the first stage's codes, after a condition."""

import functools
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from taming_jax import checkpoint, losses, metrics, optim, sharding
from taming_jax import state as states
from taming_jax.conditions import find_condition
from taming_jax.errors import UserError
from taming_jax.images import Sheet
from taming_jax.models.rar import draw_orders, random_share
from taming_jax.models.vectors import VectorGuesses
from taming_jax.painting import Painting, Plan, make_sheet
from taming_jax.parts import without
from taming_jax.sampling.animation import Animation
from taming_jax.sampling.draw import make_sampling
from taming_jax.sampling.masked import draw_hidden
from taming_jax.second_stage import SecondStage, make_second_stage

ROWS, COLUMNS = 16, 4  # of the samples that training draws, at most


def check(config: ConfigDict) -> None:
    """Raises UserError where the parts of a config do not fit, whatever its first stages and its data are."""
    kind = find_condition(config.cond.name)
    make_sampling(config.sample, config.cond.drop)
    unknown, used = config.first_stage.unknown, len(config.first_stage.used)
    if used and unknown not in ("random", "extra", *map(str, range(used))):
        raise UserError(
            f"first_stage.unknown={unknown!r}: 'random', 'extra', or a position among the {used} used codes"
        )
    if config.gpt.embed_dim % config.gpt.num_heads:
        raise UserError(f"gpt.embed_dim={config.gpt.embed_dim} is not divided by gpt.num_heads={config.gpt.num_heads}")
    check_architecture(config)
    if config.cond.aligned and config.gpt.embed_dim % 4:
        raise UserError(f"gpt.embed_dim={config.gpt.embed_dim}: cond.aligned needs a multiple of 4")
    if config.gpt.context.kind == "wavefront":
        if config.order != "row_major":
            raise UserError(f"order={config.order!r}: a wavefront transformer has its own order; set 'row_major'")
        if config.cond.aligned:
            raise UserError("cond.aligned: a wavefront transformer's conditions lie with the codes anyway; set False")
        if config.gpt.embed_dim // config.gpt.num_heads % 4:
            raise UserError(
                f"gpt.embed_dim={config.gpt.embed_dim}: a wavefront transformer's heads need a multiple of 4 each"
            )
    else:
        usual = {"gpt.context.places": False, "vector_init": 0}
        check_usual(config, usual, f"gpt.context.kind={config.gpt.context.kind!r}")
    if config.gpt.context.kind == "masked":
        check_masked(config)
    if config.cond.drop and not kind.DROPS:
        raise UserError(f"cond.drop={config.cond.drop:g}: it must be 0 where there is no condition")
    if any(config.canvas) and kind.NEEDS_DATA:
        raise UserError(f"canvas: a transformer conditioned on {config.cond.name!r} has none in training")


def check_masked(config: ConfigDict) -> None:
    """Raises UserError where fields do not go with masked decoding."""
    usual = {"order": "row_major", "pkeep": 1, "noise_until": 0, "gpt.n_unmasked": 0}
    usual |= {"cond.aligned": False, "vector_weight": 0}
    check_usual(config, usual, "gpt.context.kind='masked'")
    if any(config.canvas):
        raise UserError("canvas: a masked transformer paints images as large as in training; set (0, 0)")


def check_usual(config: ConfigDict, usual: dict[str, object], chosen: str) -> None:
    """Raises UserError where a field, by its full name, has another value than goes with what is chosen."""
    for field, value in usual.items():
        found = functools.reduce(lambda group, part: group[part], field.split("."), config)
        if found != value:
            raise UserError(f"{field}={found}: with {chosen} it must be {value}")


def check_architecture(config: ConfigDict) -> None:
    """Raises UserError where fields do not go with `gpt.architecture`."""
    gpt, name = config.gpt, config.gpt.architecture
    own = {"gpt": (), "llamagen": ("mlp_dim", "num_kv_heads"), "rar": ("mlp_dim",), "modern": ("mlp_dim",)}[name]
    for field in ("mlp_dim", "num_kv_heads"):
        if field not in own and gpt[field] is not None:
            raise UserError(f"gpt.{field}={gpt[field]}: architecture {name!r} does not have it; set it to None")
    if any(gpt.random_order) and name != "rar":
        raise UserError(f"gpt.random_order={tuple(gpt.random_order)}: only architecture 'rar' has it; set it to (0, 0)")
    if name == "modern" and gpt.context.kind != "wavefront":
        raise UserError(
            f"gpt.context.kind={gpt.context.kind!r}: layers of gpt.architecture='modern' are a wavefront transformer's"
        )
    if name in ("gpt", "modern"):
        return
    usual = {"gpt.n_unmasked": 0, "gpt.context.kind": "window", "order": "row_major", "cond.aligned": False}
    usual |= {"gpt.vocab_size": None, "gpt.block_size": None, "vector_weight": 0}
    check_usual(config, usual, f"gpt.architecture={name!r}")
    if name == "llamagen" and gpt.embed_dim // gpt.num_heads % 4:
        raise UserError(f"gpt.embed_dim={gpt.embed_dim}: the heads of 'llamagen' need a multiple of 4 each")
    if gpt.num_kv_heads is not None and gpt.num_heads % gpt.num_kv_heads:
        raise UserError(f"gpt.num_kv_heads={gpt.num_kv_heads} does not divide gpt.num_heads={gpt.num_heads}")


def corrupt(ids: jax.Array, pkeep: float | jax.Array, vocab_size: int, key: jax.Array) -> jax.Array:
    """Each id stays with probability `pkeep`, or else becomes a random one (the original's pkeep). [B,T] -> [B,T].

    pkeep: of all sequences, or of each, [B,1].
    """
    keep_key, key = jax.random.split(key)
    keep = jax.random.bernoulli(keep_key, pkeep, ids.shape)
    return jnp.where(keep, ids, jax.random.randint(key, ids.shape, 0, vocab_size))


def draw_noise(key: jax.Array, step: jax.Array, until: int, batch_size: int) -> jax.Array:
    """The share of each sequence's codes that become random ones, [B,1] in [0, 1): reAR's noise (arXiv 2510.04450).

    Drawn evenly from 0 to a bound that falls linearly from 1 to 0 at step `until`. So a code learns to follow codes
    that are wrong in part, as those that sampling writes are, and at the end to trust them.
    """
    return jnp.clip(1 - step / until, 0, 1) * jax.random.uniform(key, (batch_size, 1))


def drop(c: jax.Array, share: float, null: int, key: jax.Array) -> jax.Array:
    """Each condition becomes `null` throughout with probability `share`, for guidance. [B,S] -> [B,S]."""
    return jnp.where(jax.random.bernoulli(key, share, (len(c), 1)), null, c)


def make_guesses(stage: SecondStage) -> VectorGuesses:
    """The guesses of vectors that go with a stage's transformer and codebook."""
    ids = jax.ShapeDtypeStruct((1, stage.first.side**2), jnp.int32)
    vectors = jax.eval_shape(stage.first.vectors, stage.frozen_shapes()["gen"], ids)
    reads, _ = jax.eval_shape(stage.codes_read, ids)
    return VectorGuesses(vectors.shape[-1], reads.shape[-1], stage.gpt.dtype)


def make_task(config: ConfigDict) -> states.Task:
    """Binds modules, optimizers and numbers once."""
    stage = make_second_stage(config)
    gpt, cond, context = stage.gpt, stage.cond, config.gpt.context
    masked_nll = jax.vmap(functools.partial(losses.masked_cross_entropy, label_smoothing=0.0, unmasked_weight=0.0))
    optimizers = {"gpt": optim.make_optimizer(config.optim, config.steps)}
    ema_decay = {"gpt": config.ema_decay}
    guesses = make_guesses(stage) if config.vector_weight else None
    if guesses:
        optimizers["guesses"] = optim.make_optimizer(config.optim, config.steps)

    def init(key: jax.Array, begin: dict | None = None, frozen: dict | None = None) -> states.TrainState:
        net = stage.init(key)
        if config.vector_init and frozen:
            net = stage.begin_from_vectors(net, frozen, config.vector_init, jax.random.fold_in(key, 2))
        params = {"gpt": {**net, **(begin or {}).get("gpt", {})}}
        if guesses:
            outputs = jnp.zeros((gpt.num_layers, 1, 1, gpt.embed_dim))
            params["guesses"] = guesses.init(jax.random.fold_in(key, 1), outputs)["params"]
        return states.create(optimizers, params, {}, ema_decay, config.freeze)

    def read(state: states.TrainState, batch: dict, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """-> condition [B,S] and codes [B,T] in the order of writing, both int32."""
        c, codes = stage.read(state.frozen, batch)
        return c, stage.to_sequence(codes, key)

    def vector_loss(frozen: dict, params: dict, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """How far guesses are from the right codes' vectors, read and written, also where others were seen. -> []."""
        reads, known = stage.codes_read(targets)
        read, written = guesses.apply({"params": sharding.gather(params, "guesses")}, outputs)
        vectors = functools.partial(stage.first.vectors, frozen["gen"])
        return losses.cosine_distance(read, vectors(reads), known) + losses.cosine_distance(written, vectors(targets))

    def phase(step: int) -> None:
        return None

    def train_step(state: states.TrainState, batch: dict, key: jax.Array, phase: None):
        """One update of the transformer on the cross-entropy of the codes."""

        def part(_, batch, key):
            dropout_key, remap_key, corrupt_key, drop_key = jax.random.split(key, 4)
            c, targets = read(state, batch, remap_key)
            c = drop(c, stage.drop, stage.null, drop_key) if stage.drop else c
            shown = {}  # in which order, or which of them, where that is not all row by row
            if any(config.gpt.random_order):
                share = random_share(state.step, *config.gpt.random_order)
                shown["orders"] = draw_orders(jax.random.fold_in(key, 4), share, targets.shape)
                targets = jnp.take_along_axis(targets, shown["orders"], 1)
            ids = targets
            if config.noise_until:
                noise = draw_noise(jax.random.fold_in(key, 5), state.step, config.noise_until, len(targets))
                ids = corrupt(targets, config.pkeep * (1 - noise), stage.first.num_ids, corrupt_key)
            elif config.pkeep < 1:
                # As in the original, from all ids that its tables have, those of conditions among them.
                ids = corrupt(targets, config.pkeep, gpt.vocab_size, corrupt_key)

            if stage.masks:
                shown["hidden"] = draw_hidden(jax.random.fold_in(key, 6), targets.shape)

            def loss_fn(learned):
                params = {**state.params["gpt"], **learned["gpt"]}
                told = dict(train=True, rngs={"dropout": dropout_key}, **shown)
                if guesses:
                    logits, outputs = stage.logits_and_outputs(params, c, ids, **told)
                else:
                    logits = stage.logits(params, c, ids, **told)
                if stage.masks:
                    loss = losses.masked_cross_entropy(
                        logits, targets, shown["hidden"], context.label_smoothing, context.unmasked_weight
                    )
                else:
                    loss = losses.cross_entropy(logits, targets).mean()
                if not guesses:
                    return loss, dict(loss=loss)
                far = vector_loss(state.frozen, learned["guesses"], outputs, targets)
                return loss + config.vector_weight * far, dict(loss=loss, vector_loss=far)

            learned = {name: without(name, state.params[name], config.freeze) for name in optimizers}
            grads, numbers = jax.grad(loss_fn, has_aux=True)(learned)
            counts = metrics.CodeUse(metrics.count_codes(targets, stage.first.num_ids))
            return None, grads, metrics.collection(numbers, codes=counts), None

        _, grads, logged, _ = states.accumulate(part, None, batch, key, config.accumulate)
        finite = states.is_finite(logged.by_name["loss"].total, grads)
        new = states.apply_updates(state, optimizers, grads, {}, ema_decay, finite)
        return new, metrics.where_finite(finite, logged)

    def hide(ids: jax.Array) -> jax.Array:
        """Which codes of an image are hidden in evaluations, [T] -> bool [T]: the same ones in any batch."""
        key = jax.random.fold_in(jax.random.key(1), jnp.sum(ids * jnp.arange(1, 2 * len(ids), 2)))
        return draw_hidden(key, (1, len(ids)))[0]

    def eval_step(state: states.TrainState, batch: dict):
        c, targets = read(state, batch, jax.random.key(0))
        params = states.averaged(state, "gpt")
        if stage.masks:  # what it finds likely is not to be had in one pass: of codes hidden as in training
            hidden = jax.vmap(hide)(targets)
            numbers = dict(masked_nll=masked_nll(stage.logits(params, c, targets, hidden), targets, hidden))
        else:
            nll = losses.cross_entropy(stage.logits(params, c, targets), targets)
            numbers = dict(nll=nll, bits_per_pixel=nll / (math.log(2) * stage.first.patch**2))
        return metrics.collection(
            numbers,
            mask=batch["mask"],
            codes=metrics.CodeUse(metrics.count_codes(targets, stage.first.num_ids, batch["mask"])),
        )

    return states.Task(
        init,
        lambda: load_first_stages(config, stage),
        phase,
        train_step,
        eval_step,
        make_pictures(config, stage),
        alarms=lambda numbers: {},
        learns_convolutions=False,
        annotator=cond.annotator,
    )


def load_first_stages(config: ConfigDict, stage: SecondStage) -> dict:
    """The parameters of the first stages of a complete config, from their runs.

    Raises UserError where they are not those that the transformer was trained on.
    """
    runs, nets = {"gen": config.first_stage, "cond": config.cond}, {}
    for name, like in stage.frozen_shapes().items():
        run = runs[name]
        nets[name] = checkpoint.load_net(Path(run.workdir), run.step, "gen", like)
        if run.get("digest") and checkpoint.digest(nets[name]) != run.digest:
            raise UserError(
                f"{run.workdir}, step {run.step}, has other weights than the first stage that the transformer was"
                f" trained on ({run.digest})"
            )
    return nets


def make_pictures(config: ConfigDict, stage: SecondStage) -> Callable[..., dict[str, Sheet | Animation]]:
    """The task's `pictures`: samples as the command `sample` paints them with the same seed, and a canvas, if any."""
    painting, cond, size = Painting(stage), stage.cond, (config.data.size, config.data.size)
    sampling = make_sampling(config.sample, stage.drop)

    @jax.jit
    def repeat(batch: dict) -> tuple[dict, dict]:
        """The first rows, on every device; and COLUMNS times each, numbered."""
        first = {name: value[:ROWS] for name, value in batch.items()}
        first["label"] = first["label"] if cond.FINITE else jnp.arange(len(first["label"]))
        many = jax.tree.map(lambda x: jnp.repeat(x, COLUMNS, 0), first)
        index = jnp.tile(jnp.arange(COLUMNS), len(first["label"]))
        return sharding.replicate(first), many | {"index": index}

    def pictures(state: states.TrainState, batch: dict) -> dict[str, Sheet | Animation]:
        """Four samples for each of the first conditions, sixteen at most."""
        nets = {"gpt": painting.prepare(states.averaged(state, "gpt")), **state.frozen}
        first, many = repeat(cond.rows(size) if cond.FINITE else batch)
        painted = painting.paint(nets, many, Plan(size, sampling, config.seed))
        painted, rows = painted.reshape(-1, COLUMNS, *painted.shape[1:]), jax.device_get(first)
        real = rows["mask"] > 0 if "mask" in rows else slice(None)  # others fill up the batch
        painted, rows = painted[real], {name: value[real] for name, value in rows.items()}
        shown = {"samples": make_sheet(cond, rows, painted, originals=rows["image"] if cond.NEEDS_DATA else None)}
        if any(config.canvas):
            plan = Plan(tuple(config.canvas), sampling, config.seed)
            one = {name: value[:1] for name, value in cond.rows(plan.size).items()}
            (image,) = painting.paint(nets, one | {"index": np.zeros(1, np.int32)}, plan)
            when = stage.painting_order(plan.grid(stage.first.patch))
            shown["painting"] = Animation(image, when, stage.frame(when.shape))
        return shown

    return pictures
