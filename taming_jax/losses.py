"""Losses: pure functions of arrays, float32 in and out."""

import jax
import jax.numpy as jnp
import optax


def codebook_loss(z: jax.Array, z_q: jax.Array, commitment_weight: float, legacy: bool) -> jax.Array:
    """Codebook and commitment loss (Esser et al. 2021, eq. 4). z, z_q: [...,D] -> [].

    `legacy` weights the codebook term instead of the commitment term, as the original does.
    """
    sg = jax.lax.stop_gradient
    commitment = jnp.mean(jnp.square(sg(z_q) - z))
    codebook = jnp.mean(jnp.square(z_q - sg(z)))
    return commitment + commitment_weight * codebook if legacy else codebook + commitment_weight * commitment


def entropy_loss(distances: jax.Array, temperature: float) -> jax.Array:
    """How unsure the choice of single codes is, less how evenly all are used (Yu et al. 2023, MAGVIT-2, eq. 5). -> [].

    distances [...,K]: squared, of each latent from each code; a term that all codes share may be missing. The choice is
    softmax(-distances / temperature), as in LlamaGen's code, also in the 1e-5 beside the logarithm of the mean.
    """
    log_p = jax.nn.log_softmax(-distances / temperature, -1)
    p = jnp.exp(log_p)
    mean = p.reshape(-1, p.shape[-1]).mean(0)
    return -jnp.sum(p * log_p, -1).mean() + jnp.sum(mean * jnp.log(mean + 1e-5))


def l1_loss(images: jax.Array, recon: jax.Array) -> jax.Array:
    """Mean absolute error. [B,H,W,C] x 2 -> []."""
    return jnp.abs(images - recon).mean()


def l2_loss(images: jax.Array, recon: jax.Array) -> jax.Array:
    """Mean squared error. [B,H,W,C] x 2 -> []."""
    return jnp.square(images - recon).mean()


def bce_loss(maps: jax.Array, logits: jax.Array) -> jax.Array:
    """Binary cross-entropy of every label at every pixel, as the original has it for segmentation maps.

    maps: one-hot [B,H,W,C]; logits [B,H,W,C] -> [].
    """
    return optax.sigmoid_binary_cross_entropy(logits, maps).mean()


PIXEL_LOSSES = {"l1": l1_loss, "l2": l2_loss, "bce": bce_loss}


def hinge_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Discriminator's hinge loss (Lim & Ye 2017), half the sum over real and fake patch logits. -> []."""
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


def vanilla_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Discriminator's cross-entropy (Goodfellow et al. 2014), half the sum over real and fake patch logits. -> []."""
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


DISCRIMINATOR_LOSSES = {"hinge": hinge_loss, "vanilla": vanilla_loss}


def lecam_loss(real: jax.Array, fake: jax.Array, means: dict[str, jax.Array]) -> jax.Array:
    """LeCAM (Tseng et al. 2021, eq. 5): how far the logits' means are from the other kind's running ones. -> [].

    means: {'real': [], 'fake': []}. As in 1d-tokenizer's code, of the batch's means, and 0 where they are on the other
    side.
    """
    far = jax.nn.relu(jnp.stack([real.mean() - means["fake"], means["real"] - fake.mean()]))
    return jnp.sum(jnp.square(far))


def generator_loss(fake: jax.Array) -> jax.Array:
    """Minus the mean patch logit of the reconstructions, for either kind, as in the original. -> []."""
    return -jnp.mean(fake)


def adaptive_weight(nll_grad: jax.Array, adv_grad: jax.Array, delta: float, max_weight: float) -> jax.Array:
    """lambda (Esser et al. 2021, eq. 7): the ratio of both losses' gradient norms at the last layer's kernel. -> [].

    delta, added to the divisor: 1e-4 in the original's code, 1e-6 in the paper. Clipped to [0, max_weight], 1e4 there.
    """
    ratio = jnp.linalg.norm(nll_grad.ravel()) / (jnp.linalg.norm(adv_grad.ravel()) + delta)
    return jnp.clip(ratio, 0, max_weight)


def cross_entropy(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Nats per token. logits [B,T,V], ids [B,T] -> [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), ids).mean(-1)


def cosine_distance(guessed: jax.Array, vectors: jax.Array, known: jax.Array | bool = True) -> jax.Array:
    """Mean of 1 - cosine, [...,D] x 2 -> [], over those where `known` is true, bool [...]; 0 if there are none."""
    far = optax.cosine_distance(guessed, vectors, epsilon=1e-12)  # beside squares of lengths
    known = jnp.broadcast_to(known, far.shape)
    return jnp.sum(jnp.where(known, far, 0)) / jnp.maximum(1, jnp.sum(known))


def masked_cross_entropy(
    logits: jax.Array, ids: jax.Array, hidden: jax.Array, label_smoothing: float, unmasked_weight: float
) -> jax.Array:
    """Nats per hidden token (Chang et al. 2022, MaskGIT, eq. 1). logits [B,T,V], ids [B,T], hidden bool [B,T] -> [].

    label_smoothing: the share of the target that all ids have in common, 0.1 in MaskGIT. unmasked_weight: of the tokens
    that the transformer saw, 0 there.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(ids, logits.shape[-1]), label_smoothing)
    nats = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    weights = jnp.where(hidden, 1.0, unmasked_weight)
    return jnp.sum(nats * weights) / (jnp.sum(weights) + 1e-8)  # the original's guard


def psnr(images: jax.Array, recon: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB, both clipped to [-1, 1]. [B,H,W,C] x 2 -> [B]."""
    mse = jnp.mean(jnp.square(jnp.clip(images, -1, 1) - jnp.clip(recon, -1, 1)) / 4, axis=(1, 2, 3))
    return -10 * jnp.log10(jnp.maximum(mse, 1e-10))


def ssim(images: jax.Array, recon: jax.Array, sigma: float = 1.5, side: int = 11) -> jax.Array:
    """Structural similarity (Wang et al. 2004), the mean over pixels and channels. [B,H,W,C] x 2 in [-1, 1] -> [B].

    With the paper's Gaussian window of 11 pixels and sigma 1.5, K1 = 0.01 and K2 = 0.03, where the window fits; of 255
    levels, in each channel by itself. scikit-image calls this `gaussian_weights=True, use_sample_covariance=False`.
    """
    x, y = ((jnp.clip(z, -1, 1) + 1) / 2 for z in (images, recon))
    side = min(side, *images.shape[1:3])
    window = jnp.exp(-0.5 * jnp.square((jnp.arange(side) - (side - 1) / 2) / sigma))
    window = jnp.outer(window, window) / window.sum() ** 2

    def blur(z: jax.Array) -> jax.Array:
        z = jnp.moveaxis(z, -1, 1)  # each channel is an image of its own
        z = jax.lax.conv(z.reshape(-1, 1, *z.shape[2:]), window[None, None], (1, 1), "VALID", "highest")
        return z.reshape(len(images), -1, *z.shape[2:])

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (alike / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean((1, 2, 3))
