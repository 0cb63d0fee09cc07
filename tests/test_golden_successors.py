"""The numbers of LlamaGen's and RAR's own PyTorch code, on small models; running it made `tests/golden/successors/`.

Values are within `10 * noise + 1e-5 * largest`, where the noise is what the original itself differs by between float32
and float64; integers are equal. Not compared, since nothing here does it: LlamaGen's window of used codes, its `valid`
loss and its swapped "non-saturating" losses, which no published recipe uses; MaskGIT's soft codes.

`GOLDEN=folder pytest tests/test_golden_successors.py` takes other sets of the same format: every size comes from the
files. Files of `tests/test_golden.py` may lie beside them.
"""

import functools
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taming_jax import losses
from taming_jax.convert import successors
from taming_jax.convert.names import generator_rules
from taming_jax.convert.tensors import account, from_torch, to_torch
from taming_jax.first_stage import make_first_stage
from taming_jax.models import llamagen, maskgit, quantize, rar
from taming_jax.models.discriminator import BlurredDiscriminator
from taming_jax.models.gpt import GPT, stack, unstack
from taming_jax.sampling.draw import Sampling, filter_logits, guide
from taming_jax.sampling.sequence import sample_full
from taming_jax.tasks.vqgan import ramp

FOLDER = Path(os.environ.get("GOLDEN") or Path(__file__).parent / "golden" / "successors")
NAME = re.compile(
    r".+?_(llamagen_(?:vq|gpt)_\w+?|llamagen_filter|llamagen_losses|rar_\w+?|maskgit_vqgan_\w+?|tok1d_\w+)"
)
FILES = {path.stem: m[1] for path in sorted(FOLDER.glob("*.npz")) if (m := NAME.fullmatch(path.stem))}
if not any(FOLDER.glob("*.npz")):
    raise ValueError(f"{FOLDER} holds no golden files")


def files(kind: str) -> list[str]:
    """The names of all files of a kind, of all sets in the folder, without those that hold weights of another one."""
    return [name for name, of in FILES.items() if of.startswith(kind) and not of.endswith(("_enc", "_dec"))]


class Golden:
    """One file, with the weights that lie in files of their own."""

    def __init__(self, name: str):
        parts = [np.load(path) for part in ("", "_enc", "_dec") if (path := FOLDER / f"{name}{part}.npz").exists()]
        self.name, self.arrays = name, parts[0]
        self.config = json.loads(str(self.arrays["config"]))
        self.weights = {k.removeprefix("w/"): part[k] for part in parts for k in part.files if k.startswith("w/")}

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays.files

    def nhwc(self, key: str) -> np.ndarray:
        return np.moveaxis(self.arrays[key], -3, -1)

    def below(self, pattern: str) -> list[re.Match]:
        return [m for key in self.arrays.files if (m := re.fullmatch(pattern, key))]

    def close(self, ours, key: str, golden: np.ndarray | None = None) -> None:
        golden = self.arrays[key] if golden is None else golden
        noise, largest = self.config.get("noise_floor", {}).get(key, (0.0, np.abs(golden).max()))
        assert np.shape(ours) == golden.shape, f"{self.name} {key}: {np.shape(ours)}, not {golden.shape}"
        bound = 10 * noise + 1e-5 * largest
        np.testing.assert_allclose(ours, golden, rtol=0, atol=bound, err_msg=f"{self.name} {key}")

    def close_images(self, ours, key: str) -> None:
        self.close(np.moveaxis(np.asarray(ours), -1, -3), key)

    def equal(self, ours, key: str) -> None:
        np.testing.assert_array_equal(ours, self.arrays[key], err_msg=f"{self.name} {key}")

    def close_gradients(self, ours: dict[str, np.ndarray], case: str) -> None:
        """Norm and dot product with cos(0), cos(1), ... of each tensor's gradient; some of them whole."""
        flat = [np.ravel(ours[name]).astype(np.float64) for name in self.config["param_order"]]
        statistics = np.array([[np.linalg.norm(x), x @ np.cos(np.arange(len(x)))] for x in flat])
        self.close(statistics, f"gradstat/{case}")
        for m in self.below(rf"grad/{case}/(.+\.weight|.+\.bias|\w+_embed\w*|cls_token)"):
            golden = self[m[0]]
            grad = ours[m[1]]
            self.close(grad[:, : golden.shape[1]] if grad.ndim == 3 else grad, m[0])


# Tokenizers.


def load_first_stage(g: Golden, kind: str, size: int):
    """Model and parameters as `convert` makes them; every tensor has its place, both ways."""
    tensors = dict(g.weights)
    assert successors.kind_of(tensors) == kind
    config, state = successors.first_stage_from_torch(kind, tensors, size)
    account(tensors)
    params = state.params["gen"]
    back = to_torch(params, generator_rules(config), "")
    assert back.keys() == g.weights.keys() - {successors.USAGE}
    for name, value in back.items():
        np.testing.assert_array_equal(value, g.weights[name])
    assert (config.model.ch, list(config.model.ch_mult)) == (g.config["ch"], g.config["ch_mult"])
    assert config.model.num_res_blocks == g.config["num_res_blocks"]
    return config, make_first_stage(config).model, params


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.endswith("_b") else ()) for name in files("llamagen_vq")]
)
def test_llamagen_tokenizer(name):
    g = Golden(name)
    patch = 2 ** (len(g.config["ch_mult"]) - 1)
    config, model, params = load_first_stage(g, "llamagen_vq", 16 * patch)

    @jax.jit
    def run(params, x):
        bound = model.bind({"params": params})
        enc = bound.encoder(x)
        h = bound.quant_conv(enc)
        z_q, codes = bound.quantize(h)
        out = dict(enc=enc, h=h, quant=z_q, post_quant=bound.post_quant_conv(z_q), rec=bound.decode(z_q))
        return out, codes["ids"]

    out, ids = run(params, g.nhwc("in/x"))
    g.equal(ids, "out/indices")
    for key, value in out.items():
        g.close_images(value, f"out/{key}")
    out, ids = run(params, g.nhwc("in/x_rect"))
    g.equal(ids, "out/rect_indices")
    g.close_images(out["h"], "out/rect_h")
    g.close_images(out["rec"], "out/rect_rec")
    decode = jax.jit(functools.partial(model.apply, method="decode_ids"))
    g.close_images(decode({"params": params}, g["in/code"]), "out/decode_code")
    g.close_images(model.apply({"params": params}, g["in/code"], method="lookup"), "out/codebook_entry")

    quantizer = config.quantizer.to_dict() | dict(commitment_weight=g.config["beta"], entropy_weight=g.config["ent"])
    trained = model.clone(quantizer=quantizer)

    def total(params, x):
        recon, codes = trained.apply({"params": params}, x)
        return losses.l2_loss(x, recon) + codes["loss"], losses.l2_loss(x, recon)

    (value, l2), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params, g.nhwc("in/x"))
    g.close(value, "out/train/total")
    g.close(l2, "out/train/rec_l2")
    g.close_gradients(to_torch(grads, generator_rules(config), ""), "train")


@pytest.mark.parametrize("name", files("llamagen_vq"))
@pytest.mark.parametrize("case", ["noent", "ent", "nol2"])
def test_llamagen_quantizer(name, case):
    """Its losses one by one: ours gives their sum, so that weights of 0 leave out the others."""
    g = Golden(name)
    h, book = jnp.asarray(g.nhwc("out/h")), jnp.asarray(g.weights["quantize.embedding.weight"])
    beta, ratio = g.config["beta"], 0.0 if case == "noent" else g.config["ent"]

    def make(beta: float) -> quantize.Quantizer:
        if case == "nol2":
            return quantize.VectorQuantizer(*book.shape, commitment_weight=beta, legacy=False)
        return quantize.NormalizedVectorQuantizer(*book.shape, beta, 0.0, 0.01)

    @jax.jit
    def run(h, book, beta=beta, cotangent=0.0):
        z_q, codes = make(beta).apply({"params": {"embedding": book}}, h)
        return codes["loss"] + jnp.sum(cotangent * z_q), (z_q, codes["ids"])

    vq_loss, (z_q, ids) = run(h, book, 0.0)
    g.close(vq_loss, f"out/{case}/vq_loss")
    g.close(run(h, book)[0] - vq_loss, f"out/{case}/commit_loss")
    nearby = quantize.unit if case != "nol2" else lambda x: x
    entropy = lambda h, book: ratio * losses.entropy_loss(quantize.distances(nearby(h), nearby(book)), 0.01)  # noqa: E731
    g.close(entropy(h, book), f"out/{case}/entropy_loss")
    g.equal(run(jnp.asarray(g.nhwc("in/h2")), book)[1][1], f"out/{case}/indices_2nd")
    with_entropy = lambda h, book: run(h, book)[0] + (entropy(h, book) if case == "ent" else 0)  # noqa: E731
    to_h, to_book = jax.jit(jax.grad(with_entropy, (0, 1)))(h, book)
    g.close_images(to_h, f"grad/{case}/h_losses")
    g.close(to_book, f"grad/{case}/codebook_losses")
    if f"grad/{case}/h_straight_through" in g:
        through = lambda h: run(h, book, cotangent=g.nhwc("in/cotangent"))[0] - run(h, book)[0]  # noqa: E731
        g.close_images(jax.jit(jax.grad(through))(h), f"grad/{case}/h_straight_through")
    if case == "nol2":
        g.equal(ids, "out/nol2/indices")
        g.close_images(z_q, "out/nol2/quant")


@pytest.mark.parametrize("name", files("llamagen_losses"))
def test_llamagen_losses(name):
    g = Golden(name)
    real, fake = g["in/logits_real"], g["in/logits_fake"]
    for kind, loss in losses.DISCRIMINATOR_LOSSES.items():
        g.close([loss(*row) for row in zip(real, fake, strict=True)], f"out/{kind}_d_loss")
    g.close([losses.generator_loss(row) for row in fake], "out/hinge_gen_loss")
    weights = [
        g.config["adopt_weight"] * ramp(step, g.config["threshold"], 0) for step in g.config["adopt_weight_steps"]
    ]
    g.close(weights, "out/adopt_weight")


@pytest.mark.parametrize("name", files("llamagen_filter"))
def test_llamagen_filter(name):
    """Ties at the nucleus' edge stay together here, where LlamaGen's sort decides: only rows without ties are compared.

    top_k = 0 is LlamaGen's word for all.
    """
    g = Golden(name)
    logits = g["in/logits"]
    plain = np.array([len(np.unique(row)) == len(row) for row in logits])
    for m in g.below(r"out/filtered/k(\d+)_p([\d.]+)"):
        top_k, top_p = int(m[1]), float(m[2])
        ours = filter_logits(jnp.asarray(logits), top_k or logits.shape[1], top_p)
        rows = plain | (top_p == 1)
        np.testing.assert_array_equal(np.asarray(ours)[rows], g[m[0]][rows], err_msg=m[0])
    for m in g.below(r"out/sample_probs/t([\d.e-]+)_k(\d+)_p([\d.]+)"):
        temperature, top_k, top_p = max(float(m[1]), 1e-5), int(m[2]), float(m[3])
        ours = jax.nn.softmax(filter_logits(jnp.asarray(logits) / temperature, top_k or logits.shape[1], top_p))
        g.close(np.asarray(ours)[plain], m[0], g[m[0]][plain])
        g_argmax = g[m[0].replace("sample_probs", "sample_argmax")][:, 0]
        np.testing.assert_array_equal(jnp.argmax(ours, -1)[plain], g_argmax[plain])


@pytest.mark.parametrize("name", files("maskgit_vqgan"))
def test_maskgit_vqgan(name):
    g = Golden(name)
    patch = 2 ** (len(g.config["ch_mult"]) - 1)
    config, model, params = load_first_stage(g, "maskgit_vq", 16 * patch)
    seen, shown = lambda x: 2 * x - 1, lambda x: (x + 1) / 2  # its pixels are in [0, 1]

    @jax.jit
    def run(params, x):
        bound = model.bind({"params": params})
        h = bound.quant_conv(bound.encoder(x))
        z_q, codes = bound.quantize(h)
        return h, z_q, bound.decode(z_q), codes["ids"].reshape(len(x), -1)

    h, quant, rec, ids = run(params, seen(g.nhwc("in/x")))
    g.equal(ids, "out/indices")
    g.close_images(h, "out/h")
    g.close_images(quant, "out/quant")
    g.close_images(shown(rec), "out/rec_raw")
    g.close_images(jnp.clip(shown(rec), 0, 1), "out/rec")
    h, _, rec, ids = run(params, seen(g.nhwc("in/x_rect")))
    g.equal(ids, "out/rect_indices")
    g.close_images(h, "out/rect_h")
    g.close_images(jnp.clip(shown(rec), 0, 1), "out/rect_rec")
    decoded = shown(jax.jit(functools.partial(model.apply, method="decode_ids"))({"params": params}, g["in/code"]))
    g.close_images(decoded, "out/decode_code_raw")
    g.close_images(jnp.clip(decoded, 0, 1), "out/decode_code")
    g.close_images(model.apply({"params": params}, g["in/code"], method="lookup"), "out/codebook_entry")
    if "out/shortcut_block" in g:  # not where all levels have as many channels
        net, way, level, _, block = g.config["shortcut_block"].split(".")
        weights = params[net][f"{way}_{level}_block_{block}"]
        channels = weights["norm1"]["scale"].size
        x = ((np.arange(channels * 36) % 11 - 5) / np.float32(4)).reshape(1, channels, 6, 6)
        out = maskgit.ResBlock(weights["conv1"]["kernel"].shape[-1]).apply({"params": weights}, np.moveaxis(x, 1, -1))
        g.close_images(out, "out/shortcut_block")

    fields = config.quantizer.to_dict() | dict(commitment_weight=g.config["beta"])
    vq, book = quantize.make_quantizer(fields), params["quantize"]["embedding"]

    def train(h, book, cotangent=0.0, weight=1.0):
        z_q, codes = vq.apply({"params": {"embedding": book}}, h)
        return weight * codes["loss"] + jnp.sum(cotangent * z_q), z_q

    h = jnp.asarray(g.nhwc("out/h"))
    (loss, quant), (to_h, to_book) = jax.value_and_grad(train, (0, 1), has_aux=True)(h, book)
    g.close(loss, "out/train/loss")
    g.close_images(quant, "out/train/quant")
    g.close_images(to_h, "grad/train/h_loss")
    g.close(to_book, "grad/train/codebook_loss")
    g.close_images(
        jax.grad(train, has_aux=True)(h, book, g.nhwc("in/cotangent"), 0.0)[0], "grad/train/h_straight_through"
    )

    def total(params, x):
        recon, codes = model.clone(quantizer=fields).apply({"params": params}, seen(x))
        return losses.l2_loss(x, shown(recon)) + codes["loss"]

    value, grads = jax.jit(jax.value_and_grad(total))(params, g.nhwc("in/x"))
    g.close(value, "out/train/total")
    g.close_gradients(to_torch(grads, generator_rules(config), ""), "train")


# Transformers.


def load_gpt(g: Golden, kind: str, make) -> tuple[GPT, dict]:
    """The net that `make` builds of the config that `convert` reads off the tensors, and its parameters."""
    tensors = dict(g.weights)
    assert successors.kind_of(tensors) == kind
    successors.split(kind, tensors)
    found = (
        successors.llamagen_fields(tensors, g.config["n_head"])
        if kind == "llamagen"
        else successors.rar_fields(tensors)
    )
    null = g.config.get("class_dropout_prob", 0.1) > 0
    assert found["sizes"]["classes"] == g.config["num_classes"] + null - 1
    net = make(found["gpt"])
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, net.block_size), jnp.int32))["params"]
    params = stack(from_torch(tensors, jax.eval_shape(unstack, shapes), successors.RULES[kind], ""))
    assert not tensors
    back = to_names(kind, params)
    assert back.keys() == g.weights.keys()
    for name, value in back.items():
        np.testing.assert_array_equal(value, g.weights[name])
    assert config_sizes(net) == (g.config["n_layer"], g.config["dim"], g.config["vocab"])
    return net, params


def config_sizes(net: GPT) -> tuple[int, int, int]:
    return net.num_layers, net.embed_dim, net.vocab_size


def to_names(kind: str, params: dict) -> dict[str, np.ndarray]:
    return successors.join(kind, to_torch(unstack(params), successors.RULES[kind], ""))


def make_reader(g: Golden, net: GPT, params: dict, null: int):
    """-> a function that compares a case: greedy ids one by one with the cache, and the logits behind them."""
    net, params = net.clone(unrolled=True), unstack(params)
    total = g["in/idx"].shape[1]

    def decode(params, ids, position, cache, at=None):
        return net.apply({"params": params}, ids, position, cache, at=at, method="decode")

    @functools.partial(jax.jit, static_argnames="guided")
    def greedy(params, prefix, ids, sampling, guided):
        run, init_cache, given = decode, net.init_cache, params
        if guided:
            run, init_cache = guide(decode, init_cache, 1, null, total)
            given = (params, sampling)
        logits, _ = run(given, jnp.concatenate([prefix, ids[:, :-1]], 1), 0, init_cache(len(ids)))
        n = ids.shape[1]
        keys, cells = jax.random.split(jax.random.key(0), len(ids)), jnp.arange(n)
        args = (jnp.zeros_like(ids), jnp.zeros(n, bool), cells, keys, Sampling(top_k=1))
        return logits, sample_full(functools.partial(run, given), init_cache(len(ids)), prefix, *args)

    def read_again(labels: np.ndarray, key: str, sampling: Sampling) -> None:
        logits, drawn = greedy(params, labels[:, None], g[f"{key}/ids"], sampling, guided=sampling.guidance != 1)
        g.equal(drawn, f"{key}/ids")
        g.close(logits, f"{key}/logits")

    return read_again


def make_llamagen(g: Golden):
    side, c = round(g.config["block_size"] ** 0.5), g.config
    sizes = dict(vocab_size=c["vocab"], prefix=1, side=side, block_size=side**2 + 1)
    sizes["cond_size"] = c["num_classes"] + (c["class_dropout_prob"] > 0)
    sizes |= dict(norm_eps=c["norm_eps"], rope_base=c["rope_base"], n_unmasked=0)
    sizes |= dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    fields = ("num_layers", "num_heads", "embed_dim", "mlp_dim", "num_kv_heads")
    return lambda gpt: llamagen.LlamaGPT(**sizes, **{name: gpt.get(name) for name in fields})


@pytest.mark.parametrize("name", files("llamagen_gpt"))
def test_llamagen(name):
    g = Golden(name)
    net, params = load_gpt(g, "llamagen", make_llamagen(g))
    assert net.mlp_dim == g.config["ffn_hidden"]
    assert (net.num_kv_heads or net.num_heads) == (g.config["n_kv_head"] or g.config["n_head"])
    if g.config["ffn_dim_multiplier"] is None:
        assert llamagen.default_mlp_dim(net.embed_dim, g.config["multiple_of"]) == net.mlp_dim
    idx, labels, null = g["in/idx"], g["in/labels"], g.config["num_classes"]
    g.equal(params["cond_embedding"], "out/class_embedding")
    table = llamagen.rotary_table(1, net.side, net.embed_dim // net.num_heads, net.rope_base)
    g.close(table, "out/freqs_cis")
    golden = g["out/rope"]
    x = ((np.arange(golden.size) % 7 - 3) / np.float32(4)).reshape(golden.shape)
    g.close(llamagen.rotate(jnp.asarray(x), jnp.asarray(table[: x.shape[1]])), "out/rope")

    def logits(params, labels, idx):
        return net.apply({"params": params}, jnp.concatenate([labels[:, None], idx], 1))

    def loss(params, labels):
        found = logits(params, labels, idx[:, :-1])
        return losses.cross_entropy(found, idx).mean(), found

    learn = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, found), grads = learn(params, labels)
    g.close(value, "out/train/loss")
    g.close(found, "out/train/logits")
    g.close_gradients(to_names("llamagen", grads), "train")
    if "out/train_drop/loss" in g:
        (value, found), _ = learn(params, np.where(g["in/drop_u"] < g.config["class_dropout_prob"], null, labels))
        g.close(value, "out/train_drop/loss")
        g.close(found, "out/train_drop/logits")
    short = g["out/train_short/logits"].shape[1] - 1
    g.close(jax.jit(logits)(params, labels, idx[:, :short]), "out/train_short/logits")
    g.close(jax.jit(logits)(params, labels, idx), "out/eval_full/logits")

    apart, first = net.clone(unrolled=True), unstack(params)["blocks_0"]

    @jax.jit
    def one_block(params, ids):
        bound = apart.bind({"params": unstack(params)})
        x = bound.embed(ids, 0, None)
        return x, bound.blocks[0](x, None, True)[0]

    x, out = one_block(params, jnp.concatenate([labels[:1, None], idx[:1, :-1]], 1))
    g.close(out, "out/block0/out")
    rope = (1, net.side, net.rope_base)
    attention = llamagen.RotaryAttention(net.num_heads, 0.0, 0.0, jnp.float32, False, net.num_kv_heads, *rope)
    seen = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + net.norm_eps) * first["ln1"]["scale"]
    g.close(attention.apply({"params": first["attn"]}, seen, None, True)[0], "out/block0/attention")

    if "out/cached/logits" in g:
        step = jax.jit(functools.partial(apart.apply, method="decode"))
        cache, found, whole = apart.init_cache(len(idx)), [], np.concatenate([labels[:, None], idx[:, :-1]], 1)
        for position in range(idx.shape[1]):
            part = whole[:, position : position + 1]
            now, cache = step({"params": unstack(params)}, part, jnp.asarray(position), cache)
            found.append(now)
        g.close(np.concatenate(found, 1), "out/cached/logits")
    read_again = make_reader(g, net, params, null)
    for case in g.config["greedy"]:
        guided = case["cfg_interval"] + 2 if case["cfg_interval"] >= 0 else 0
        sampling = Sampling(guidance=max(1.0, case["cfg_scale"]), guidance_codes=guided)  # up to 1 it has none
        read_again(labels, f"out/greedy/{case['name']}", sampling)


@pytest.mark.parametrize("name", files("rar"))
def test_rar(name):
    g = Golden(name)
    c, count = g.config, g.config["seq_len"]
    sizes = dict(vocab_size=c["vocab"], cond_size=c["num_classes"] + 1, num_codes=count, block_size=count + 2)
    sizes |= dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, n_unmasked=0)
    fields = ("num_layers", "num_heads", "embed_dim", "mlp_dim")
    net, params = load_gpt(g, "rar", lambda gpt: rar.RAR(**sizes, **{name: gpt[name] for name in fields}))
    assert (net.num_heads, net.mlp_dim) == (c["n_head"], c["intermediate"])
    idx, labels, orders, null = g["in/idx"], g["in/labels"], g["in/orders"], c["num_classes"]
    dropped = np.where(g["in/drop_u"] < 0.1, null, labels)
    first = c["vocab"] + 1  # the condition's ids, in the table of all
    for key, ids in (("condition_kept", labels), ("condition_dropped", dropped), ("none_condition", null + 0 * labels)):
        g.equal(first + ids, f"out/{key}")
    numbers = np.arange(idx.size).reshape(idx.shape)
    g.equal(np.take_along_axis(numbers, orders, 1), "out/shuffle")
    g.equal(np.take_along_axis(numbers, np.argsort(orders, 1), 1), "out/unshuffle")

    @jax.jit
    def learn(params, labels, orders):
        targets = jnp.take_along_axis(idx, orders, 1)

        def loss(params):
            ids = jnp.concatenate([labels[:, None], targets], 1)
            logits = net.apply({"params": params}, ids, orders=orders)
            return losses.cross_entropy(logits[:, :-1], targets).mean(), logits

        return targets, jax.value_and_grad(loss, has_aux=True)(params)

    raster = np.broadcast_to(np.arange(count), idx.shape)
    cases = {"raster": (labels, raster), "permuted": (labels, orders), "permuted_dropped": (dropped, orders)}
    for case, given in cases.items():
        targets, ((loss, logits), grads) = learn(params, *given)
        g.equal(targets, f"out/{case}/labels")
        g.close(loss, f"out/{case}/loss")
        g.close(logits, f"out/{case}/logits")
        g.close((np.argmax(logits[:, :-1], -1) == targets).mean(), f"out/{case}/correct_tokens")
        g.close_gradients(to_names("rar", grads), case)
    whole = jax.jit(net.apply)({"params": params}, jnp.concatenate([labels[:, None], idx], 1))
    g.close(whole, "out/raster/logits")  # without orders, too

    x = np.linspace(-1, 1, len(idx) * (count + 2) * net.embed_dim, dtype=np.float32)
    x = np.roll(x.reshape(len(idx), count + 2, net.embed_dim), 3, 1) ** 3
    cond, apart = 2 * x[:, ::-1], net.clone(unrolled=True)

    @jax.jit
    def parts(params, x, cond):
        bound = apart.bind({"params": unstack(params)})
        fields = (net.num_heads, 0.0, 0.0, jnp.float32, True, None, net.norm_eps)
        weights = {"params": unstack(params)["blocks_0"]["attn"]}
        attention = rar.NormedAttention(*fields).apply(weights, x, None, True)[0]
        scale, shift = jnp.split(bound.final_modulation(jax.nn.silu(cond)), 2, -1)
        return attention, bound.blocks[0](x, cond, None, True)[0], bound.ln_f(x) * (1 + scale) + shift

    for key, value in zip(("block0/attn", "block0/out", "final_layer"), parts(params, x, cond), strict=True):
        g.close(value, f"out/{key}")

    read_again = make_reader(g, net, params, null)
    for m in g.below(r"(out/gen/g([\d.]+)_p([\d.]+))/ids"):
        # A scale of 0 is RAR's word for none.
        read_again(labels, m[1], Sampling(guidance=float(m[2]) or 1.0, guidance_power=float(m[3])))
        if (key := f"{m[1]}/head_logits") in g:
            ids = g[m[0]][:, :-1]
            both = np.concatenate([np.insert(ids, 0, labels, 1), np.insert(ids, 0, null, 1)])
            g.close(jax.jit(net.apply)({"params": params}, both), key)
    for m in g.below(r"out/cfg_schedule/n(\d+)_g([\d.]+)_p([\d.]+)"):
        sampling = Sampling(guidance=float(m[2]), guidance_power=float(m[3]))
        g.close(sampling.guidance_at(jnp.arange(int(m[1])), int(m[1])), m[0])
    g.close([rar.random_share(step, *c["anneal"]) for step in g["in/anneal_steps"]], "out/random_ratio")


@pytest.mark.parametrize("name", files("tok1d_losses"))
def test_lecam(name):
    """Its values, and the gradients of hinge loss and LeCAM together once the discriminator has begun."""
    golden = Golden(name)
    for args, expected in zip(golden["in/lecam_args"], golden["out/lecam"], strict=True):
        real, fake, mean_real, mean_fake = map(jnp.asarray, args)
        golden.close(losses.lecam_loss(real, fake, {"real": mean_real, "fake": mean_fake}), "out/lecam", expected)
    weight, checked = golden.config["lecam_w"], 0
    for step in range(max(1, golden.config["start"] - golden.config["first_step"]), golden.config["n_steps"]):
        means = dict(zip(("real", "fake"), golden["out/l2/ema"][step - 1], strict=True))

        def loss(real, fake, means=means):
            return losses.hinge_loss(real, fake) + weight * losses.lecam_loss(real, fake, means)

        logits = [golden[f"in/logits_{kind}"][step] for kind in ("real", "fake")]
        value, grads = jax.value_and_grad(loss, (0, 1))(*map(jnp.asarray, logits))
        golden.close(value, "out/l2/d", golden["out/l2/d"][step, 0])
        for kind, grad in zip(("real", "fake"), grads, strict=True):
            golden.close(grad, f"grad/l2/d/step{step}/logits_{kind}")
            checked += 1
    assert checked


@pytest.mark.parametrize("name", [name for name in files("tok1d_disc") if "blur" in name])
def test_blurred_discriminator(name):
    """Logits for two sizes, and the gradient at the image."""
    golden = Golden(name)
    net = BlurredDiscriminator(golden.config["hidden"], golden.config["stages"])
    names = {"block_in.0": "conv_in", "to_logits.0": "conv_mid", "to_logits.2": "conv_out"}
    names |= {f"blocks.{n}.0": f"conv_{n}" for n in range(golden.config["stages"])}
    names |= {f"blocks.{n}.2": f"norm_{n}" for n in range(golden.config["stages"])}
    params = {ours: {} for ours in names.values()}
    for key, value in golden.weights.items():
        layer, leaf = key.rsplit(".", 1)
        kernel = "kernel" if value.ndim == 4 else "scale"
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        params[names[layer]][kernel if leaf == "weight" else "bias"] = value
    judge = jax.jit(lambda x: net.apply({"params": params}, x, True))
    golden.close_images(judge(golden.nhwc("in/x")), "out/logits")
    golden.close_images(judge(golden.nhwc("in/x2")), "out/logits_2")
    grad = jax.grad(lambda x: -judge(x).mean())(golden.nhwc("in/x"))
    golden.close_images(grad, "grad/x_of_minus_mean")
