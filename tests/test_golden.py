"""The numbers of the original PyTorch implementation, on small models. `tests/golden/` was made by running it.

`pytest -n 0 -s tests/test_golden.py` ends with the largest deviation found in each file. What deviates on purpose is
said in the test that meets it. Not compared, since nothing here does it: the random colours of `to_rgb`, decoding of
coordinates, ActNorm's inverse; and of `step`, what follows the first update of the discriminator.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs import common
from taming_jax import convert, losses, optim, permute, sampling, sharding
from taming_jax.models import perceptual, quantize
from taming_jax.models.discriminator import ActNorm, NLayerDiscriminator
from taming_jax.models.gpt import GPT, stack, unstack
from taming_jax.models.vqgan import VQModel
from taming_jax.state import TrainState
from taming_jax.tasks import conditioners, prior, vqgan
from tests.tiny import sample_plainly

DEVIATIONS: dict[str, float] = {}


class Golden:
    """One file: arrays by their key, images as [B,H,W,C]."""

    def __init__(self, name: str):
        self.name = name
        self.arrays = np.load(Path(__file__).parent / "golden" / f"dev_{name}.npz")
        self.config = json.loads(str(self.arrays["config"]))
        self.weights = {k.removeprefix("w/"): self.arrays[k] for k in self.arrays.files if k.startswith("w/")}

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def nhwc(self, key: str) -> np.ndarray:
        return np.moveaxis(self.arrays[key], -3, -1)

    def close(self, ours, key: str, tolerance: float = 1e-5, images: bool = False, scale: float = 1.0) -> None:
        """Within `tolerance` of the largest golden value, and of each; `scale` times the golden value is meant."""
        golden = (self.nhwc(key) if images else self.arrays[key]) * scale
        self.near(ours, golden, key, tolerance)

    def near(self, ours, golden: np.ndarray, key: str, tolerance: float = 1e-5) -> None:
        ours, largest = np.asarray(ours), max(np.abs(golden).max(), 1e-6)
        assert ours.shape == golden.shape, f"{self.name} {key}: {ours.shape}, not {golden.shape}"
        deviation = float(np.abs(ours - golden).max() / largest)
        kind = "gradients" if key.startswith("grad") else "values"
        DEVIATIONS[f"{self.name} {kind}"] = max(deviation, DEVIATIONS.get(f"{self.name} {kind}", 0.0))
        np.testing.assert_allclose(ours, golden, rtol=tolerance, atol=tolerance * largest, err_msg=f"{self.name} {key}")

    def equal(self, ours, key: str) -> None:
        np.testing.assert_array_equal(ours, self.arrays[key], err_msg=f"{self.name} {key}")


@pytest.fixture(scope="module", autouse=True)
def deviations():
    with jax.set_mesh(sharding.make_mesh(ConfigDict(dict(data=1, fsdp=1, tensor=1)), jax.devices()[:1])):
        yield
    for name, deviation in sorted(DEVIATIONS.items()):
        print(f"{name:32} {deviation:.1e}")


def statistics(tensors: dict[str, np.ndarray], order: list[str]) -> np.ndarray:
    """Norm, and dot product with cos(0), cos(1), ..., of each tensor: [n,2]."""
    flat = [np.ravel(tensors[name]).astype(np.float64) for name in order]
    return np.array([[np.linalg.norm(x), x @ np.cos(np.arange(len(x)))] for x in flat])


def check_statistics(golden: Golden, key: str, grads: dict[str, np.ndarray], order: list[str]) -> None:
    """Of all gradients; those of weights that cannot matter (a bias before a norm of its channel) are noise."""
    ours, theirs = statistics(grads, order), golden[key]
    matters = theirs[:, 0] > 1e-5 * theirs[:, 0].max()
    assert matters.mean() > 0.7
    for name, a, b in zip(np.array(order)[matters], ours[matters], theirs[matters], strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * b[0], err_msg=f"{golden.name} {key} {name}")


def vq_of(config: dict, weights: dict, codebook_size: int, legacy: bool = True) -> tuple[VQModel, dict]:
    dd = config["ddconfig"]
    sizes = {name: dd[name] for name in ("ch", "num_res_blocks", "resolution", "z_channels", "out_ch")}
    quantizer = dict(name="vq", codebook_size=codebook_size, embed_dim=config["embed_dim"])
    quantizer |= dict(commitment_weight=0.25, legacy=legacy)
    model = VQModel(
        ch_mult=tuple(dd["ch_mult"]), attn_resolutions=tuple(dd["attn_resolutions"]), quantizer=quantizer, **sizes
    )
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    tensors = dict(weights)
    params = convert.from_torch(tensors, like, convert.GENERATOR, "")
    return model, params


# The VQGAN.


def test_vqgan():
    g = Golden("vqmodel")
    model, params = vq_of(g.config, g.weights, g.config["n_embed"])
    assert set(convert.to_torch(params, convert.GENERATOR, "")) == set(g.weights)  # every tensor has its place

    @jax.jit
    def run(params, x):
        bound = model.bind({"params": params})
        enc = bound.encoder(x)
        h = bound.quant_conv(enc)
        z_q, codes = bound.quantize(h)
        return dict(enc=enc, h=h, quant=z_q, post_quant=bound.post_quant_conv(z_q), rec=bound.decode(z_q)), codes

    out, codes = run(params, g.nhwc("in/x"))
    g.equal(codes["ids"], "out/indices")
    for name, value in out.items():
        g.close(value, f"out/{name}", images=True)
    g.close(codes["loss"], "out/qloss_legacy_true")
    recon, _ = jax.jit(model.apply)({"params": params}, g.nhwc("in/x"))
    g.close(recon, "out/rec", images=True)
    out, codes = run(params, g.nhwc("in/x_rect"))
    g.equal(codes["ids"], "out/rect_indices")
    g.close(out["h"], "out/rect_h", images=True)
    g.close(out["rec"], "out/rect_rec", images=True)
    decoded = jax.jit(lambda p, ids: model.apply({"params": p}, ids, method="decode_ids"))(params, g["in/code"])
    g.close(decoded, "out/decode_code", images=True)
    g.close(params["quantize"]["embedding"][g["in/code"]], "out/codebook_entry", images=True)


@pytest.mark.parametrize("legacy", [True, False])
def test_codebook_loss(legacy):
    g = Golden("vqmodel")
    h, book = jnp.asarray(g.nhwc("out/h")), jnp.asarray(g.weights["quantize.embedding.weight"])
    vq = quantize.VectorQuantizer(*book.shape, commitment_weight=0.25, legacy=legacy)

    def loss(h, book, cotangent=0.0):
        z_q, codes = vq.apply({"params": {"embedding": book}}, h)
        return jnp.sum(cotangent * z_q) + codes["loss"]

    name = f"legacy_{str(legacy).lower()}"
    g.close(loss(h, book), f"out/qloss_{name}")
    to_h, to_book = jax.grad(loss, (0, 1))(h, book)
    g.close(to_h, f"grad/h_qloss_{name}", 1e-4, images=True)
    g.close(to_book, f"grad/codebook_qloss_{name}", 1e-4)
    if legacy:
        to_h, to_book = jax.grad(loss, (0, 1))(h, book, g.nhwc("in/cotangent"))
        g.close(to_h, "grad/h_straight_through", 1e-4, images=True)
        g.close(to_book, "grad/codebook_straight_through", 1e-4)


@pytest.mark.parametrize("case", ["eval", "train_hard_t1", "train_hard_tau", "train_soft_tau"])
def test_gumbel_quantizer(case, monkeypatch):
    """With the file's noise. The original draws in evaluation too (case eval, hard); ours takes the likeliest."""
    g = Golden("gumbel")
    fields, weight = g.config["cases"][case], g.config["kl_weight"]
    constant = lambda x: dict(init_value=x, peak_value=x, warmup_steps=0, decay_steps=1, end_value=x)  # noqa: E731
    params = {
        "proj": {"kernel": g.weights["proj.weight"][:, :, 0, 0].T, "bias": g.weights["proj.bias"]},
        "embedding": g.weights["embed.weight"],
    }
    vq = quantize.GumbelQuantizer(
        *params["embedding"].shape,
        straight_through=fields["straight_through"],
        temperature=constant(fields["tau"]),
        kl_weight=constant(weight),
    )
    noise = g.nhwc("in/gumbel_noise")
    monkeypatch.setattr(jax.random, "gumbel", lambda key, shape: jnp.asarray(noise).reshape(shape))

    def loss(params, z):
        z_q, codes = vq.apply({"params": params}, z, 0, True, rngs={"gumbel": jax.random.key(0)})
        return jnp.sum(g.nhwc("in/cotangent") * z_q) + codes["loss"], (z_q, codes)

    grad = jax.grad(loss, (0, 1), has_aux=True)
    (to_params, to_z), (z_q, codes) = grad(jax.tree.map(jnp.asarray, params), jnp.asarray(g.nhwc("in/z")))
    g.equal(codes["ids"], f"out/{case}/indices")
    g.close(z_q, f"out/{case}/z_q", images=True)
    g.close(codes["loss"], f"out/{case}/kl")
    g.close(to_z, f"grad/{case}/z", 1e-4, images=True)
    g.close(to_params["embedding"], f"grad/{case}/embed", 1e-4)
    g.close(to_params["proj"]["kernel"].T[:, :, None, None], f"grad/{case}/proj_weight", 1e-4)
    quiet, codes = vq.apply({"params": params}, g.nhwc("in/z"))
    g.close(codes["latents"], "out/logits", images=True)
    g.equal(codes["ids"], "out/argmax_logits")
    np.testing.assert_allclose(quiet, params["embedding"][codes["ids"]])
    g.close(vq.apply({"params": params}, g["in/code"], method="lookup"), "out/codebook_entry", images=True)


def test_gumbel_schedule():
    g = Golden("gumbel")
    s = g.config["scheduler"]
    schedule = optax.warmup_cosine_decay_schedule(
        s["lr_start"], s["lr_max"], s["warm_up_steps"], s["max_decay_steps"], s["lr_min"]
    )
    g.close([schedule(n) for n in g["in/schedule_n"]], "out/schedule")


@pytest.mark.parametrize("case", ["fresh", "warm"])
def test_ema_quantizer(case):
    """Two updates from the file's own start; ours starts cluster sizes at 1, not 0, and so never from case fresh."""
    g = Golden("ema")
    c = g.config
    vq = quantize.EMAVectorQuantizer(c["n_embed"], c["dim"], commitment_weight=c["beta"], decay=c["decay"])
    book, size, mean = (jnp.asarray(g[f"before/{case}/embedding.{k}"]) for k in ("weight", "cluster_size", "embed_avg"))
    stats = {"cluster_size": size, "embed_avg": mean}
    for step in (0, 1):
        z, name = jnp.asarray(g.nhwc("in/z")[step]), f"{case}/step{step}"
        apply = lambda z, book=book: vq.apply({"params": {"embedding": book}}, z)  # noqa: E731
        z_q, codes = apply(z)
        g.equal(codes["ids"], f"out/{name}/indices")
        g.close(z_q, f"out/{name}/z_q", images=True)
        g.close(codes["loss"], f"out/{name}/loss")
        g.close(jax.grad(lambda z, apply=apply: apply(z)[1]["loss"])(z), f"grad/{name}/z", 1e-4, images=True)
        p = jnp.zeros(len(book)).at[codes["ids"].ravel()].add(1 / codes["ids"].size)
        g.close(jnp.exp(-jnp.sum(p * jnp.log(p + 1e-10))), f"out/{name}/perplexity")
        book, stats = vq.update(book, stats, codes)
        g.close(stats["cluster_size"], f"out/{name}/embedding.cluster_size")
        g.close(stats["embed_avg"], f"out/{name}/embedding.embed_avg")
        g.close(book, f"out/{name}/embedding.weight")
    z_q, codes = vq.apply({"params": {"embedding": book}}, g.nhwc("in/z")[0])
    g.equal(codes["ids"], f"out/{case}/eval/indices")
    g.close(codes["loss"], f"out/{case}/eval/loss")


@pytest.mark.parametrize(("case", "unknown"), [("remap_extra", "extra"), ("remap_2", 2)])
def test_remapping(case, unknown):
    g = Golden("misc")
    z, book, used = (
        jnp.asarray(g.nhwc("in/remap_z")),
        jnp.asarray(g["in/remap_codebook"]),
        jnp.asarray(g["in/remap_used"]),
    )
    ids = quantize.nearest_codes(z, book)
    mapped = quantize.remap(ids, used, unknown)
    # The file's 'extra' indices went through the original's look-up, which writes 0 over them in place.
    g.equal(np.where(mapped == len(used), 0, mapped), f"out/{case}/indices")
    assert (unknown != "extra") or (mapped == len(used)).any()
    g.close(losses.codebook_loss(z, book[ids], 0.25, True), f"out/{case}/loss")
    g.close(book[quantize.unmap(mapped, used)], f"out/{case}/entry", images=True)
    drawn = quantize.remap(ids, used, "random", jax.random.key(0))
    known = np.isin(ids, used)
    assert 0 < known.mean() < 1
    np.testing.assert_array_equal(np.asarray(drawn)[known], np.asarray(mapped)[known])
    assert (drawn < len(used)).all() and len(np.unique(np.asarray(drawn)[~known])) > 2


# The discriminator and the losses.


@pytest.mark.parametrize("norm", ["batchnorm", "actnorm"])
@pytest.mark.parametrize("number", [0, 1])
def test_discriminator(number, norm):
    """Two training passes, then evaluation. Ours keeps ActNorm's first batch beside its parameters: equal in sum."""
    g = Golden(f"disc{number}_{norm}")
    c = g.config
    disc = NLayerDiscriminator(c["ndf"], c["n_layers"], c["use_actnorm"])
    x, y = (jnp.asarray(g.nhwc(f"in/{k}")) for k in "xy")
    like = jax.eval_shape(lambda k, x: disc.init(k, x, True), jax.random.key(0), x)
    tensors = dict(g.weights)
    params, stats = convert.discriminator_from_torch(tensors, like, c["n_layers"], "")
    assert all("num_batches" in name for name in tensors)

    @jax.jit
    def train(params, stats, x):
        logits, new = disc.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
        return logits, new["batch_stats"]

    def check_after(stats, key):
        ours = convert.discriminator_to_torch(params, jax.device_get(stats), c["n_layers"], "")
        for name in (k.removeprefix(f"out/{key}/") for k in g.arrays.files if k.startswith(f"out/{key}/")):
            if "num_batches" not in name:
                g.close(ours[name].astype(np.float32), f"out/{key}/{name}")

    logits, after = train(params, stats, x)
    g.close(logits, "out/logits_train", images=True)
    check_after(after, "after1")
    to_params, to_x = jax.jit(jax.grad(lambda p, x: -train(p, stats, x)[0].mean(), (0, 1)))(params, x)
    g.close(to_x, "grad/x_of_minus_mean", 1e-4, images=True)
    g.close(to_params["conv_0"]["kernel"].transpose(3, 2, 0, 1), "grad/main.0.weight", 1e-4)
    logits, after = train(params, after, y)
    g.close(logits, "out/logits_train_2nd", images=True)
    check_after(after, "after2")
    g.close(disc.apply({"params": params, "batch_stats": after}, y, False), "out/logits_eval", images=True)


def test_actnorm_starts_from_its_first_batch():
    g = Golden("misc")
    norm, x = ActNorm(jnp.float32), jnp.asarray(g.nhwc("in/actnorm_x"))
    variables = norm.init(jax.random.key(0), x, True)
    y, new = norm.apply(variables, x, True, mutable=["batch_stats"])
    g.close(y, "out/actnorm_y", images=True)
    g.close(new["batch_stats"]["loc"].reshape(1, -1, 1, 1), "out/actnorm_loc")
    g.close(new["batch_stats"]["scale"].reshape(1, -1, 1, 1), "out/actnorm_scale")
    again, _ = norm.apply({**variables, **new}, 3 * x + 1, True, mutable=["batch_stats"])
    assert abs(again.mean()) > 0.1  # later batches do not start it again


def test_lpips_with_the_real_weights():
    g, weights = Golden("lpips_real"), perceptual.load_weights()

    @jax.jit
    def run(weights, a, b):
        taps = perceptual.vgg16(weights["vgg"], a, jnp.float32)
        distance, pull = jax.vjp(lambda b: perceptual.lpips(weights, a, b), b)
        return distance, [jnp.linalg.norm(tap) for tap in taps], pull(jnp.ones_like(distance))[0]

    for pair in ("pair0", "pair1", "pair2"):
        a, b = (jnp.asarray(g.nhwc(f"in/{pair}/{k}")) for k in "ab")
        distance, norms, grad = run(weights, a, b)
        g.close(distance, f"out/{pair}/lpips")
        g.close(norms, f"out/{pair}/feat_norms")
        check_statistics(g, f"gradstat/{pair}/b", {"b": np.moveaxis(np.asarray(grad), -1, 1)}, ["b"])


@pytest.fixture(scope="module")
def training():
    """The whole small VQGAN with discriminator and a narrow VGG, and our config for it."""
    g = Golden("train_weights")
    prefix = "loss.discriminator."
    _, gen = vq_of(g.config, g.weights, g.config["n_embed"])
    disc = NLayerDiscriminator(16, 2, False)
    like = jax.eval_shape(lambda k: disc.init(k, jnp.zeros((1, 32, 32, 3)), True), jax.random.key(0))
    params, stats = convert.discriminator_from_torch(dict(g.weights), like, 2, prefix)
    config = convert.vq_config(
        {
            "target": "taming.models.vqgan.VQModel",
            "params": g.config,
        }
    )
    vgg = convert.lpips_from_torch(g.weights, "loss.perceptual_loss.")
    return config, {"gen": gen, "disc": params}, stats, vgg


def start(config, training, step: int) -> tuple:
    """Our task, and its state at a step with the file's weights."""
    _, params, stats, vgg = training
    task = vqgan.make(config)
    state = jax.jit(task.init)(jax.random.key(0))
    opt = {name: optimizer for name, optimizer in state.opt.items()}
    extra = {"gen": state.extra["gen"], "disc": {"batch_stats": stats}}
    state = TrainState(jnp.int32(step), params, opt, extra, {"lpips": vgg})
    return task, jax.tree.map(jnp.asarray, state)


CASES = ("hinge_before", "hinge_after", "vanilla_after", "noperc_after", "perc2_after")


@pytest.mark.parametrize("case", CASES)
def test_losses_and_their_gradients(case, training, monkeypatch):
    """One step of ours gives both: the discriminator learns from the reconstructions that the generator was judged by.

    Before `disc_start` the original multiplies the discriminator's loss and its part of the generator's by 0. The same
    here by switches: it is judged from step 0, felt from step 2, and its gradient compared where the original has one.
    `disc_factor` is ours only as a part of `disc.weight`; it scales the discriminator's loss in the original.
    """
    g = Golden("loss")
    config, fields = ConfigDict(training[0].to_dict()), g.config["cases"][case]
    factor = fields.get("disc_factor", 1.0)
    config.loss.perceptual_weight = fields.get("perceptual_weight", 1.0)
    config.disc.update(loss=fields["disc_loss"], weight=0.8, start=0, gen_start=2, ramp_steps=0)
    if factor != 1:
        config.disc.weight = 0.8 * factor
    monkeypatch.setattr(optim, "make_optimizer", lambda *_: optax.trace(decay=0.0))
    task, state = start(config, training, fields["step"])
    step = jax.jit(task.train_step, static_argnums=3)
    after, logged = step(
        state,
        {"image": jnp.asarray(g.nhwc("in/x"))},
        jax.random.key(0),
        vqgan.Phase(config.loss.perceptual_weight > 0, True),
    )
    logged = jax.device_get(logged.compute())
    felt = 1.0 if fields["step"] >= 2 else 0.0

    for ours, theirs in (("loss", "total_loss"), ("quant_loss", "quant_loss"), ("g_loss", "g_loss")):
        g.close(logged[ours], f"out/{case}/g/log_{theirs}")
    p_loss = logged.get("p_loss", 0.0)
    if config.loss.perceptual_weight:
        g.close(p_loss, f"out/{case}/g/log_p_loss")
    rec_loss = logged["l1_loss"] + config.loss.perceptual_weight * p_loss  # the original counts LPIPS in
    g.close(rec_loss, f"out/{case}/g/log_rec_loss")
    g.close(rec_loss, f"out/{case}/g/log_nll_loss")
    g.close(logged["d_weight"], f"out/{case}/g/log_d_weight", 1e-4, scale=factor)
    g.close(logged["disc_factor"] * factor, f"out/{case}/g/log_disc_factor")
    g.close(logged["logits_real"], f"out/{case}/d/log_logits_real")
    g.close(logged["logits_fake"], f"out/{case}/d/log_logits_fake")
    g.close(logged["disc_loss"] * factor * felt, f"out/{case}/d/log_disc_loss")
    for name, leaves in after.extra["disc"]["batch_stats"].items():
        for leaf in ("mean", "var"):
            place = f"{convert.torch_name(f'{name}/', convert.discriminator_rules(2))}running_{leaf}"
            g.close(leaves[leaf], f"out/{case}/d/bn_after.{place}")

    grads = jax.device_get({name: state.trace for name, state in after.opt.items()})
    gen = convert.to_torch(grads["gen"], convert.GENERATOR, "")
    for key in (k for k in g.arrays.files if k.startswith(f"grad/{case}/g/")):
        g.close(gen[key.removeprefix(f"grad/{case}/g/")], key, 1e-4)
    check_statistics(g, f"gradstat/{case}/g", gen, g.config["ae_param_order"])
    if felt:
        prefix = "loss.discriminator."
        disc = convert.to_torch(grads["disc"], convert.discriminator_rules(2), prefix)
        disc = {name: factor * value for name, value in disc.items()}
        for key in (k for k in g.arrays.files if k.startswith(f"grad/{case}/d/")):
            g.close(disc[key.removeprefix(f"grad/{case}/d/")], key, 1e-4)
        check_statistics(g, f"gradstat/{case}/d", disc, g.config["disc_param_order"])


def test_parts_in_evaluation(training):
    """The reconstruction and each loss on it, without an update; the discriminator with its running statistics."""
    config, params, stats, vgg = training
    g, model, disc = Golden("loss"), vqgan.make_model(config), NLayerDiscriminator(16, 2, False)

    @jax.jit
    def run(params, stats, vgg, x):
        recon, codes = model.apply({"params": params["gen"]}, x)
        real, fake = (disc.apply({"params": params["disc"], "batch_stats": stats}, y, False) for y in (x, recon))
        return recon, codes, perceptual.lpips(vgg, x, recon), real, fake

    x = jnp.asarray(g.nhwc("in/x"))
    recon, codes, distance, real, fake = run(params, stats, vgg, x)
    g.equal(codes["ids"].reshape(len(x), -1), "out/indices")
    g.close(recon, "out/rec", images=True)
    g.close(distance, "out/lpips")
    l1 = losses.l1_loss(x, recon)
    g.close(l1, "out/l1")
    for name in ("qloss", "val/log_quant_loss"):
        g.close(codes["loss"], f"out/{name}")
    for name in ("rec_loss", "nll_loss"):
        g.close(l1 + distance.mean(), f"out/val/log_{name}")
    for name in ("aeloss", "total_loss"):  # lambda is 0 in the original's evaluation
        g.close(l1 + distance.mean() + codes["loss"], f"out/val/log_{name}")
    g.close(distance.mean(), "out/val/log_p_loss")
    g.close(losses.generator_loss(fake), "out/val/log_g_loss")
    g.close(losses.hinge_loss(real, fake) * g["out/val/log_disc_factor"], "out/val/log_disc_loss")
    g.close(real.mean(), "out/val/log_logits_real")
    g.close(fake.mean(), "out/val/log_logits_fake")


def test_five_steps_as_far_as_they_are_the_same(training):
    """The generator's logs and moves up to the first step that feels the discriminator, which is step 2.

    From there on ours differs by design: one forward for both nets, so that the discriminator learns from the
    reconstructions before the generator's update, with an optimizer that starts with it. So the original's third
    discriminator step is compared in its parts: our loss on the reconstructions after our generator's third update.
    """
    g = Golden("step")
    config = ConfigDict(training[0].to_dict())
    config.disc.update(start=2, gen_start=2)
    config.optim.update(learning_rate=g.config["lr"], b1=0.5, b2=0.9)
    task, state = start(config, training, 0)
    step = jax.jit(task.train_step, static_argnums=3)
    begin = convert.to_torch(jax.device_get(state.params["gen"]), convert.GENERATOR, "")
    model = vqgan.make_model(config)
    recon = jax.jit(lambda p, x: model.apply({"params": p}, x))
    for i in range(3):
        x = jnp.asarray(np.moveaxis(g["in/x"][i], 1, -1))
        _, codes = recon(state.params["gen"], x)
        np.testing.assert_array_equal(codes["ids"].reshape(len(x), -1), g["out/indices"][i])
        state, logged = step(state, {"image": x}, jax.random.key(0), task.phase(i))
        logged = jax.device_get(logged.compute())
        for ours, theirs in (("loss", "total_loss"), ("quant_loss", "quant_loss"), ("p_loss", "p_loss")):
            g.near(logged[ours], g[f"out/log/g/{theirs}"][i], f"out/log/g/{theirs}", 2e-5)
        now = convert.to_torch(jax.device_get(state.params["gen"]), convert.GENERATOR, "")
        for key in (k for k in g.arrays.files if k.startswith("out/delta/") and "discriminator" not in k):
            name = key.removeprefix("out/delta/")
            np.testing.assert_allclose(now[name] - begin[name], g[key][i], atol=0.05 * g.config["lr"], err_msg=name)
    for ours, theirs in (("g_loss", "g_loss"), ("d_weight", "d_weight")):
        g.near(logged[ours], g[f"out/log/g/{theirs}"][2], f"out/log/g/{theirs}", 1e-4)
    disc = NLayerDiscriminator(16, 2, False)
    variables = {"params": training[1]["disc"], "batch_stats": training[2]}
    judge = jax.jit(lambda x: disc.apply(variables, x, True, mutable=["batch_stats"])[0])
    real, fake = judge(x), judge(recon(state.params["gen"], x)[0])
    g.near(losses.hinge_loss(real, fake), g["out/log/d/disc_loss"][2], "out/log/d/disc_loss", 2e-5)
    g.near(real.mean(), g["out/log/d/logits_real"][2], "out/log/d/logits_real", 2e-5)
    g.near(fake.mean(), g["out/log/d/logits_fake"][2], "out/log/d/logits_fake", 2e-5)


def test_segmentation_loss():
    g = Golden("misc")
    target, pred = g.nhwc("in/seg_target"), jnp.asarray(g.nhwc("in/seg_pred"))
    loss, grad = jax.value_and_grad(losses.bce_loss, 1)(target, pred)
    g.close(loss, "out/seg_log_bce_loss")
    g.close(loss + g["in/seg_qloss"], "out/seg_loss")
    g.close(grad, "grad/seg_pred", 1e-4, images=True)


# The transformer.


def gpt_of(g: Golden, n_unmasked: int = 0) -> tuple[GPT, dict]:
    c = g.config
    drops = dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    fields = dict(n_unmasked=n_unmasked, unrolled=True, **drops)
    model = GPT(c["vocab"], c["block"], c["n_layer"], c["n_head"], c["n_embd"], **fields)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    tensors = dict(g.weights)
    params = convert.from_torch(tensors, like, convert.TRANSFORMER, "")
    assert not tensors
    return model, jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_transformer(remat):
    """As it is trained: scanned over its layers."""
    g = Golden("gpt")
    model, params = gpt_of(g)
    model, params = model.clone(unrolled=False, remat=remat), stack(params)
    idx, embeddings = g["in/idx"], g["in/embeddings"]
    apply = jax.jit(lambda p, ids, e=None: model.apply({"params": p}, ids, embeddings=e))
    g.close(apply(params, idx), "out/logits")
    g.close(apply(params, idx[:, :7]), "out/logits_short")
    g.close(apply(params, idx[:, : -embeddings.shape[1]], embeddings), "out/logits_emb")

    def loss(params):
        return losses.cross_entropy(model.apply({"params": params}, idx), g["in/targets"]).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    g.close(value, "out/loss")
    grads = convert.to_torch(unstack(jax.device_get(grads)), convert.TRANSFORMER, "")
    for name in ("pos_emb", "head.weight"):
        g.close(grads[name], f"grad/{name}", 1e-4)
    check_statistics(g, "gradstat", grads, g.config["param_order"])

    free = model.clone(n_unmasked=g.config["n_unmasked"])
    g.close(jax.jit(free.apply)({"params": params}, idx), "out/logits_unmasked")


@pytest.mark.parametrize("case", ["cond1", "emb", "unmasked"])
def test_cached_transformer(case):
    g = Golden("gpt")
    n = g.config["n_unmasked"] if case == "unmasked" else 0
    model, params = gpt_of(g, n)
    idx = g["in/idx"]
    embeddings = g["in/embeddings"] if case == "emb" else None
    prefix = 0 if embeddings is None else embeddings.shape[1]
    idx = idx[:, : idx.shape[1] - prefix]
    decode = jax.jit(lambda ids, t, cache, e=None: model.apply({"params": params}, ids, t, cache, e, method="decode"))
    first = n or 1
    logits, cache = decode(idx[:, :first], 0, model.init_cache(len(idx)), embeddings)
    parts = [logits]
    for t in range(first, idx.shape[1]):
        logits, cache = decode(idx[:, t : t + 1], prefix + t, cache)
        parts.append(logits)
    g.close(np.concatenate(parts, 1), f"out/cached_{case}")


def decoder(model: GPT, params: dict):
    return lambda ids, t, cache: model.apply({"params": params}, ids, t, cache, method="decode")


def greedy(model: GPT, params: dict, prefix: np.ndarray, length: int) -> np.ndarray:
    """The likeliest id each time."""
    keys = jax.random.split(jax.random.key(0), len(prefix))
    return np.asarray(sample_plainly(decoder(model, params), model.init_cache(len(prefix)), prefix, length, keys, 1))


def test_greedy_decoding():
    g = Golden("gpt")
    model, params = gpt_of(g)
    idx, steps, n = g["in/idx"], g.config["steps"], g.config["n_unmasked"]
    ids = greedy(model, params, idx[:, :1], steps)
    g.equal(ids, "out/greedy")
    g.equal(np.concatenate([idx[:, :1], ids], 1), "out/greedy_naive")
    g.equal(greedy(gpt_of(g, n)[0], params, idx[:, :n], steps), "out/greedy_unmasked")


def condition(name: str, size: int = 0, class_names: tuple[str, ...] = (), **fields) -> conditioners.Conditioner:
    config = ConfigDict(dict(cond=common.get_cond(name), data=dict(size=size, class_names=class_names)))
    config.cond.update(fields)
    return conditioners.make(config)


@pytest.mark.parametrize("case", ["class", "sos", "image", "class_spiral", "class_pkeep"])
def test_conditional_transformer(case):
    g = Golden("net2net")
    model, params = gpt_of(g)
    batch = {"label": jnp.asarray(g["in/class"]), "grid": jnp.asarray(g["in/cond_grid"])}
    if case == "sos":
        cond = condition("none", sos=g.config["sos"])
    elif case == "image":
        _, h, w = batch["grid"].shape
        cond = conditioners.Conditioner(h * w, 0, (h, w), lambda _, batch: batch["grid"].reshape(-1, h * w))
    else:
        cond = condition("class", class_names=("",) * g.config["n_classes"])
    c = cond.tokens({}, batch)
    g.equal(c, f"out/{case}/c_indices")
    name = "spiral_out" if case == "class_spiral" else "row_major"
    target = g["in/z"].reshape(2, -1)[:, permute.ORDERS[name](6, 6)]
    g.equal(target, f"out/{case}/target")
    seen = np.where(g["in/pkeep_mask"] > 0, target, g["in/pkeep_random"]) if case == "class_pkeep" else target

    def loss(params):
        logits = model.apply({"params": params}, jnp.concatenate([c, seen[:, :-1]], 1))[:, cond.length - 1 :]
        return losses.cross_entropy(logits, target).mean(), logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    g.close(value, f"out/{case}/loss")
    if f"out/{case}/logits" in g.arrays.files:
        g.close(logits, f"out/{case}/logits")
    grads = convert.to_torch(jax.device_get(grads), convert.TRANSFORMER, "")
    check_statistics(g, f"gradstat/{case}", grads, g.config["param_order"])
    g.equal(greedy(model, params, np.asarray(c), 36), f"out/{case}/sample_greedy")
    half = g["in/z"].reshape(2, -1)[:, :18]  # the first rows, whatever the order
    rest = greedy(model, params, np.concatenate([c, half], 1), 18)
    g.equal(np.concatenate([half, rest], 1), f"out/{case}/sample_greedy_half")


def test_pkeep_corrupts_its_share():
    ids = jnp.full((64, 256), 7)
    seen = np.asarray(prior.corrupt(ids, 0.75, 64, jax.random.key(0)))
    assert abs((seen == 7).mean() - (0.75 + 0.25 / 64)) < 0.01
    np.testing.assert_array_equal(np.unique(seen), np.arange(64))


def test_adamw_and_its_groups():
    g = Golden("net2net")
    model, params = gpt_of(g)
    groups = g.config["param_groups"]
    decays = convert.to_torch(optim.decayed(params), convert.TRANSFORMER, "")
    assert {name for name, decay in decays.items() if decay} == set(groups[0]["params"])
    assert set(decays) == set(groups[0]["params"]) | set(groups[1]["params"])
    fields = dict(learning_rate=g.config["lr"], schedule="constant", warmup_steps=0, b1=0.9, b2=0.95)
    optimizer = optim.make_optimizer(ConfigDict(dict(weight_decay=0.01, clip_norm=0.0, **fields)), 3)
    opt, c, begin = optimizer.init(params), g["in/class"][:, None], g.weights

    @jax.jit
    def step(params, opt, z):
        def loss(params):
            return losses.cross_entropy(model.apply({"params": params}, jnp.concatenate([c, z[:, :-1]], 1)), z).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, value

    for i, name in enumerate(("in/z", "in/z2", "in/z")):
        params, opt, value = step(params, opt, g[name].reshape(2, -1))
        g.near(value, g["out/adamw/losses"][i], "out/adamw/losses", 2e-5)
        now = convert.to_torch(jax.device_get(params), convert.TRANSFORMER, "")
        for key in (k for k in g.arrays.files if k.startswith("out/adamw/delta/")):
            tensor = key.removeprefix("out/adamw/delta/")
            np.testing.assert_allclose(now[tensor] - begin[tensor], g[key][i], atol=0.05 * g.config["lr"], err_msg=key)


@pytest.mark.parametrize("name", list(convert.ORDERS))
def test_orders(name):
    g = Golden("permuters")
    shapes = [key.split("/")[2] for key in g.arrays.files if key.startswith(f"out/{name}/") and key.endswith("forward")]
    assert len(shapes) >= 2
    for shape in shapes:
        order = permute.ORDERS[convert.ORDERS[name]](*map(int, shape.split("x")))
        g.equal(order, f"out/{name}/{shape}/forward")
        g.equal(np.argsort(order), f"out/{name}/{shape}/reverse")
    for h, w in ((1, 1), (3, 5), (8, 2), (1, 9), (6, 10)):  # the original's fail on some of these
        assert sorted(permute.ORDERS[convert.ORDERS[name]](h, w)) == list(range(h * w))


# Conditions, filters and windows.


def test_coordinates_start_and_labels():
    g = Golden("misc")
    c = g.config["coord"]
    coord = jnp.asarray(g["in/coord"][:, 0])
    ids = conditioners.quantize_coordinates(coord, c["n_embed"], c["down"])
    g.equal(ids[:, None], "out/coord_indices")
    g.close(ids[:, None].astype(jnp.float32), "out/coord_quant")
    # A coordinate of 1 has an id outside of the vocabulary in the original; ours takes the last one.
    square = condition("coordinates", size=24, levels=c["n_embed"], down=c["down"])
    tokens = square.tokens({}, {"coord": coord[:, :24]})
    np.testing.assert_array_equal(tokens, np.minimum(g["out/coord_indices"][:, 0, :6], 63).reshape(3, -1))
    g.equal(condition("none", sos=g.config["sos"]).tokens({}, {"label": jnp.zeros(4)}), "out/sos")
    labels = condition("class", class_names=("",) * g.config["nclass"])
    g.equal(labels.tokens({}, {"label": g["in/labels"]}), "out/labels")


def test_filters():
    """Ours keeps all codes that tie with the last one kept (row 0 has ties), where the original's sort decides."""
    g = Golden("filter")
    logits = jnp.asarray(g["in/logits"])
    v = logits.shape[-1]
    for k, p in g.config["cases"]:
        ours = np.asarray(sampling.filter_logits(logits, min(k, v) or v, p))
        theirs = g[f"out/filtered/k{k}_p{p}"]
        np.testing.assert_array_equal(ours[1:], theirs[1:])
        kept = np.isfinite(theirs[0])
        np.testing.assert_array_equal(ours[0][kept], theirs[0][kept])
        assert set(ours[0][np.isfinite(ours[0])]) == set(theirs[0][kept])
    for k in (1, 5, 32):
        g.equal(sampling.filter_logits(logits, k, 1.0), f"out/filtered/mingpt_top_k_{k}")


def test_windows():
    g = Golden("sliding")
    for key in (k for k in g.arrays.files if k.startswith("out/windows")):
        h, w = map(int, key.split("/")[-1].split("x"))
        i, j, top, left, local_i, local_j = g[key].T
        np.testing.assert_array_equal(sampling.window_start(i, 16, h), top)
        np.testing.assert_array_equal(sampling.window_start(j, 16, w), left)
        np.testing.assert_array_equal((i - top, j - left), (local_i, local_j))


@pytest.mark.parametrize(("case", "method"), [("empty", "wavefront"), ("half", "cached")])
def test_sliding_window(case, method):
    g = Golden("sliding")
    model, params = gpt_of(g)
    h, w = g.config["H"], g.config["W"]
    cond, codes = g["in/cond"][None], g["in/image_indices"][None]
    known = jnp.arange(h * w).reshape(h, w) < (g.config["half_start"] if case == "half" else 0)
    forward = lambda ids: model.apply({"params": params}, ids)  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 1)
    decode = functools.partial(prior.next_code, model, g.config["vocab"])
    paint = sampling.make_painter(decode, model.init_cache, 16, method)
    *_, (grid, _) = paint(params, jnp.asarray(cond), jnp.asarray(codes), known, keys, 1.0, 1, 1.0)
    grid = np.asarray(grid)[0]
    g.equal(grid, f"out/{case}/grid")
    first = int(known.sum())
    positions = np.arange(first, h * w)[:: 40 if case == "empty" else 20]
    patches, at = [], []
    for p in positions:
        i, j = divmod(int(p), w)
        top, left = (sampling.window_start(np.int64(x), 16, n) for x, n in ((i, h), (j, w)))
        so_far = np.where(np.arange(h * w).reshape(h, w) < p, grid, 0)
        window = np.s_[top : top + 16, left : left + 16]
        patches.append(np.concatenate([g["in/cond"][window].ravel(), so_far[window].ravel()])[:-1])
        at.append(255 + (i - top) * 16 + j - left)
    logits = np.asarray(jax.jit(forward)(jnp.asarray(np.stack(patches))))[np.arange(len(at)), at]
    g.near(logits, g[f"out/{case}/logits"][positions - first], "logits")


def test_every_golden_file_is_used():
    used = {"vqmodel", "gumbel", "ema", "misc", "train_weights", "loss", "step", "lpips_real", "gpt", "net2net"}
    used |= {"permuters", "filter", "sliding"} | {f"disc{i}_{n}" for i in (0, 1) for n in ("batchnorm", "actnorm")}
    assert {p.stem.removeprefix("dev_") for p in (Path(__file__).parent / "golden").glob("*.npz")} == used
