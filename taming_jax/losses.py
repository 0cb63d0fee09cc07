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


def psnr(images: jax.Array, recon: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB, both clipped to [-1, 1]. [B,H,W,C] x 2 -> [B]."""
    mse = jnp.mean(jnp.square(jnp.clip(images, -1, 1) - jnp.clip(recon, -1, 1)) / 4, axis=(1, 2, 3))
    return -10 * jnp.log10(jnp.maximum(mse, 1e-10))
