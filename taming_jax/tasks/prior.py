"""Stage two: the transformer over the first stage's codes, after a class token."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from taming_jax import checkpoint, losses, metrics, optim, sampling, sharding
from taming_jax import state as states
from taming_jax.errors import UserError
from taming_jax.images import Sheet, to_float
from taming_jax.models.gpt import GPT
from taming_jax.tasks import vqgan


def complete(config: ConfigDict, stored: ConfigDict | None) -> ConfigDict:
    """Takes the data and the codes from the first stage's run, so that nothing is configured twice.

    `config.data` overrides single fields of the first stage's. A resumed run keeps the checkpoint of the first stage
    that it began with: other weights would be another code.
    """
    config = config.copy_and_resolve_references()
    if stored is not None and config.first_stage.step is None:
        config.first_stage.step = stored.first_stage.step
    first, step = checkpoint.load_config(Path(config.first_stage.workdir), config.first_stage.step)
    if first.task != "vqgan":
        raise UserError(
            f"first_stage.workdir={config.first_stage.workdir} holds a {first.task!r} run;"
            " a first stage is a 'vqgan' run"
        )
    with config.unlocked():
        config.first_stage.update(step=step, config=first)
        config.data = ConfigDict({**first.data, **{k: v for k, v in config.data.items() if v is not None}})
    check_decoding(config.sample)
    if config.gpt.embed_dim % config.gpt.num_heads:
        raise UserError(f"gpt.embed_dim={config.gpt.embed_dim} is not divided by gpt.num_heads={config.gpt.num_heads}")
    if config.data.size != first.data.size:
        raise UserError(f"data.size={config.data.size}: the first stage was trained at {first.data.size}")
    return config


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


def make_model(config: ConfigDict) -> GPT:
    """The transformer of a completed config. Classes and codes share one vocabulary, as in the original."""
    first = config.first_stage.config
    side = first.data.size // 2 ** (len(first.model.ch_mult) - 1)
    return GPT(
        vocab_size=max(first.quantizer.codebook_size, num_classes(config)),
        block_size=side * side,  # the class and all codes but the last
        dtype=jnp.dtype(config.dtype),
        **config.gpt,
    )


def make(config: ConfigDict) -> states.Task:
    """Binds modules, optimizers and numbers once; everything returned is pure but `load_frozen`."""
    first = config.first_stage.config
    codebook_size = first.quantizer.codebook_size
    vq, gpt = vqgan.make_model(first), make_model(config)
    optimizers = {"gpt": optim.make_optimizer(config.optim, config.steps)}
    ema_decay = {"gpt": config.ema_decay}

    def init(key: jax.Array) -> states.TrainState:
        params = {"gpt": gpt.init(key, jnp.zeros((1, gpt.block_size), jnp.int32))["params"]}
        return states.create(optimizers, params, {}, ema_decay)

    def load_frozen() -> dict:
        size = first.data.size
        like = jax.eval_shape(vq.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
        return {"gen": checkpoint.load_net(Path(config.first_stage.workdir), config.first_stage.step, "gen", like)}

    def tokens(state: states.TrainState, batch: dict) -> tuple[jax.Array, jax.Array]:
        """-> inputs (class and all codes but the last) and targets (all codes), both [B,T] int32."""
        _, codes = vq.apply({"params": sharding.gather(state.frozen["gen"])}, to_float(batch["image"]), method="encode")
        ids = codes["ids"].reshape(len(batch["image"]), -1)
        return jnp.concatenate([batch["label"][:, None], ids[:, :-1]], 1), ids

    def phase(step: int) -> None:
        return None

    def train_step(state: states.TrainState, batch: dict, key: jax.Array, phase: None):
        """One update of the transformer on the cross-entropy of the codes."""
        inputs, targets = tokens(state, batch)

        def loss_fn(params):
            logits = gpt.apply({"params": params}, inputs, True, rngs={"dropout": key})
            return losses.cross_entropy(logits, targets).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.params["gpt"])
        new = states.apply_updates(state, optimizers, {"gpt": grads}, {}, ema_decay)
        return new, metrics.collection(
            dict(loss=loss), codes=metrics.CodeUse(metrics.count_codes(targets, codebook_size))
        )

    def eval_step(state: states.TrainState, batch: dict):
        inputs, targets = tokens(state, batch)
        logits = gpt.apply({"params": states.averaged(state, "gpt")}, inputs)
        return metrics.collection(
            dict(nll=losses.cross_entropy(logits, targets)),
            mask=batch["mask"],
            codes=metrics.CodeUse(metrics.count_codes(targets, codebook_size, batch["mask"])),
        )

    def pictures(state: states.TrainState, batch: dict, key: jax.Array) -> dict[str, Sheet]:
        """Four samples for each of the first sixteen classes."""
        rows, columns = min(16, num_classes(config)), 4
        labels = jnp.repeat(jnp.arange(rows), columns)
        images = sample(
            config,
            states.averaged(state, "gpt"),
            state.frozen["gen"],
            labels,
            jax.random.split(key, len(labels)),
            **config.sample,
        )
        captions = tuple(config.data.class_names[:rows])
        return {"samples": Sheet(images.reshape(rows, columns, *images.shape[1:]), captions)}

    return states.Task(init, load_frozen, phase, train_step, eval_step, pictures)


def sample(
    config: ConfigDict,
    gpt_params: dict,
    first_stage: dict,
    labels: jax.Array,
    keys: jax.Array,
    temperature: float,
    top_k: int,
    top_p: float,
) -> jax.Array:
    """Images of the given classes. labels [B] int32, keys [B] -> [B,H,W,3] roughly in [-1, 1].

    Pure, to be jitted with a completed config bound; temperature > 0, 1 <= top_k, 0 < top_p <= 1 may be traced.
    """
    first = config.first_stage.config
    codebook_size = first.quantizer.codebook_size
    vq, gpt = vqgan.make_model(first), make_model(config)

    def decode(ids, position, cache):
        logits, cache = gpt.apply({"params": gpt_params}, ids, position, cache, method="decode")
        return logits[:, :codebook_size], cache  # where there are more classes than codes, those are no codes

    top_k = jnp.minimum(top_k, codebook_size)
    cache = gpt.init_cache(len(labels))
    ids = sampling.sample_full(decode, cache, labels[:, None], gpt.block_size, keys, temperature, top_k, top_p)
    side = round(gpt.block_size**0.5)
    return vq.apply({"params": sharding.gather(first_stage)}, ids.reshape(-1, side, side), method="decode_ids")
