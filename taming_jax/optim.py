"""Optimizers from a config."""

import jax
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, muon

SCHEDULES, OPTIMIZERS = ("constant", "cosine"), ("adam", "muon")
LAST_LAYERS = {"head", "conv_out"}  # the encoder's, too, in front of the quantizer
MATCH_ADAM = 0.2  # the root mean square of an update of AdamW's, over its rate


def learning_rate(optim: ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup_steps`, then 'constant' (as the original) or 'cosine' to `final_share` of it."""
    if optim.schedule == "constant":
        after = optax.constant_schedule(optim.learning_rate)
    else:
        after = optax.cosine_decay_schedule(optim.learning_rate, max(1, steps - optim.warmup_steps), optim.final_share)
    warmup = optax.linear_schedule(0, optim.learning_rate, optim.warmup_steps)
    return optax.join_schedules([warmup, after], [optim.warmup_steps])


def decayed(params: dict) -> dict:
    """Which weights decay: kernels, but no bias, norm or embedding; those are the original's (mingpt's) groups."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def matrices(params: dict) -> dict:
    """Which axes of a weight Muon takes for a matrix's; None for what Adam learns: all but kernels, and LAST_LAYERS.

    A convolution's window and inputs are one axis (Jordan 2024); layers of a stack are matrices of their own. Jordan
    leaves first layers to Adam, too; here those are Muon's.
    """

    def axes(path: tuple, weight: jax.Array) -> MuonDimensionNumbers | None:
        *above, name = (part.key for part in path)
        if name != "kernel" or LAST_LAYERS & set(above):
            return None
        window = range(weight.ndim - 4, weight.ndim - 2) if weight.ndim >= 4 else ()
        return MuonDimensionNumbers((*window, weight.ndim - 2), weight.ndim - 1)

    return jax.tree_util.tree_map_with_path(axes, params)


def make_optimizer(optim: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm (`clip_norm`, 0 for none), then the optimizer of `optim.name`.

    adam: AdamW where `weight_decay` is above 0. muon: the updates of matrices are made orthogonal (Jordan 2024), of
    the size that AdamW's have (Liu et al. 2025, arXiv 2502.16982, section 2.2), so that rates are comparable. What it
    leaves is Adam's with Nesterov's momentum, as optax has it, and does not decay. `eps` is also beside Muon's norms.
    """
    rate, fields = learning_rate(optim, steps), dict(eps=optim.eps, weight_decay=optim.weight_decay)
    if optim.get("name", "adam") == "muon":
        learn = muon(
            rate,
            **fields,
            beta=optim.momentum,
            consistent_rms=MATCH_ADAM,
            muon_weight_dimension_numbers=matrices,
            adam_b1=optim.b1,
            adam_b2=optim.b2,
        )
    else:
        learn = optax.adamw(rate, **fields, b1=optim.b1, b2=optim.b2, mask=decayed)
    return optax.chain(
        optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm > 0 else optax.identity(),
        learn,
    )
