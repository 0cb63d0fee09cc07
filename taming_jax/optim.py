"""Optimizers from a config."""

import jax
import optax
from ml_collections import ConfigDict

SCHEDULES = ("constant", "cosine")


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


def make_optimizer(optim: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm (`clip_norm`, 0 for none), then Adam; AdamW where `weight_decay` is above 0."""
    return optax.chain(
        optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm > 0 else optax.identity(),
        optax.adamw(
            learning_rate(optim, steps),
            b1=optim.b1,
            b2=optim.b2,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            mask=decayed,
        ),
    )
