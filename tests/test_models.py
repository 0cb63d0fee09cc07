"""The models: invariants, and numbers of other implementations. Those of the original are in tests/test_golden.py."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lpips_j import lpips as lpips_j

from configs import imagenet_vq
from taming_jax import losses
from taming_jax.errors import UserError
from taming_jax.first_stage import make_first_stage
from taming_jax.models import autoencoder, convolution, perceptual
from taming_jax.models.gpt import BLOCK, GPT, align, attend_all, bfloat16_product
from taming_jax.models.quantize import FiniteScalarQuantizer, restart_dead_codes
from taming_jax.models.vqgan import VQModel
from tests.tiny import changed


def vq_model(**fields) -> VQModel:
    quantizer = dict(name="vq", codebook_size=16, embed_dim=4, commitment_weight=0.25, legacy=False)
    return VQModel(
        **(
            dict(
                ch=32,
                ch_mult=(1, 2),
                num_res_blocks=1,
                attn_resolutions=(8,),
                resolution=16,
                z_channels=32,
                out_ch=3,
                quantizer=quantizer,
            )
            | fields
        )
    )


def test_attention_sits_where_the_config_says():
    names = lambda **fields: set(  # noqa: E731
        jax.eval_shape(vq_model(**fields).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]["encoder"]
    )
    assert names(attn_resolutions=()) ^ names(attn_resolutions=(8,)) == {"down_1_attn_0"}
    assert names(attn_resolutions=()) ^ names(attn_resolutions=(16,)) == {"down_0_attn_0"}


def test_patches_are_channels_on_the_way_through():
    """A square of pixels is one place of the network; an image comes back as large as it was."""
    x = jnp.arange(2 * 8 * 12 * 3, dtype=jnp.float32).reshape(2, 8, 12, 3)
    cut = autoencoder.to_patches(x, 4)
    np.testing.assert_array_equal(cut[1, 1, 2].reshape(4, 4, 3), x[1, 4:, 8:])
    np.testing.assert_array_equal(autoencoder.from_patches(cut, 4), x)
    model, images = vq_model(patch=2, attn_resolutions=()), jnp.zeros((1, 16, 24, 3))
    recon, codes = jax.eval_shape(lambda key: model.init_with_output(key, images)[0], jax.random.key(0))
    assert (recon.shape, codes["ids"].shape) == ((1, 16, 24, 3), (1, 4, 6))


def test_attention_sits_at_the_same_places_of_larger_patches():
    config = changed(imagenet_vq.get_config(), data__size=512, model__patch=2)
    encoder = make_first_stage(config).parameter_shapes()["encoder"]
    assert encoder.keys() == make_first_stage(imagenet_vq.get_config()).parameter_shapes()["encoder"].keys()


def test_bfloat16_computes_in_it_but_keeps_float32_parameters_and_outputs():
    x = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3), minval=-1)
    params = jax.jit(vq_model(dtype=jnp.bfloat16).init)(jax.random.key(1), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    ids = jax.random.randint(jax.random.key(2), (1, 8, 8), 0, 16)
    decode = jax.jit(lambda p, dtype: vq_model(dtype=dtype).apply(p, ids, method="decode_ids"), static_argnums=1)
    recon, full = decode(params, jnp.bfloat16), decode(params, jnp.float32)
    codes = jax.eval_shape(vq_model(dtype=jnp.bfloat16).apply, params, x)[1]
    assert recon.dtype == codes["loss"].dtype == jnp.float32
    assert 0 < jnp.abs(recon - full).mean() < 0.01


def test_only_codes_idle_for_long_move_onto_latents_that_are_badly_served():
    embedding, latents = jnp.arange(8.0).reshape(4, 2), 100 + jnp.arange(10.0).reshape(5, 2)
    idle, counts = jnp.array([0, 2, 1, 5]), jnp.array([3.0, 0.0, 0.0, 1.0])
    errors = jnp.array([0.0, 0.0, 1.0, 0.0, 3.0])
    dead, goal, after = restart_dead_codes(idle, counts, latents, errors, 3, jax.random.key(0))
    moved = jnp.where(dead[:, None], goal, embedding)
    np.testing.assert_array_equal(after, [0, 0, 2, 0])
    np.testing.assert_array_equal(moved[np.array([0, 2, 3])], embedding[np.array([0, 2, 3])])
    assert moved[1].tolist() in latents.tolist()

    _, goal, _ = restart_dead_codes(jnp.zeros(4000), jnp.zeros(4000), latents, errors, 3, jax.random.key(1))
    rows, counts = np.unique((goal[:, 0] - 100) / 2, return_counts=True)
    np.testing.assert_array_equal(rows, [2, 4])  # those with an error
    np.testing.assert_allclose(counts / 4000, [1 / 4, 3 / 4], atol=0.03)


def test_finite_scalars_by_hand():
    """Every id has its code, codes are quantized to themselves, and nothing leaves the outermost levels."""
    fsq = FiniteScalarQuantizer((5, 4), eps=1e-3)
    codes = fsq.apply({}, jnp.arange(20), method="lookup")
    np.testing.assert_array_equal(codes[:6], [[-1, -1], [-0.5, -1], [0, -1], [0.5, -1], [1, -1], [-1, -0.5]])
    np.testing.assert_array_equal(np.unique(codes[:, 1]), [-1, -0.5, 0, 0.5])  # of an even number, one more below 0
    z = 1.5 * jax.random.normal(jax.random.key(0), (40, 9, 2))
    z_q, found = fsq.apply({}, z)
    assert set(np.unique(found["ids"])) == set(range(20)) and found["ids"].shape == (40, 9)
    np.testing.assert_array_equal(fsq.apply({}, found["ids"], method="lookup"), z_q)
    far, extreme = fsq.apply({}, jnp.array([[1e6, 1e6], [-1e6, -1e6], [0.0, 0.0]]))
    np.testing.assert_allclose(far, [[1, 0.5], [-1, -1], [0, 0]], atol=1e-6)
    assert extreme["ids"].tolist() == [19, 0, 12] and extreme["loss"] == 0


def test_finite_scalars_pass_the_gradient_of_their_bound():
    fsq = FiniteScalarQuantizer((5, 4), eps=1e-3)
    z = jax.random.normal(jax.random.key(0), (6, 2))
    through = jax.grad(lambda z: jnp.sum(fsq.apply({}, z)[0] * jnp.arange(12.0).reshape(6, 2)))(z)
    bound = jax.grad(lambda z: jnp.sum(fsq.bound(z) / 2 * jnp.arange(12.0).reshape(6, 2)))(z)
    np.testing.assert_allclose(through, bound, rtol=1e-6)
    for levels, eps, message in (
        ((5, 1), 1e-3, r"levels=\(5, 1\)"),
        ((5, 4), 0.7, "eps=0.7: it must be in"),
        ((8, 2), 1e-3, "3 or more"),
    ):
        with pytest.raises(UserError, match=message):
            FiniteScalarQuantizer(levels, eps).check()


def test_psnr_by_hand():
    x = jnp.zeros((1, 4, 4, 3))
    np.testing.assert_allclose(losses.psnr(x, x + 0.2), [20.0], rtol=1e-5)  # 0.1 of a range of 1


@pytest.fixture(scope="module")
def lpips_weights():
    return perceptual.load_weights()


@pytest.mark.parametrize("side", [32, 48])  # at 32 the last maps are smaller than their kernel
def test_lpips_equals_lpips_j(side, lpips_weights, monkeypatch):
    """The package's own module, given the same weights."""
    x, y = jax.random.uniform(jax.random.key(0), (2, 2, side, side, 3), minval=-1)
    files = {
        "vgg16_weights.h5": {k: {"weight": v["kernel"], "bias": v["bias"]} for k, v in lpips_weights["vgg"].items()},
        "lpips_lin.h5": {f"lin{i}": w.reshape(1, 1, -1, 1) for i, w in enumerate(lpips_weights["lins"])},
    }
    monkeypatch.setattr(lpips_j, "hf_hub_download", lambda repo_id, filename: filename)
    monkeypatch.setattr(lpips_j.h5py, "File", lambda name, mode="r": files[name])
    module = lpips_j.LPIPS()
    theirs = module.apply(module.init(jax.random.key(0), x, y), x, y)
    np.testing.assert_allclose(jax.jit(perceptual.lpips)(lpips_weights, x, y), theirs.ravel(), rtol=1e-5)


def test_lpips_has_a_finite_gradient_where_features_are_zero(lpips_weights):
    dead = {"vgg": jax.tree.map(np.zeros_like, lpips_weights["vgg"]), "lins": lpips_weights["lins"]}
    x, y = jax.random.uniform(jax.random.key(0), (2, 1, 16, 16, 3), minval=-1)
    grad = jax.jit(jax.grad(lambda y, weights: perceptual.lpips(weights, x, y).sum()))(y, dead)
    assert np.isfinite(grad).all()


def test_no_arbitrary_unpickling(tmp_path):
    import pickle

    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print is not an array"):
        perceptual._from_package(path)


def gpt(**fields) -> GPT:
    rates = dict(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    return GPT(
        **(dict(vocab_size=11, block_size=8, num_layers=2, num_heads=2, embed_dim=16, n_unmasked=0) | rates | fields)
    )


def test_gpt_is_causal():
    """No position's logits move with a later token's embedding, and the last's do with every earlier one's."""
    model, ids = gpt(), jnp.arange(8)[None]
    params = jax.jit(model.init)(jax.random.key(0), ids)["params"]

    @jax.jit
    def logit_of(t):
        return jax.grad(lambda p: jnp.square(model.apply({"params": p}, ids)[0, t]).sum())(params)["token_embedding"]

    for t in (0, 3, 7):
        seen = np.abs(logit_of(t)).sum(-1)[:8] > 0
        np.testing.assert_array_equal(seen, np.arange(8) <= t)


def test_attention_in_blocks_is_attention():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 2 * BLOCK + 7, 2, 8))
    expected = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    np.testing.assert_allclose(attend_all(q, k, v, None), expected, atol=2e-6)


def test_bfloat16_products_and_their_gradients_sum_in_float32():
    """Against float64 on the same bfloat16 numbers: what differs is one rounding of the result, up to 2^-8 of it."""
    x, w, g = (
        jax.random.normal(jax.random.key(i), shape, jnp.bfloat16)
        for i, shape in enumerate(((2, 40, 300), (300, 9), (2, 40, 9)))
    )
    y, pull = jax.vjp(bfloat16_product, x, w)
    x, w, g64 = (np.asarray(a, np.float64) for a in (x, w, g))
    expected = (x @ w, g64 @ w.T, np.einsum("btd,bte->de", x, g64))
    for found, exact in zip((y, *pull(g)), expected, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-4)


def test_bfloat16_learns_as_float32_does():
    """Gradients of a GPT in half precision lie within its rounding of those in full."""
    ids = jax.random.randint(jax.random.key(1), (2, 8), 0, 11)
    params = jax.jit(gpt().init)(jax.random.key(0), ids)

    def gradient(dtype):
        def loss(p):
            logits = gpt(dtype=dtype).apply(p, ids)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], 2).mean()

        return jnp.concatenate([x.ravel() for x in jax.tree.leaves(jax.jit(jax.grad(loss))(params))])

    half, full = gradient(jnp.bfloat16), gradient(jnp.float32)
    assert 0 < jnp.linalg.norm(half - full) < 0.02 * jnp.linalg.norm(full)


def test_on_cpus_bfloat16_sums_products_with_weights_in_float32():
    """Forwards and backwards, or they are slow; and rematerialisation still knows them for products."""
    ids = jnp.zeros((2, 8), jnp.int32)
    params = jax.jit(gpt().init)(jax.random.key(0), ids)

    def products(remat):
        model = gpt(dtype=jnp.bfloat16, remat=remat)
        return re.findall(
            r":(\w+)\[([\d,]+)\] = dot_general",
            str(jax.make_jaxpr(jax.grad(lambda p: model.apply(p, ids).sum()))(params)),
        )

    assert {dtype for dtype, shape in products("none") if shape.count(",") < 3} == {"f32"}
    assert len(products("none")) < len(products("dots")) < len(products("full"))


def test_an_aligned_gpt_begins_at_its_own_place():
    """Of the condition, each code's first scores are highest for what lies where it asks for the next code."""
    model = gpt(block_size=32, embed_dim=64)
    places = np.concatenate([np.indices((4, 4)).reshape(2, -1).T] * 2)
    places = np.concatenate([places, np.arange(32)[:, None] >= 16], 1)
    params = align(jax.jit(model.init)(jax.random.key(0), jnp.arange(8)[None])["params"], places, model.num_heads)
    x, attn = jax.nn.standardize(params["position_embedding"]), params["blocks"]["attn"]
    for layer in range(model.num_layers):
        q, k = (x @ attn[name]["kernel"][layer] for name in ("query", "key"))
        scores = q[16:] @ k[:16].T / 32**0.5
        np.testing.assert_array_equal(scores.argmax(1), np.arange(16))
        assert 1 < jnp.diag(scores).mean() / model.num_heads < 6


def test_where_ids_name_places_a_code_begins_at_those_around_it():
    """Corners of boxes, say: of all names, its own place's or a neighbour's scores highest, whatever code stands there:
    half of them are names, too."""
    model = gpt(vocab_size=512, block_size=258, embed_dim=256)
    grid = np.indices((16, 16)).reshape(2, -1).T
    places = np.concatenate([np.zeros((2, 2)), grid])
    places = np.concatenate([places, np.arange(258)[:, None] >= 2], 1)
    before = jax.jit(model.init)(jax.random.key(0), jnp.arange(8)[None])["params"]
    params = align(before, places, model.num_heads, named=grid)
    tokens, positions, attn = params["token_embedding"], params["position_embedding"], params["blocks"]["attn"]
    np.testing.assert_array_equal(tokens[256:], before["token_embedding"][256:])
    codes = jax.nn.standardize(positions[2:] + tokens[jax.random.randint(jax.random.key(1), (256,), 0, 512)])
    names = jax.nn.standardize(tokens[:256] + positions[0])
    q, k = codes @ attn["query"]["kernel"][0], names @ attn["key"]["kernel"][0]
    away = np.abs(grid[(q @ k.T).argmax(1)] - grid).max(1)
    assert (away <= 1).mean() > 0.9


def test_gpt_drops_only_in_training():
    model = gpt(embd_pdrop=0.5, attn_pdrop=0.5, resid_pdrop=0.5)
    ids = jnp.arange(8)[None]
    params, apply = jax.jit(model.init)(jax.random.key(0), ids), jax.jit(model.apply, static_argnums=2)
    np.testing.assert_array_equal(apply(params, ids), apply(params, ids))
    train = [apply(params, ids, True, rngs={"dropout": jax.random.key(k)}) for k in (1, 2)]
    assert np.abs(train[0] - train[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("side", "channels", "kernel", "stride", "padding"),
    [
        (9, (4, 5), 3, 1, "SAME"),  # Winograd's products, of an odd map
        (8, (4, 5), 3, 1, "VALID"),
        (9, (40, 3), 3, 1, "SAME"),  # all places in one product
        (9, (4, 5), 3, 2, ((0, 1), (0, 1))),
        (8, (4, 5), 4, 2, ((1, 1), (1, 1))),
        (5, (5, 6), 1, 1, "SAME"),
    ],
)
def test_convolutions_of_large_maps_are_xlas(side, channels, kernel, stride, padding, monkeypatch):
    monkeypatch.setattr(convolution, "LARGE", 0)
    monkeypatch.setattr(convolution, "LARGE_3X3", 0)
    monkeypatch.setattr(convolution, "WIDE", 4)
    layout = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))
    shapes = [(2, side, side + 1, channels[0]), (kernel, kernel, *channels)]
    x, weights = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))
    results = []
    for conv in (convolution.conv_general_dilated, jax.lax.conv_general_dilated):
        made, pull = jax.vjp(lambda x, w, conv=conv: conv(x, w, (stride, stride), padding, **layout), x, weights)
        results.append((made, *pull(jax.random.normal(jax.random.key(2), made.shape))))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * float(jnp.abs(theirs).max()))


def test_convolutions_that_do_not_learn_and_others_than_float32_are_xlas(monkeypatch):
    """Else an exported program, or a checkpoint's codes, would follow the machine that made them."""
    monkeypatch.setattr(convolution, "LARGE", 0)
    monkeypatch.setattr(convolution, "LARGE_3X3", 0)
    monkeypatch.setattr(convolution, "WIDE", 4)
    layer = convolution.Conv(4, (3, 3))
    params = layer.init(jax.random.key(0), jnp.ones((1, 8, 8, 4)))
    exported = jax.export.export(jax.jit(layer.apply))(
        params, jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), 8, 8, 4), jnp.float32)
    )
    assert exported.mlir_module().count("stablehlo.convolution") == 1
    assert "dot_general" not in exported.mlir_module()
    loss = lambda p, dtype: convolution.Conv(4, (3, 3), dtype=dtype).apply(p, jnp.ones((1, 8, 8, 4))).sum()  # noqa: E731
    made = {
        dtype: str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, dtype)) for dtype in ("float32", "bfloat16")
    }
    assert "dot_general" in made["float32"] and "dot_general" not in made["bfloat16"]


@pytest.mark.slow
def test_a_net_of_large_maps_learns_the_same(monkeypatch):
    """Through norms, down-sampling, mirrored borders and rematerialisation."""
    images, grads = jax.random.uniform(jax.random.key(0), (2, 8, 12, 3), minval=-1), []
    net = autoencoder.Encoder(32, (1, 2), 1, (), 8, 8, remat=True, local=True)
    params = net.init(jax.random.key(1), images)
    for limit in (0, 2**62):
        monkeypatch.setattr(convolution, "LARGE", limit)
        monkeypatch.setattr(convolution, "LARGE_3X3", limit)
        monkeypatch.setattr(convolution, "WIDE", 32)
        grads.append(jax.jit(jax.grad(lambda p: (net.apply(p, images) ** 2).sum()))(params))
    for ours, xlas in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(ours, xlas, rtol=0, atol=1e-5 * float(jnp.abs(xlas).max()))


def test_gpt_keeps_its_parameters_in_float32():
    params = jax.jit(gpt(dtype=jnp.bfloat16).init)(jax.random.key(0), jnp.arange(8)[None])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_a_local_networks_codes_depend_on_what_is_near():
    """In the middle, a crop's latents are those of the whole, and so are its pixels; the vqgan's are not."""
    image = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    latents = jax.random.normal(jax.random.key(1), (1, 64, 64, 32))
    coders = (lambda m, x: m.encoder(x), image, 4), (lambda m, x: m.decoder(x), latents, 16)
    for network in ("local", "vqgan"):
        model = vq_model(network=network, attn_resolutions=())
        params = jax.jit(model.init)(jax.random.key(2), image[:, :2, :2])  # of one code
        for method, seen, cut in coders:
            code = jax.jit(functools.partial(model.apply, method=method))
            whole, crop = code(params, seen), code(params, seen[:, 8:56, 8:56])
            middle = crop.shape[1] // 2
            difference = abs(whole[:, cut + middle, cut + middle] - crop[:, middle, middle]).max()
            assert (difference < 1e-5) == (network == "local")
