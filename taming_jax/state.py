"""The train state, one pytree keyed by net name, and the functions that make up a task."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from taming_jax.data.transforms import Annotator
from taming_jax.parts import without

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and writes. Every top-level key of `params` ('gen', 'disc'; or 'gpt') is one net.

    step: int32 []. params: float32 trees. opt: optax states under the same keys, one optimizer per net.
    extra: values without gradients, under the same keys: {'disc': {'batch_stats': ...}, 'gen': {'ema': ...}}.
    frozen: nets that are only read (LPIPS, the first stage): arguments of the step, never constants, never saved.
    """

    step: jax.Array
    params: dict
    opt: dict
    extra: dict
    frozen: dict


class Task(NamedTuple):
    """A stage of training. All functions are pure except `load_frozen` (reads files) and `pictures` (keeps programs).

    init: (key, begin=None, frozen=None) -> TrainState without frozen nets, of which the nets that learn may make use at
    their start, and without which they begin by chance; what `begin` holds (see `origin.load`) is laid over it.
    load_frozen: () -> pytree of numpy arrays.
    phase: (step) -> the static part of the step's program, which is compiled anew when this changes.
    train_step: (state, batch, key, phase) -> (state, metrics).
    eval_step: (state, batch) -> metrics over the rows where batch['mask'] is 1.
    pictures: (state, batch) -> {name: images.Sheet or animation.Animation} for people to look at; not to be jitted.
    alarms: (numbers of some steps) -> {what: a line} for what runs away.
    learns_convolutions: see `backend.compiler_options`. annotator: see `transforms.Augment`; None for images alone.
    """

    init: Callable
    load_frozen: Callable
    phase: Callable
    train_step: Callable
    eval_step: Callable
    pictures: Callable
    alarms: Callable
    learns_convolutions: bool
    annotator: Annotator | None


def create(
    optimizers: dict, params: dict, extra: dict, ema_decay: dict[str, float], freeze: Sequence[str] = ()
) -> TrainState:
    """A state at step 0. Nets whose `ema_decay` is above 0 start their average at their initial weights.

    freeze: the parts of nets that do not learn; optimizers keep nothing of them.
    """
    extra = {name: dict(extra.get(name, {})) for name in params}
    for name, decay in ema_decay.items():
        if decay > 0:
            extra[name]["ema"] = jax.tree.map(jnp.copy, params[name])  # two donated leaves must not share a buffer
    opt = {name: optimizer.init(without(name, params[name], freeze)) for name, optimizer in optimizers.items()}
    return TrainState(jnp.zeros((), jnp.int32), params, opt, extra, {})


def accumulate(part: Callable, carry: PyTree, batch: dict, key: jax.Array, parts: int) -> tuple:
    """The mean of the gradients of `parts` equal parts of a batch, one after another, with the memory of one.

    part: (carry, batch, key) -> (carry, gradients, metrics, out). Returns the same: the metrics of all parts
    merged, `out` with a leading axis [parts] if there are several. Each part has every `parts`-th row, so that no row
    changes its device.
    """
    if parts == 1:
        return part(carry, batch, key)

    def add(so_far, given):
        carry, total = so_far
        carry, grads, *rest = part(carry, *given)
        return (carry, jax.tree.map(jnp.add, total, grads)), rest

    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch)
    keys = jax.random.split(key, parts)
    shapes = jax.eval_shape(part, carry, jax.tree.map(lambda x: x[0], split), key)[1]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (carry, total), (logged, out) = jax.lax.scan(add, (carry, zeros), (split, keys))
    return carry, jax.tree.map(lambda x: x / parts, total), logged.reduce(), out


def apply_updates(
    state: TrainState, optimizers: dict, grads: dict, extra: dict, ema_decay: dict[str, float], finite: jax.Array
) -> TrainState:
    """Applies one optax update to each net that has gradients, updates the averages, and adds 1 to the step.

    Modules of a net without gradients stay as they are, and so do their averages. `extra` replaces the collections
    that it names. Unless `finite`, only the step changes.
    """
    params, opt = dict(state.params), dict(state.opt)
    new_extra = {name: {**state.extra[name], **extra.get(name, {})} for name in params}
    for name in grads:
        learned = {module: params[name][module] for module in grads[name]}
        updates, opt[name] = optimizers[name].update(grads[name], opt[name], learned)
        learned = optax.apply_updates(learned, updates)
        params[name] = {**params[name], **learned}
        if "ema" in new_extra[name]:
            # The first weights are noise: over 1/(1 - decay) steps, average over the weights since the start.
            decay = jnp.minimum(ema_decay[name], (1 + state.step) / (10 + state.step))
            average = new_extra[name]["ema"]
            before = {module: average[module] for module in learned}
            new_extra[name]["ema"] = {**average, **optax.incremental_update(learned, before, 1 - decay)}
    new = state.replace(step=state.step + 1, params=params, opt=opt, extra=new_extra)
    return choose(finite, new, state.replace(step=new.step))


def is_finite(loss: jax.Array, grads: PyTree, *others: PyTree) -> jax.Array:
    """Whether a step may be applied: bool []. It may not where a number is not finite, or is not once it is squared.

    Adam keeps squares of gradients: those of 1e20 are infinities for good, while loss and weights stay finite.
    """
    numbers = [x for x in jax.tree.leaves((loss, others)) if jnp.issubdtype(x.dtype, jnp.floating)]
    each = [jnp.isfinite(x).all() for x in (*numbers, optax.tree.norm(grads))]
    return jnp.stack(each).all()


def choose(finite: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """The new state if the step was finite, else the old one; leaf by leaf, so that one buffer serves both."""
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(finite, a, b), new, old)


def averaged(state: TrainState, name: str) -> dict:
    """The weights of a net to evaluate and sample with: the average where there is one."""
    return state.extra[name].get("ema", state.params[name])
