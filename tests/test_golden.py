"""The numbers of the original PyTorch implementation, on small models. `tests/golden/` was made by running it.

`pytest -n 0 -s tests/test_golden.py` ends with the largest deviation found in each file. What deviates on purpose is
said in the test that meets it. Not compared, since nothing here does it: the random colours of `to_rgb`, decoding of
coordinates, ActNorm's inverse; and of `step`, what follows the first update of the discriminator.

`GOLDEN=folder pytest tests/test_golden.py` takes another set of the same format: every size and number comes from the
files' own configs and arrays. Files of `tests/test_golden_successors.py` may lie beside them.
"""

import functools
import itertools
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs import common
from taming_jax import losses, optim, permute, sharding
from taming_jax.conditions import Condition, make_condition
from taming_jax.conditions.coordinates import quantize_coordinates
from taming_jax.convert import names
from taming_jax.convert import vqgan as converted
from taming_jax.convert.tensors import (
    discriminator_from_torch,
    discriminator_to_torch,
    from_torch,
    lpips_from_torch,
    to_torch,
)
from taming_jax.first_stage import make_first_stage
from taming_jax.models import perceptual, quantize
from taming_jax.models.discriminator import ActNorm, NLayerDiscriminator
from taming_jax.models.gpt import GPT, stack, unstack
from taming_jax.sampling.draw import Sampling, filter_logits
from taming_jax.sampling.painter import make_painter
from taming_jax.sampling.window import window_start
from taming_jax.second_stage import next_code
from taming_jax.state import TrainState
from taming_jax.tasks import vqgan
from taming_jax.tasks.transformer import corrupt, draw_noise
from tests.tiny import sample_plainly

DEVIATIONS: dict[str, float] = {}
FOLDER = Path(os.environ.get("GOLDEN") or Path(__file__).parent / "golden")
KINDS = {"vqmodel", "gumbel", "ema", "misc", "train_weights", "loss", "step", "lpips_real", "gpt", "net2net"}
KINDS |= {"permuters", "filter", "sliding"}
ALL = {path.stem for path in FOLDER.glob("*.npz")}
STEMS = {name for name in ALL if not re.search("_(llamagen|rar|maskgit|tok1d)_", name)}
if ALL and not STEMS:
    pytest.skip(f"{FOLDER} is for test_golden_successors.py", allow_module_level=True)


def find_set() -> tuple[str, set[str]]:
    """The tag that all files' names begin with, and what follows it."""
    pattern = rf"(.+?)_((?:{'|'.join(KINDS)}|disc\d+_\w+)(?:_acts)?)"
    found = [match.groups() for name in STEMS if (match := re.fullmatch(pattern, name))]
    tags = sorted({tag for tag, _ in found})
    if len(tags) != 1:
        raise ValueError(f"{FOLDER} must hold one set of golden files; there are {len(tags)}: {', '.join(tags)}")
    return tags[0], {name for _, name in found}


TAG, FILES = find_set()


class Golden:
    """One file: arrays by their key, images as [B,H,W,C]."""

    def __init__(self, name: str):
        self.name = name
        self.arrays = np.load(FOLDER / f"{TAG}_{name}.npz")
        self.config = json.loads(str(self.arrays["config"]))
        self.weights = {k.removeprefix("w/"): self.arrays[k] for k in self.arrays.files if k.startswith("w/")}

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def below(self, prefix: str) -> list[str]:
        """The rest of all keys that begin so."""
        return [key.removeprefix(prefix) for key in self.arrays.files if key.startswith(prefix)]

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


def names_in(name: str, pattern: str) -> list[str]:
    """What a pattern's group matches in a file's keys, to name tests by; none where the file is missing."""
    keys = Golden(name).arrays.files if name in FILES else []
    return list(dict.fromkeys(match[1] for key in keys if (match := re.match(pattern, key))))


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


def vq_config(g: Golden) -> ConfigDict:
    """Our config of a file with a VQModel. One that does not say beta has the 0.25 that is fixed in the original's."""
    config = converted.vq_config({"target": "taming.models.vqgan.VQModel", "params": g.config})
    config.quantizer.commitment_weight = g.config.get("beta", config.quantizer.commitment_weight)
    return config


def generator(g: Golden, config: ConfigDict) -> dict:
    return from_torch(dict(g.weights), make_first_stage(config).parameter_shapes(), names.GENERATOR, "")


# The VQGAN.


def test_vqgan():
    g = Golden("vqmodel")
    config = vq_config(g)
    model, params = make_first_stage(config).model, generator(g, config)
    assert set(to_torch(params, names.GENERATOR, "")) == set(g.weights)  # every tensor has its place

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
    vq = quantize.VectorQuantizer(*book.shape, commitment_weight=g.config["beta"], legacy=legacy)

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


@pytest.mark.parametrize("case", names_in("gumbel", r"out/(.+)/kl$"))
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
        straight_through=fields["straight_through"] or not fields["train"],
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


@pytest.mark.parametrize("case", names_in("ema", r"before/(\w+)/"))
def test_ema_quantizer(case):
    """Updates from the file's own start; ours starts cluster sizes at 1, not 0, and so never from case fresh."""
    g = Golden("ema")
    fields = {name: g.config[name] for name in ("n_embed", "beta", "decay", "eps")} | {"embed_dim": g.config["dim"]}
    model = {"target": "EMAVQ", "params": {"ddconfig": Golden("train_weights").config["ddconfig"], **fields}}
    vq = quantize.make_quantizer(converted.vq_config(model).quantizer)
    book, size, mean = (jnp.asarray(g[f"before/{case}/embedding.{k}"]) for k in ("weight", "cluster_size", "embed_avg"))
    stats = {"cluster_size": size, "embed_avg": mean}
    for step, z in enumerate(jnp.asarray(g.nhwc("in/z"))):
        name = f"{case}/step{step}"
        apply = lambda z, book=book: vq.apply({"params": {"embedding": book}}, z)  # noqa: E731
        z_q, codes = apply(z)
        g.equal(codes["ids"], f"out/{name}/indices")
        g.close(z_q, f"out/{name}/z_q", images=True)
        g.close(codes["loss"], f"out/{name}/loss")
        g.close(jax.grad(lambda z, apply=apply: apply(z)[1]["loss"])(z), f"grad/{name}/z", 1e-4, images=True)
        p = jnp.zeros(len(book)).at[codes["ids"].ravel()].add(1 / codes["ids"].size)
        g.close(jnp.exp(-jnp.sum(p * jnp.log(p + 1e-10))), f"out/{name}/perplexity")
        book, stats = vq.follow(book, stats, codes)
        g.close(stats["cluster_size"], f"out/{name}/embedding.cluster_size")
        g.close(stats["embed_avg"], f"out/{name}/embedding.embed_avg")
        g.close(book, f"out/{name}/embedding.weight")
    z_q, codes = vq.apply({"params": {"embedding": book}}, g.nhwc("in/z")[0])
    g.equal(codes["ids"], f"out/{case}/eval/indices")
    g.close(codes["loss"], f"out/{case}/eval/loss")


@pytest.mark.parametrize("unknown", names_in("misc", r"out/remap_(\w+)/loss"))
def test_remapping(unknown):
    g, case = Golden("misc"), f"remap_{unknown}"
    unknown = int(unknown) if unknown.isdecimal() else unknown
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
    # The file does not say beta. The loss does, since both of its terms are one number: here to a thousandth, so that
    # only a loss of this form can be equal.
    beta = round(float(g[f"out/{case}/loss"] / losses.codebook_loss(z, book[ids], 0.0, True)) - 1, 3)
    g.close(losses.codebook_loss(z, book[ids], beta, True), f"out/{case}/loss")
    g.close(book[quantize.unmap(mapped, used)], f"out/{case}/entry", images=True)
    known = np.isin(ids, used)
    assert 0 < known.mean() < 1
    often = jnp.stack([ids] * 100 * len(used))  # so that each position is drawn
    drawn = np.asarray(quantize.remap(often, used, "random", jax.random.key(0)))
    np.testing.assert_array_equal(drawn[:, known], np.broadcast_to(mapped[known], drawn[:, known].shape))
    np.testing.assert_array_equal(np.unique(drawn[:, ~known]), np.arange(len(used)))


# The discriminator and the losses.


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.startswith("disc")))
def test_discriminator(name):
    """Two training passes, then evaluation. Ours keeps ActNorm's first batch beside its parameters: equal in sum."""
    g = Golden(name)
    c = g.config
    disc = NLayerDiscriminator(c["ndf"], c["n_layers"], c["use_actnorm"])
    x, y = (jnp.asarray(g.nhwc(f"in/{k}")) for k in "xy")
    like = jax.eval_shape(lambda k, x: disc.init(k, x, True), jax.random.key(0), x)
    tensors = dict(g.weights)
    params, stats = discriminator_from_torch(tensors, like, c["n_layers"], "")
    assert all("num_batches" in name for name in tensors)

    @jax.jit
    def train(params, stats, x):
        logits, new = disc.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
        return logits, new["batch_stats"]

    def check_after(stats, key):
        ours = discriminator_to_torch(params, jax.device_get(stats), c["n_layers"], "")
        for name in g.below(f"out/{key}/"):
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
    loc, scale = (g.nhwc(f"out/actnorm_{name}") for name in ("loc", "scale"))
    g.close(new["batch_stats"]["loc"].reshape(1, -1, 1, 1), "out/actnorm_loc")
    g.close(new["batch_stats"]["scale"].reshape(1, -1, 1, 1), "out/actnorm_scale")
    again, _ = norm.apply({**variables, **new}, 3 * x + 1, True, mutable=["batch_stats"])
    g.near(again, (3 * x + 1 + loc) * scale, "later batches")  # they do not start it again


def test_lpips_with_the_real_weights():
    g, weights = Golden("lpips_real"), perceptual.load_weights()

    @jax.jit
    def run(weights, a, b):
        taps = perceptual.vgg16(weights["vgg"], a, jnp.float32)
        distance, pull = jax.vjp(lambda b: perceptual.lpips(weights, a, b), b)
        return distance, [jnp.linalg.norm(tap) for tap in taps], pull(jnp.ones_like(distance))[0]

    for pair in names_in("lpips_real", r"out/(\w+)/lpips"):
        a, b = (jnp.asarray(g.nhwc(f"in/{pair}/{k}")) for k in "ab")
        distance, norms, grad = run(weights, a, b)
        g.close(distance, f"out/{pair}/lpips")
        g.close(norms, f"out/{pair}/feat_norms")
        check_statistics(g, f"gradstat/{pair}/b", {"b": np.moveaxis(np.asarray(grad), -1, 1)}, ["b"])


def discriminator_of(config: ConfigDict) -> NLayerDiscriminator:
    return NLayerDiscriminator(config.disc.ndf, config.disc.n_layers, config.disc.use_actnorm)


@pytest.fixture(scope="module")
def training():
    """The weights of the whole small VQGAN with discriminator and a narrow VGG."""
    g = Golden("train_weights")
    config, prefix = vq_config(g), "loss.discriminator."
    disc, x = discriminator_of(config), jnp.zeros((1, config.data.size, config.data.size, config.model.out_ch))
    like = jax.eval_shape(lambda k: disc.init(k, x, True), jax.random.key(0))
    params, stats = discriminator_from_torch(dict(g.weights), like, config.disc.n_layers, prefix)
    vgg = lpips_from_torch(g.weights, "loss.perceptual_loss.")
    return {"gen": generator(g, config), "disc": params}, stats, vgg


def start(config, training, step: int) -> tuple:
    """Our task, and its state at a step with the file's weights."""
    params, stats, vgg = training
    task = vqgan.make_task(config)
    state = jax.jit(task.init)(jax.random.key(0))
    opt = {name: optimizer for name, optimizer in state.opt.items()}
    extra = {"gen": state.extra["gen"], "disc": {"batch_stats": stats}}
    state = TrainState(jnp.int32(step), params, opt, extra, {"lpips": vgg})
    return task, jax.tree.map(jnp.asarray, state)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case == "hinge_after" else pytest.mark.slow)
        for case in names_in("loss", r"out/(\w+)/g/log_total_loss")
    ],
)
def test_losses_and_their_gradients(case, training, monkeypatch):
    """One step of ours gives both: the discriminator learns from the reconstructions that the generator was judged by.

    Before `disc_start` the original multiplies the discriminator's loss and its part of the generator's by 0. The same
    here by switches: it is judged from step 0, felt from `disc_start`, and its gradient compared where the original has
    one. `disc_factor` is ours only as a part of `disc.weight`; it scales the discriminator's loss in the original.
    """
    g = Golden("loss")
    config, given = vq_config(g), g.config["lossconfig"]["params"]
    fields = given | g.config["cases"][case]
    factor = fields.get("disc_factor", 1.0)
    config.loss.perceptual_weight = float(fields.get("perceptual_weight", config.loss.perceptual_weight))
    config.disc.update(loss=fields.get("disc_loss", config.disc.loss), start=0, ramp_steps=0)
    config.disc.weight = float(fields.get("disc_weight", 1.0) * factor)
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
    felt = 1.0 if fields["step"] >= fields["disc_start"] else 0.0

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
    n_layers, stats = config.disc.n_layers, jax.device_get(after.extra["disc"]["batch_stats"])
    stats = discriminator_to_torch(training[0]["disc"], stats, n_layers, "")
    for name in g.below(f"out/{case}/d/bn_after."):
        g.close(stats[name], f"out/{case}/d/bn_after.{name}")

    grads = jax.device_get({name: state.trace for name, state in after.opt.items()})
    gen = to_torch(grads["gen"], names.GENERATOR, "")
    for name in g.below(f"grad/{case}/g/"):
        g.close(gen[name], f"grad/{case}/g/{name}", 1e-4)
    check_statistics(g, f"gradstat/{case}/g", gen, g.config["ae_param_order"])
    if felt:
        disc = to_torch(grads["disc"], names.discriminator_rules(n_layers), "loss.discriminator.")
        disc = {name: factor * value for name, value in disc.items()}
        for name in g.below(f"grad/{case}/d/"):
            g.close(disc[name], f"grad/{case}/d/{name}", 1e-4)
        check_statistics(g, f"gradstat/{case}/d", disc, g.config["disc_param_order"])


def test_parts_in_evaluation(training):
    """The reconstruction and each loss on it, without an update; the discriminator with its running statistics."""
    g, (params, stats, vgg) = Golden("loss"), training
    config = vq_config(g)
    model, disc, weights = make_first_stage(config).model, discriminator_of(config), config.loss

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
    rec_loss = l1 + weights.perceptual_weight * distance.mean()
    for name in ("rec_loss", "nll_loss"):
        g.close(rec_loss, f"out/val/log_{name}")
    for name in ("aeloss", "total_loss"):  # lambda is 0 in the original's evaluation
        g.close(rec_loss + weights.codebook_weight * codes["loss"], f"out/val/log_{name}")
    g.close(distance.mean() * (weights.perceptual_weight > 0), "out/val/log_p_loss")
    g.close(losses.generator_loss(fake), "out/val/log_g_loss")
    d_loss = losses.DISCRIMINATOR_LOSSES[config.disc.loss](real, fake)
    g.close(d_loss * g["out/val/log_disc_factor"], "out/val/log_disc_loss")
    g.close(real.mean(), "out/val/log_logits_real")
    g.close(fake.mean(), "out/val/log_logits_fake")


@pytest.mark.slow
def test_steps_as_far_as_they_are_the_same(training):
    """The generator's logs and moves up to the first step that feels the discriminator.

    From there on ours differs by design: one forward for both nets, so that the discriminator learns from the
    reconstructions before the generator's update, with an optimizer that starts with it. So the original's
    discriminator step there is compared in its parts: our loss on the reconstructions after our generator's update.
    """
    g = Golden("step")
    config, (b1, b2) = vq_config(g), g.config["betas"]
    config.disc.update(start=g.config["disc_start"], gen_start=g.config["disc_start"])
    config.loss.perceptual_weight = float(g.config["perceptual_weight"])
    config.optim.update(learning_rate=g.config["lr"], b1=b1, b2=b2, eps=g.config["eps"])
    task, state = start(config, training, 0)
    step = jax.jit(task.train_step, static_argnums=3)
    begin = to_torch(jax.device_get(state.params["gen"]), names.GENERATOR, "")
    model = make_first_stage(config).model
    recon = jax.jit(lambda p, x: model.apply({"params": p}, x))
    last = min(config.disc.start, len(g["in/x"]) - 1)  # of the file, where no step feels the discriminator
    for i in range(last + 1):
        x = jnp.asarray(np.moveaxis(g["in/x"][i], 1, -1))
        _, codes = recon(state.params["gen"], x)
        np.testing.assert_array_equal(codes["ids"].reshape(len(x), -1), g["out/indices"][i])
        state, logged = step(state, {"image": x}, jax.random.key(0), task.phase(i))
        logged = jax.device_get(logged.compute())
        for ours, theirs in (("loss", "total_loss"), ("quant_loss", "quant_loss"), ("p_loss", "p_loss")):
            if theirs != "p_loss" or vqgan.uses_lpips(config):
                g.near(logged[ours], g[f"out/log/g/{theirs}"][i], f"out/log/g/{theirs}", 2e-5)
        now = to_torch(jax.device_get(state.params["gen"]), names.GENERATOR, "")
        for name in (name for name in g.below("out/delta/") if "discriminator" not in name):
            theirs = g[f"out/delta/{name}"][i]
            np.testing.assert_allclose(now[name] - begin[name], theirs, atol=0.05 * g.config["lr"], err_msg=name)
    factor = g["out/log/g/disc_factor"][last]  # ours is a part of the weight; 0 where no step feels it
    if factor:
        g.near(logged["g_loss"], g["out/log/g/g_loss"][last], "out/log/g/g_loss", 1e-4)
        g.near(logged["d_weight"], g["out/log/g/d_weight"][last] * factor, "out/log/g/d_weight", 1e-4)
    params, stats, _ = training
    disc, d_loss = discriminator_of(config), losses.DISCRIMINATOR_LOSSES[config.disc.loss]
    variables = {"params": params["disc"], "batch_stats": stats}
    judge = jax.jit(lambda x: disc.apply(variables, x, True, mutable=["batch_stats"])[0])
    real, fake = judge(x), judge(recon(state.params["gen"], x)[0])
    g.near(d_loss(real, fake) * factor, g["out/log/d/disc_loss"][last], "out/log/d/disc_loss", 2e-5)
    g.near(real.mean(), g["out/log/d/logits_real"][last], "out/log/d/logits_real", 2e-5)
    g.near(fake.mean(), g["out/log/d/logits_fake"][last], "out/log/d/logits_fake", 2e-5)


def test_segmentation_loss():
    g = Golden("misc")
    target, pred = g.nhwc("in/seg_target"), jnp.asarray(g.nhwc("in/seg_pred"))
    loss, grad = jax.value_and_grad(losses.bce_loss, 1)(target, pred)
    g.close(loss, "out/seg_log_bce_loss")
    g.close(loss + g.config["seg"]["cw"] * g["in/seg_qloss"], "out/seg_loss")
    g.close(grad, "grad/seg_pred", 1e-4, images=True)


# The transformer.


def gpt_of(g: Golden, n_unmasked: int = 0) -> tuple[GPT, dict]:
    c = g.config
    drops = dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    fields = dict(n_unmasked=n_unmasked, unrolled=True, **drops)
    model = GPT(c["vocab"], c["block"], c["n_layer"], c["n_head"], c["n_embd"], **fields)
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, c["block"]), jnp.int32))["params"]
    tensors = dict(g.weights)
    params = from_torch(tensors, like, names.TRANSFORMER, "")
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
    g.close(apply(params, idx[:, : g["out/logits_short"].shape[1]]), "out/logits_short")
    g.close(apply(params, idx[:, : -embeddings.shape[1]], embeddings), "out/logits_emb")

    def loss(params):
        return losses.cross_entropy(model.apply({"params": params}, idx), g["in/targets"]).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    g.close(value, "out/loss")
    grads = to_torch(unstack(jax.device_get(grads)), names.TRANSFORMER, "")
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


def condition(name: str, size: int = 0, class_names: tuple[str, ...] = (), **fields) -> Condition:
    config = ConfigDict(dict(cond=common.get_cond(name), data=dict(size=size, class_names=class_names)))
    config.cond.update(fields)
    return make_condition(config)


class GridOfIds(Condition):
    """The file's ids, whatever made them."""

    def ids(self, frozen: dict, batch: dict) -> jax.Array:
        return batch["grid"].reshape(-1, self.length)


@pytest.mark.parametrize("case", names_in("net2net", r"out/(\w+)/target"))
def test_conditional_transformer(case):
    g = Golden("net2net")
    model, params = gpt_of(g)
    batch = {"label": jnp.asarray(g["in/class"]), "grid": jnp.asarray(g["in/cond_grid"])}
    if case == "sos":
        cond = condition("none", sos=g.config["sos"])
    elif case == "image":
        _, h, w = batch["grid"].shape
        cond = GridOfIds(length=h * w, vocab_size=0, grid=(h, w))
    else:
        cond = condition("class", class_names=("",) * g.config["n_classes"])
    c = cond.ids({}, batch)
    g.equal(c, f"out/{case}/c_indices")
    name = "spiral_out" if case == "class_spiral" else "row_major"
    b, h, w = g["in/z"].shape
    codes, length = g["in/z"].reshape(b, -1), h * w
    target = codes[:, permute.ORDERS[name](h, w)]
    g.equal(target, f"out/{case}/target")
    seen = np.where(g["in/pkeep_mask"] > 0, target, g["in/pkeep_random"]) if case == "class_pkeep" else target

    def loss(params):
        logits = model.apply({"params": params}, jnp.concatenate([c, seen[:, :-1]], 1))[:, cond.length - 1 :]
        return losses.cross_entropy(logits, target).mean(), logits

    (value, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    g.close(value, f"out/{case}/loss")
    if f"out/{case}/logits" in g.arrays.files:
        g.close(logits, f"out/{case}/logits")
    grads = to_torch(jax.device_get(grads), names.TRANSFORMER, "")
    check_statistics(g, f"gradstat/{case}", grads, g.config["param_order"])
    g.equal(greedy(model, params, np.asarray(c), length), f"out/{case}/sample_greedy")
    half = codes[:, : length // 2]  # the first rows, whatever the order
    rest = greedy(model, params, np.concatenate([c, half], 1), length - length // 2)
    g.equal(np.concatenate([half, rest], 1), f"out/{case}/sample_greedy_half")


def test_pkeep_corrupts_its_share():
    ids = jnp.full((64, 256), 7)
    seen = np.asarray(corrupt(ids, 0.75, 64, jax.random.key(0)))
    assert abs((seen == 7).mean() - (0.75 + 0.25 / 64)) < 0.01
    np.testing.assert_array_equal(np.unique(seen), np.arange(64))


def test_noise_is_drawn_for_each_sequence_and_fades():
    """U(0, 1 - step / until) of each sequence's codes become random ones, and none any more at the end."""
    ids = jnp.full((2000, 64), 7)
    for step, bound in ((0, 1.0), (25, 0.75), (75, 0.25), (100, 0.0), (500, 0.0)):
        share = draw_noise(jax.random.key(1), jnp.int32(step), 100, len(ids))
        assert share.shape == (2000, 1) and abs(share.mean() - bound / 2) < 0.02 and share.max() <= bound
        assert abs(share.std() - bound / 12**0.5) < 0.01
        changed = np.asarray(corrupt(ids, 1 - share, 4096, jax.random.key(2)) != 7).mean(1)
        assert abs(changed - share[:, 0]).mean() < 0.05 and (bound > 0 or not changed.any())


def test_adamw_and_its_groups():
    g = Golden("net2net")
    model, params = gpt_of(g)
    group, rest = sorted(g.config["param_groups"], key=lambda group: -group["weight_decay"])
    decays = to_torch(optim.decayed(params), names.TRANSFORMER, "")
    assert {name for name, decay in decays.items() if decay} == set(group["params"])
    assert set(decays) == set(group["params"]) | set(rest["params"])
    numbers = [{name: value for name, value in each.items() if name != "params"} for each in (group, rest)]
    assert numbers[0] | {"weight_decay": 0.0} == numbers[1]  # ours has one optimizer for both
    (b1, b2), losses_after = group["betas"], g["out/adamw/losses"]
    fields = dict(learning_rate=group["lr"], b1=b1, b2=b2, eps=group["eps"], weight_decay=group["weight_decay"])
    config = ConfigDict(dict(schedule="constant", warmup_steps=0, clip_norm=0.0, **fields))
    optimizer = optim.make_optimizer(config, len(losses_after))
    opt, c, begin = optimizer.init(params), g["in/class"][:, None], g.weights

    @jax.jit
    def step(params, opt, z):
        def loss(params):
            return losses.cross_entropy(model.apply({"params": params}, jnp.concatenate([c, z[:, :-1]], 1)), z).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = optimizer.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, value

    batches = itertools.cycle(g[name].reshape(len(c), -1) for name in ("in/z", "in/z2"))
    for i, (loss, batch) in enumerate(zip(losses_after, batches, strict=False)):
        params, opt, value = step(params, opt, batch)
        g.near(value, loss, "out/adamw/losses", 2e-5)
        now = to_torch(jax.device_get(params), names.TRANSFORMER, "")
        for name in g.below("out/adamw/delta/"):
            theirs = g[f"out/adamw/delta/{name}"][i]
            np.testing.assert_allclose(now[name] - begin[name], theirs, atol=0.05 * group["lr"], err_msg=name)


@pytest.mark.parametrize("name", list(names.ORDERS))
def test_orders(name):
    g = Golden("permuters")
    shapes = names_in("permuters", rf"out/{name}/(\w+)/forward")
    failed = [key.split("/")[1] for key in g.config["unsupported_by_reference"] if key.startswith(f"{name}/")]
    assert {*shapes, *failed} == set(names_in("permuters", r"out/\w+/(\w+)/forward"))
    assert set(names_in("permuters", r"out/(\w+)/")) <= set(names.ORDERS)
    for shape in shapes:
        order = permute.ORDERS[names.ORDERS[name]](*map(int, shape.split("x")))
        g.equal(order, f"out/{name}/{shape}/forward")
        g.equal(np.argsort(order), f"out/{name}/{shape}/reverse")
    for h, w in ((1, 1), (3, 5), (8, 2), (1, 9), (6, 10)):  # the original's fail on some of these
        assert sorted(permute.ORDERS[names.ORDERS[name]](h, w)) == list(range(h * w))


# Conditions, filters and windows.


def test_coordinates_start_and_labels():
    g = Golden("misc")
    c = g.config["coord"]
    coord = jnp.asarray(g["in/coord"][:, 0])
    ids = quantize_coordinates(coord, c["n_embed"], c["down"])
    g.equal(ids[:, None], "out/coord_indices")
    g.close(ids[:, None].astype(jnp.float32), "out/coord_quant")
    # A coordinate of 1 has an id outside of the vocabulary in the original; ours takes the last one.
    size = min(coord.shape[1:])
    n = size // c["down"]
    square = condition("coordinates", size=size, levels=c["n_embed"], down=c["down"])
    tokens = square.ids({}, {"coord": coord[:, :size, :size]})
    theirs = np.minimum(g["out/coord_indices"][:, 0, :n, :n], c["n_embed"] - 1)
    np.testing.assert_array_equal(tokens, theirs.reshape(len(coord), -1))
    g.equal(condition("none", sos=g.config["sos"]).ids({}, {"label": jnp.zeros(len(g["out/sos"]))}), "out/sos")
    labels = condition("class", class_names=("",) * g.config["nclass"])
    g.equal(labels.ids({}, {"label": g["in/labels"]}), "out/labels")


def test_filters():
    """Ours keeps all codes that tie with the last one kept (row 0 has ties), where the original's sort decides.

    With p = 1 ours takes none away; the original, whose float32 sum may pass 1, takes some whose sum is almost nothing.
    """
    g = Golden("filter")
    logits = jnp.asarray(g["in/logits"])
    v = logits.shape[-1]
    for k, p in g.config["cases"]:
        ours = np.asarray(filter_logits(logits, min(k, v) or v, p))
        theirs = g[f"out/filtered/k{k}_p{p}"]
        if p >= 1:
            lost = np.isfinite(ours) & ~np.isfinite(theirs)
            assert (np.asarray(jax.nn.softmax(ours, -1)) * lost).sum(-1).max() < 1e-6
            ours = np.where(lost, -np.inf, ours)
        np.testing.assert_array_equal(ours[1:], theirs[1:])
        kept = np.isfinite(theirs[0])
        np.testing.assert_array_equal(ours[0][kept], theirs[0][kept])
        assert set(ours[0][np.isfinite(ours[0])]) == set(theirs[0][kept])
    for k in names_in("filter", r"out/filtered/mingpt_top_k_(\d+)"):
        g.equal(filter_logits(logits, int(k), 1.0), f"out/filtered/mingpt_top_k_{k}")


def test_windows():
    g = Golden("sliding")
    window = g.config["window"]
    for key in g.below("out/windows"):
        h, w = map(int, key.split("/")[-1].split("x"))
        column = dict(zip(g.config["columns"], g[f"out/windows{key}"].T, strict=True))
        for at, size in (("i", h), ("j", w)):
            begin = column[f"{at}_start"]
            np.testing.assert_array_equal(window_start(column[at], window, size), begin)
            np.testing.assert_array_equal(column[at] - begin, column[f"local_{at}"])


@pytest.mark.parametrize(
    ("case", "method"), [("empty", "wavefront"), pytest.param("half", "cached", marks=pytest.mark.slow)]
)
def test_sliding_window(case, method):
    """Ours paints all that is unknown. The original begins every row at the column where the given half ends, if it
    ends within a row: grids are then equal up to the first code that it leaves out.
    """
    g = Golden("sliding")
    model, params = gpt_of(g)
    c, golden = g.config, g[f"out/{case}/grid"]
    (h, w), window, start = golden.shape, c["window"], c["half_start"] if case == "half" else 0
    cond, codes = g["in/cond"][None], g["in/image_indices"][None]
    place = np.arange(h * w).reshape(h, w)
    forward = lambda ids: model.apply({"params": params}, ids)  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 1)
    decode = functools.partial(next_code, model, c["vocab"])
    paint = make_painter(decode, model.init_cache, window, method)
    *_, (grid, _) = paint(params, jnp.asarray(cond), jnp.asarray(codes), place < start, keys, Sampling(1.0, 1, 1.0))
    visited = place[start // w :, start % w :].ravel()
    left_out = np.setdiff1d(np.arange(start, h * w), visited)
    same = place < (left_out[0] if len(left_out) else h * w)
    np.testing.assert_array_equal(np.asarray(grid)[0][same], golden[same])
    rows = np.arange(0, len(visited), max(1, len(visited) // 12))  # a dozen of all that were painted
    patches, at = [], []
    for p in visited[rows]:
        i, j = divmod(int(p), w)
        top, left = (window_start(np.int64(x), window, n) for x, n in ((i, h), (j, w)))
        seen = np.s_[top : top + window, left : left + window]
        so_far = np.where(place < p, golden, 0)
        patches.append(np.concatenate([g["in/cond"][seen].ravel(), so_far[seen].ravel()])[:-1])
        at.append(window**2 - 1 + (i - top) * window + j - left)
    logits = np.asarray(jax.jit(forward)(jnp.asarray(np.stack(patches))))[np.arange(len(at)), at]
    g.near(logits, g[f"out/{case}/logits"][rows], "logits")


def test_every_golden_file_is_used():
    """Activations (`*_acts`) are for debugging, and not in all sets."""
    discs = {name for name in FILES if re.fullmatch(r"disc\d+_(batchnorm|actnorm)", name)}
    assert {name.split("_")[1] for name in discs} == {"batchnorm", "actnorm"}
    assert {name for name in FILES if not name.endswith("_acts")} == KINDS | discs
    assert {f"{TAG}_{name}" for name in FILES} == STEMS
