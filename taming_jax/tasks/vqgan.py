"""Stage one: the VQGAN. Generator and discriminator learn from one forward pass each step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from taming_jax import losses, metrics, optim, sharding
from taming_jax import state as states
from taming_jax.errors import UserError, not_among
from taming_jax.images import Sheet, to_float
from taming_jax.models.discriminator import NLayerDiscriminator
from taming_jax.models.perceptual import load_weights, lpips
from taming_jax.models.quantize import QUANTIZERS, restart_dead_codes
from taming_jax.models.vqgan import VQModel


def complete(config: ConfigDict, stored: ConfigDict | None) -> ConfigDict:
    """The config as it is trained and stored; raises UserError where its parts do not fit."""
    factor = 2 ** (len(config.model.ch_mult) - 1)
    if config.data.size % factor:
        raise UserError(
            f"data.size={config.data.size}: the encoder halves the image {len(config.model.ch_mult) - 1} times"
            f" (model.ch_mult={tuple(config.model.ch_mult)}), so take a multiple of {factor}"
        )
    if config.data.size < 16:
        raise UserError(f"data.size={config.data.size}: LPIPS halves the image four times, so take at least 16")
    if config.data.size >> config.disc.n_layers < 3:
        raise UserError(
            f"disc.n_layers={config.disc.n_layers} leaves no patch of {config.data.size} pixels to judge; take"
            f" at most {(config.data.size // 3).bit_length() - 1}"
        )
    if config.model.ch % 32:
        raise UserError(f"model.ch={config.model.ch}: GroupNorm has 32 groups, so take a multiple of 32")
    for name, value, allowed in (
        ("disc.loss", config.disc.loss, losses.DISCRIMINATOR_LOSSES),
        ("quantizer.name", config.quantizer.name, QUANTIZERS),
    ):
        if value not in allowed:
            raise not_among(name, value, allowed)
    return config


def make_model(config: ConfigDict) -> VQModel:
    """The generator of a stage-one config."""
    return VQModel(
        resolution=config.data.size, quantizer=config.quantizer.to_dict(), dtype=jnp.dtype(config.dtype), **config.model
    )


def make(config: ConfigDict) -> states.Task:
    """Binds modules, optimizers and numbers once; everything returned is pure."""
    dtype = jnp.dtype(config.dtype)
    codebook_size = config.quantizer.codebook_size
    model = make_model(config)
    disc = NLayerDiscriminator(config.disc.ndf, config.disc.n_layers, dtype)
    disc_loss = losses.DISCRIMINATOR_LOSSES[config.disc.loss]
    optimizers = {
        "gen": optim.make_optimizer(config.optim, config.steps),
        "disc": optim.make_optimizer(config.optim, config.steps - config.disc.start),
    }
    ema_decay = {"gen": config.ema_decay}

    def init(key: jax.Array) -> states.TrainState:
        gen_key, disc_key = jax.random.split(key)
        x = jnp.zeros((1, config.data.size, config.data.size, 3))
        d = disc.init(disc_key, x, True)
        params = {"gen": model.init(gen_key, x)["params"], "disc": d["params"]}
        extra = {"disc": {"batch_stats": d["batch_stats"]}, "gen": {"idle": jnp.zeros(codebook_size, jnp.int32)}}
        return states.create(optimizers, params, extra, ema_decay)

    def load_frozen() -> dict:
        return {"lpips": load_weights()}

    def judge(params, stats, images):
        logits, new = disc.apply({"params": params, "batch_stats": stats}, images, True, mutable=["batch_stats"])
        return logits, new["batch_stats"]

    def perceive(vgg, images, recon) -> tuple[jax.Array, jax.Array]:
        """LPIPS and its gradient at the reconstruction: ([], [B,H,W,3])."""
        return jax.value_and_grad(lambda r: lpips(vgg, images, r, dtype).mean())(recon)

    def compete(params, stats, images, recon) -> "Contest":
        """The discriminator on real and fake, once each, and what both nets learn from it."""
        real, pull_real, stats = jax.vjp(lambda p: judge(p, stats, images), params, has_aux=True)
        fake, pull_fake, stats = jax.vjp(lambda p, r: judge(p, stats, r), params, recon, has_aux=True)
        g_loss, d_logits = jax.value_and_grad(losses.generator_loss)(fake)
        d_loss, (d_real, d_fake) = jax.value_and_grad(disc_loss, (0, 1))(real, fake)
        grads = jax.tree.map(jnp.add, pull_real(d_real)[0], pull_fake(d_fake)[0])
        logged = dict(g_loss=g_loss, disc_loss=d_loss, logits_real=real.mean(), logits_fake=fake.mean())
        return Contest(g_loss, pull_fake(d_logits)[1], grads, stats, logged)

    def phase(step: int) -> Phase:
        return Phase(step >= config.loss.perceptual_start, step >= config.disc.start)

    def train_step(state: states.TrainState, batch: dict, key: jax.Array, phase: Phase):
        """One update of both nets. Departs from the original in two ways.

        The generator runs forward once, not twice, and LPIPS once: its loss is differentiated at the pixels, and the
        discriminator learns from the reconstructions made before the generator's update, not after it. Same gradients
        for the generator; the discriminator's differ by what one step changes.
        The discriminator's optimizer starts with it: its warm-up counts from there, and Adam corrects its first
        moments. The original feeds Adam zeros until then, and its first real steps are the larger for it.
        """
        images = to_float(batch["image"])
        gen, disc_params, vgg = sharding.gather((state.params["gen"], state.params["disc"], state.frozen["lpips"]))

        def features(params):
            hidden, codes = model.apply({"params": params}, images, method="features")
            return (hidden, codes["loss"]), (codes["ids"], codes["latents"])

        def head(params, hidden):
            return model.apply({"params": {"conv_out": params}}, hidden, method="head")

        (hidden, quant_loss), pull_trunk, (ids, latents) = jax.vjp(features, gen, has_aux=True)
        recon, pull_head = jax.vjp(head, gen["conv_out"], hidden)

        l1_loss, d_l1 = jax.value_and_grad(lambda r: jnp.abs(images - r).mean())(recon)
        d_recon = d_l1
        logged = {"l1_loss": l1_loss, "quant_loss": quant_loss}
        loss = l1_loss + config.loss.codebook_weight * quant_loss
        if phase.perceptual:
            p_loss, d_p = perceive(vgg, images, recon)
            d_recon = d_recon + config.loss.perceptual_weight * d_p
            loss += config.loss.perceptual_weight * p_loss
            logged["p_loss"] = p_loss

        disc_grads, extra = {}, {}
        if phase.adversarial:
            contest = compete(disc_params, state.extra["disc"]["batch_stats"], images, recon)
            ratio = losses.adaptive_weight(
                pull_head(d_recon)[0]["kernel"], pull_head(contest.d_adv)[0]["kernel"], config.disc.max_weight
            )
            disc_factor = ramp(state.step, config.disc.gen_start, config.disc.ramp_steps)
            d_weight = config.disc.weight * disc_factor * ratio
            d_recon = d_recon + d_weight * contest.d_adv
            loss += d_weight * contest.g_loss
            disc_grads, extra = {"disc": contest.grads}, {"disc": {"batch_stats": contest.stats}}
            logged |= {"disc_factor": disc_factor, "d_weight": d_weight, **contest.logged}

        g_head, d_hidden = pull_head(d_recon)
        (g_trunk,) = pull_trunk((d_hidden, jnp.asarray(config.loss.codebook_weight)))
        grads = {"gen": {**g_trunk, "conv_out": g_head}, **disc_grads}
        counts = metrics.count_codes(ids, codebook_size)
        new = states.apply_updates(state, optimizers, grads, extra, ema_decay)
        if config.restart_codes_after > 0:
            new = restart_codes(new, counts, latents, config.restart_codes_after, key)
        return new, metrics.collection({"loss": loss, **logged}, codes=metrics.CodeUse(counts))

    def eval_step(state: states.TrainState, batch: dict):
        images = to_float(batch["image"])
        gen, vgg = sharding.gather((states.averaged(state, "gen"), state.frozen["lpips"]))
        recon, codes = model.apply({"params": gen}, images)
        return metrics.collection(
            dict(
                psnr=losses.psnr(images, recon),
                lpips=lpips(vgg, images, jnp.clip(recon, -1, 1)),
                l1=jnp.abs(images - recon).mean((1, 2, 3)),
            ),
            mask=batch["mask"],
            codes=metrics.CodeUse(metrics.count_codes(codes["ids"], codebook_size, batch["mask"])),
        )

    def pictures(state: states.TrainState, batch: dict, key: jax.Array) -> dict[str, Sheet]:
        images = to_float(batch["image"])
        recon, _ = model.apply({"params": sharding.gather(states.averaged(state, "gen"))}, images)
        return {"reconstructions": over(images, recon, columns=min(8, len(images)))}

    return states.Task(init, load_frozen, phase, train_step, eval_step, pictures)


class Contest(NamedTuple):
    """What one look of the discriminator gives."""

    g_loss: jax.Array  # []
    d_adv: jax.Array  # its gradient at the reconstruction, [B,H,W,3]
    grads: dict  # of the discriminator's own loss
    stats: dict  # of its BatchNorm, after real and fake
    logged: dict


class Phase(NamedTuple):
    """Which losses have started, and so which program a step is."""

    perceptual: bool
    adversarial: bool


def restart_codes(
    state: states.TrainState, counts: jax.Array, latents: jax.Array, restart_after: int, key: jax.Array
) -> states.TrainState:
    """The state with its dead codes moved, in the codebook and in its average; see `quantize.restart_dead_codes`."""
    gen, extra = state.params["gen"], dict(state.extra["gen"])
    move, extra["idle"] = restart_dead_codes(extra["idle"], counts, latents, restart_after, key)

    def moved(params):
        return {**params, "quantize": {"embedding": move(params["quantize"]["embedding"])}}

    if "ema" in extra:
        extra["ema"] = moved(extra["ema"])
    return state.replace(params={**state.params, "gen": moved(gen)}, extra={**state.extra, "gen": extra})


def ramp(step: jax.Array, start: int, ramp_steps: int) -> jax.Array:
    """0 before `start`, then linearly to 1 over `ramp_steps`; 0 of them are the paper's hard switch. -> [] float32."""
    return jnp.clip((step - start + 1) / max(1, ramp_steps), 0, 1)


def over(images: jax.Array, recon: jax.Array, columns: int) -> Sheet:
    """Originals over reconstructions, in bands of `columns`. [B,H,W,C] x 2 -> a sheet."""
    n = len(images) // columns * columns
    bands = jnp.stack([x[:n].reshape(-1, columns, *x.shape[1:]) for x in (images, recon)], axis=1)
    return Sheet(bands.reshape(-1, columns, *images.shape[1:]))
