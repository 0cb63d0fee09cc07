"""Stage one: the VQGAN, and its variants without discriminator or LPIPS, or on segmentation maps.

Generator and discriminator learn from the same forward pass in each step.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from taming_jax import losses, metrics, optim, sharding
from taming_jax import state as states
from taming_jax.data.features import FEATURES
from taming_jax.errors import UserError
from taming_jax.first_stage import code_side, make_first_stage
from taming_jax.images import Sheet
from taming_jax.models.autoencoder import GROUPS
from taming_jax.models.discriminator import GROUPS as DISC_GROUPS
from taming_jax.models.discriminator import make_discriminator
from taming_jax.models.perceptual import load_weights, lpips
from taming_jax.models.quantize import QUANTIZERS, Learned, Quantizer, make_quantizer
from taming_jax.parts import without

COLUMNS = 8  # of the reconstructions that training draws, at most
FAR_WEIGHT, FAR_LOGITS, FEW_CODES = 1e3, 30, 2  # beyond these, a run is in trouble


def check(config: ConfigDict) -> None:
    """Raises UserError where the parts of a config do not fit."""
    factor = code_side(config.model)
    if config.data.size % factor:
        raise UserError(
            f"data.size={config.data.size}: the encoder halves the image {len(config.model.ch_mult) - 1} times"
            f" (model.ch_mult={tuple(config.model.ch_mult)}), in patches of {config.model.patch} pixels, so take a"
            f" multiple of {factor}"
        )
    if 0 < config.loss.perceptual_crop < 16:
        raise UserError(f"loss.perceptual_crop={config.loss.perceptual_crop}: LPIPS halves it four times: 16 at least")
    if config.input != "segmentation" and config.data.size < 16:
        raise UserError(f"data.size={config.data.size}: LPIPS halves the image four times, so take at least 16")
    if has_discriminator(config) and config.disc.network == "blurred":
        if config.disc.ndf % DISC_GROUPS:
            raise UserError(f"disc.ndf={config.disc.ndf}: disc.network='blurred' needs a multiple of {DISC_GROUPS}")
        if config.data.size >> config.disc.n_layers < 1:
            raise UserError(
                f"disc.n_layers={config.disc.n_layers} leaves nothing of {config.data.size} pixels to judge"
            )
        if config.disc.use_actnorm:
            raise UserError("disc.use_actnorm: disc.network='blurred' has norms of its own; set False")
    elif has_discriminator(config) and config.data.size >> config.disc.n_layers < 3:
        raise UserError(
            f"disc.n_layers={config.disc.n_layers} leaves no patch of {config.data.size} pixels to judge; take"
            f" at most {(config.data.size // 3).bit_length() - 1}"
        )
    if config.input == "low" and (config.data.downscale < 2 or config.data.size % config.data.downscale):
        raise UserError(f"data.downscale={config.data.downscale}: for input='low', a divisor of {config.data.size}")
    if config.model.ch % GROUPS and config.model.network != "local":
        raise UserError(f"model.ch={config.model.ch}: GroupNorm has {GROUPS} groups, so take a multiple of {GROUPS}")
    if config.model.network == "local" and config.model.attn_resolutions:
        raise UserError("model.network='local': it has no attention: model.attn_resolutions=()")
    if config.model.network == "maskgit":
        if config.model.attn_resolutions or config.input == "segmentation":
            raise UserError("model.network='maskgit': it is for images and has no attention: model.attn_resolutions=()")
        codes = make_quantizer(config.quantizer).embed_dim
        if config.model.z_channels != codes:
            raise UserError(f"model.z_channels={config.model.z_channels}: network 'maskgit' reads codes of {codes}")
    channels = FEATURES[config.input].channels or config.model.out_ch
    if config.model.out_ch != channels:
        raise UserError(f"model.out_ch={config.model.out_ch}: input={config.input!r} has {channels} channels")
    segments = config.input == "segmentation"
    if segments != (config.loss.pixel == "bce"):
        raise UserError(
            f"loss.pixel={config.loss.pixel!r} does not go with input={config.input!r}: 'bce' is for segmentation maps"
        )
    if segments and (uses_lpips(config) or has_discriminator(config)):
        raise UserError(
            "segmentation maps have neither LPIPS nor a discriminator: loss.perceptual_weight=0 disc.weight=0"
        )
    kind = QUANTIZERS[config.quantizer.name]
    if config.restart_codes_after > 0 and not kind.restarts:
        raise UserError(f"quantizer {config.quantizer.name!r} restarts no codes: restart_codes_after=0")
    make_quantizer(config.quantizer).check()


def uses_lpips(config: ConfigDict) -> bool:
    """Whether LPIPS is part of the loss."""
    return config.loss.perceptual_weight > 0


def has_discriminator(config: ConfigDict) -> bool:
    """Whether there is a discriminator."""
    return config.disc.weight > 0


def make_task(config: ConfigDict) -> states.Task:
    """Binds modules, optimizers and numbers once."""
    dtype = jnp.dtype(config.dtype)
    stage, quantizer = make_first_stage(config), make_quantizer(config.quantizer)
    model, codebook_size = stage.model, stage.codebook_size
    disc = make_discriminator(config.disc, dtype)
    disc_loss, pixel_loss = losses.DISCRIMINATOR_LOSSES[config.disc.loss], losses.PIXEL_LOSSES[config.loss.pixel]
    optimizers = {"gen": optim.make_optimizer(config.optim, config.steps)}
    if has_discriminator(config):
        optimizers["disc"] = optim.make_optimizer(config.optim, config.steps - config.disc.start)
    ema_decay = {"gen": config.ema_decay}

    def init(key: jax.Array, begin: dict | None = None, frozen: dict | None = None) -> states.TrainState:
        begin = begin or {}
        gen_key, disc_key = jax.random.split(key)
        x = jnp.zeros((1, config.data.size, config.data.size, config.model.out_ch))
        gen = {**model.init(gen_key, x)["params"], **begin.get("gen", {})}
        params, extra = {"gen": gen}, {"gen": quantizer.init_stats(gen.get("quantize", {}))}
        if has_discriminator(config):
            d = {**disc.init(disc_key, x, True), **begin.get("disc", {})}
            params["disc"], extra["disc"] = d["params"], {"batch_stats": d.get("batch_stats", {})}
            if config.disc.lecam_weight:
                extra["disc"]["logits"] = {"real": jnp.zeros(()), "fake": jnp.zeros(())}
        return states.create(optimizers, params, extra, ema_decay, config.freeze)

    def load_frozen() -> dict:
        return {} if config.input == "segmentation" else {"lpips": load_weights()}

    def discriminate(params, stats, images):
        logits, new = disc.apply({"params": params, **stats}, images, True, mutable=["batch_stats"])
        return logits, {**stats, **new}

    def perceptual_loss(vgg, images, recon, key) -> tuple[jax.Array, jax.Array]:
        """LPIPS and its gradient at the reconstruction: ([], [B,H,W,3])."""
        cut = cut_at_random(config.loss.perceptual_crop, images.shape, key)
        return jax.value_and_grad(lambda r: lpips(vgg, cut(images), cut(r), dtype).mean())(recon)

    def adversarial_losses(params, stats, images, recon) -> "AdversarialLosses":
        """The discriminator on real and fake, once each, and what both nets learn from it."""
        stats = dict(stats)
        means = stats.pop("logits", None)
        real, pull_real, stats = jax.vjp(lambda p: discriminate(p, stats, images), params, has_aux=True)
        fake, pull_fake, stats = jax.vjp(lambda p, r: discriminate(p, stats, r), params, recon, has_aux=True)
        g_loss, d_logits = jax.value_and_grad(losses.generator_loss)(fake)

        def judge(real, fake):
            lecam = losses.lecam_loss(real, fake, means) if means else 0.0
            return disc_loss(real, fake) + config.disc.lecam_weight * lecam

        d_loss, (d_real, d_fake) = jax.value_and_grad(judge, (0, 1))(real, fake)
        if means:
            now = {"real": real.mean(), "fake": fake.mean()}
            stats["logits"] = optax.incremental_update(now, means, 1 - config.disc.lecam_decay)
        grads = jax.tree.map(jnp.add, pull_real(d_real)[0], pull_fake(d_fake)[0])
        logged = dict(g_loss=g_loss, disc_loss=d_loss, logits_real=real.mean(), logits_fake=fake.mean())
        return AdversarialLosses(g_loss, pull_fake(d_logits)[1], grads, stats, logged)

    def phase(step: int) -> Phase:
        return Phase(
            uses_lpips(config) and step >= config.loss.perceptual_start,
            has_discriminator(config) and step >= config.disc.start,
        )

    def train_step(state: states.TrainState, batch: dict, key: jax.Array, phase: Phase):
        """One update of both nets. It departs from the original in two ways.

        The generator and LPIPS run forward once, not twice: the generator's loss is differentiated at the pixels, and
        the discriminator learns from the reconstructions made before the generator's update, not after it. The
        generator's gradients are the same; the discriminator's differ by what one step changes.
        The discriminator's optimizer starts with the discriminator: its warm-up counts from there, and so does Adam's
        correction of the first moments. The original feeds Adam zeros until then, which makes its first steps larger.
        """
        nets = sharding.gather({**state.params, **state.frozen})
        stats = state.extra["disc"] if phase.adversarial else {}

        def part(stats, batch, key):
            return learn(nets, stats, stage.to_input(batch), state.step, key, phase)

        stats, grads, logged, codes = states.accumulate(part, stats, batch, key, config.accumulate)
        extra = {"disc": stats} if phase.adversarial else {}
        finite = states.is_finite(logged.by_name["loss"].total, grads, extra, codes)
        new = states.apply_updates(state, optimizers, grads, extra, ema_decay, finite)
        if "codebook" not in config.freeze:
            new = states.choose(finite, update_codes(new, quantizer, codes, config.restart_codes_after, key), new)
        return new, metrics.where_finite(finite, logged)

    def learn(nets, stats, images, step, key, phase):
        """What a batch teaches: (BatchNorm's statistics, gradients, metrics, codes)."""
        gen, noise_key = nets["gen"], jax.random.fold_in(key, 1)

        def features(learned):
            params = {**gen, **learned}
            hidden, codes = model.apply(
                {"params": params}, images, step, True, method="features", rngs={"gumbel": noise_key}
            )
            return (hidden, codes["loss"]), codes

        def head(params, hidden):
            return model.apply({"params": {"conv_out": params}}, hidden, method="head")

        (hidden, quant_loss), pull_trunk, codes = jax.vjp(features, without("gen", gen, config.freeze), has_aux=True)
        recon, pull_head = jax.vjp(head, gen["conv_out"], hidden)

        rec_loss, d_recon = jax.value_and_grad(pixel_loss, 1)(images, recon)
        logged = {f"{config.loss.pixel}_loss": rec_loss, "quant_loss": quant_loss}
        d_recon = config.loss.pixel_weight * d_recon
        loss = config.loss.pixel_weight * rec_loss + config.loss.codebook_weight * quant_loss
        if phase.perceptual:
            p_loss, d_p = perceptual_loss(nets["lpips"], images, recon, jax.random.fold_in(key, 2))
            d_recon = d_recon + config.loss.perceptual_weight * d_p
            loss += config.loss.perceptual_weight * p_loss
            logged["p_loss"] = p_loss

        disc_grads = {}
        if phase.adversarial:
            adversarial = adversarial_losses(nets["disc"], stats, images, recon)
            ratio = jnp.ones(())
            if config.disc.adaptive:
                ratio = losses.adaptive_weight(
                    pull_head(d_recon)[0]["kernel"],
                    pull_head(adversarial.d_adv)[0]["kernel"],
                    config.disc.delta,
                    config.disc.max_weight,
                )
            disc_factor = ramp(step, config.disc.gen_start, config.disc.ramp_steps)
            d_weight = config.disc.weight * ratio
            d_recon = d_recon + disc_factor * d_weight * adversarial.d_adv
            loss += disc_factor * d_weight * adversarial.g_loss
            disc_grads, stats = {"disc": adversarial.grads}, adversarial.stats
            logged |= {"disc_factor": disc_factor, "d_weight": d_weight, **adversarial.logged}

        g_head, d_hidden = pull_head(d_recon)
        (g_gen,) = pull_trunk((d_hidden, jnp.asarray(config.loss.codebook_weight)))
        if "conv_out" in g_gen:
            g_gen["conv_out"] = g_head
        grads = sharding.scatter({"gen": g_gen, **disc_grads})
        counts = metrics.CodeUse(metrics.count_codes(codes["ids"], codebook_size))
        return stats, grads, metrics.collection({"loss": loss, **logged}, codes=counts), codes

    def eval_step(state: states.TrainState, batch: dict):
        images = stage.to_input(batch)
        gen, frozen = sharding.gather((states.averaged(state, "gen"), state.frozen))
        recon, codes = model.apply({"params": gen}, images)
        if config.input == "segmentation":
            right = jnp.argmax(recon, -1) == batch["segmentation"]
            bce = jax.vmap(losses.bce_loss)(images, recon)
            numbers = dict(bce=bce, pixel_accuracy=right.mean((1, 2)))
        else:
            numbers = dict(psnr=losses.psnr(images, recon), l1=jax.vmap(losses.l1_loss)(images, recon))
            numbers["ssim"] = losses.ssim(images, recon)
            numbers["lpips"] = lpips(frozen["lpips"], images, jnp.clip(recon, -1, 1))
        return metrics.collection(
            numbers,
            mask=batch["mask"],
            codes=metrics.CodeUse(metrics.count_codes(codes["ids"], codebook_size, batch["mask"])),
        )

    @jax.jit
    def reconstruct(state: states.TrainState, batch: dict) -> tuple[jax.Array, jax.Array, jax.Array]:
        """-> images, reconstructions and mask, on every device."""
        images = stage.to_input(batch)
        recon, _ = model.apply({"params": sharding.gather(states.averaged(state, "gen"))}, images)
        return sharding.replicate((stage.to_picture(images), stage.to_picture(recon), batch["mask"]))

    def pictures(state: states.TrainState, batch: dict) -> dict[str, Sheet]:
        images, recon, mask = jax.device_get(reconstruct(state, batch))
        return {"reconstructions": over(images[mask > 0], recon[mask > 0], COLUMNS)}

    return states.Task(
        init,
        load_frozen,
        phase,
        train_step,
        eval_step,
        pictures,
        alarms=lambda numbers: find_alarms(numbers, config),
        learns_convolutions=True,
        annotator=None,
    )


class AdversarialLosses(NamedTuple):
    """The results of one run of the discriminator."""

    g_loss: jax.Array  # []
    d_adv: jax.Array  # its gradient at the reconstruction, [B,H,W,3]
    grads: dict  # of the discriminator's own loss
    stats: dict  # of its BatchNorm, after real and fake; and its logits' running means
    logged: dict


class Phase(NamedTuple):
    """Which losses have started; they determine the program of a step."""

    perceptual: bool
    adversarial: bool


def find_alarms(numbers: dict[str, float], config: ConfigDict) -> dict[str, str]:
    """What runs away, by what it is, with a line that says what helps. numbers: means over some steps, by name.

    Bounds are far from what healthy runs show: hinge losses ask for logits of 1, and λ is near 1.
    """
    found = {}
    if numbers.get("d_weight", 0) > FAR_WEIGHT * config.disc.weight:
        found["λ"] = (
            f"λ is {numbers['d_weight']:.3g}: the generator hardly moves the discriminator any more; a smaller"
            " disc.max_weight bounds it"
        )
    logits = max(abs(numbers.get(name, 0)) for name in ("logits_real", "logits_fake"))
    if logits > FAR_LOGITS:
        found["logits"] = (
            f"the discriminator's logits are {logits:.3g} on average: it wins; a lower learning rate, a longer"
            " disc.ramp_steps or a smaller disc.ndf may help"
        )
    if numbers.get("code_perplexity", FEW_CODES) < FEW_CODES:
        found["codes"] = (
            f"codes collapse: their perplexity is {numbers['code_perplexity']:.3g}; restart_codes_after, or a smaller"
            " codebook or learning rate, may help"
        )
    return found


def update_codes(
    state: states.TrainState, quantizer: Quantizer, codes: dict[str, jax.Array], restart_after: int, key: jax.Array
) -> states.TrainState:
    """Applies what the quantizer learns without gradients to its parameters and to their average."""
    gen, extra = state.params["gen"], state.extra["gen"]
    average, stats = extra.get("ema"), {name: value for name, value in extra.items() if name != "ema"}

    def own(net: dict) -> dict:  # a quantizer without parameters is not in the net
        return net.get("quantize", {})

    def put(net: dict, params: dict) -> dict:
        return {**net, "quantize": params} if params else net

    learned = Learned(own(gen), own(average) if average else None, stats)
    learned = quantizer.after_step(learned, codes, restart_after, key, sharding.gather)
    extra = {**learned.stats, **({"ema": put(average, learned.average)} if average else {})}
    gen = put(gen, learned.params)
    return state.replace(params={**state.params, "gen": gen}, extra={**state.extra, "gen": extra})


def cut_at_random(side: int, shape: tuple[int, ...], key: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Cuts the same square out of batches [B,H,W,C], side x side pixels at a place of chance.

    A side of 0, or one that is too large, is all of it.
    """
    if not 0 < side < min(shape[1:3]):
        return lambda x: x
    top, left = (
        jax.random.randint(k, (), 0, n - side + 1) for k, n in zip(jax.random.split(key), shape[1:3], strict=True)
    )
    return lambda x: jax.lax.dynamic_slice(x, (0, top, left, 0), (len(x), side, side, x.shape[-1]))


def ramp(step: jax.Array, start: int, ramp_steps: int) -> jax.Array:
    """0 before `start`, then rises linearly to 1 over `ramp_steps`, 0 for the paper's hard switch. -> [] float32."""
    start = min(start, 2**31 - 1)  # a start beyond all steps means never
    return jnp.clip((step - start + 1) / max(1, ramp_steps), 0, 1)


def over(images: np.ndarray, recon: np.ndarray, columns: int) -> Sheet:
    """Originals over reconstructions, in bands of at most `columns`, of which the last may end in white.

    [B,H,W,3] float in [-1, 1] x 2 -> a sheet.
    """
    columns = max(1, min(columns, len(images)))
    fill = [(0, -len(images) % columns), *[(0, 0)] * 3]
    pairs = [np.pad(x, fill, constant_values=1).reshape(-1, columns, *x.shape[1:]) for x in (images, recon)]
    return Sheet(np.stack(pairs, 1).reshape(-1, columns, *images.shape[1:]))
