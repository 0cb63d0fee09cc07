"""Numbers on their way from the step to the files."""

import jax
import jax.numpy as jnp
import numpy as np

from taming_jax import metrics


def test_metrics_of_as_many_names_are_never_taken_for_one_another():
    """jit's cache compares trees: those of two dataclasses with as many fields were equal, those of dicts are not."""
    for i in range(60):
        names = {f"loss_{i}", "l1_loss"} if i % 2 else {f"psnr_{i}", "lpips"}
        collected = metrics.collection({name: jnp.full((), 2.0) for name in names})
        assert metrics.summarize(metrics.merge(collected, collected)) == dict.fromkeys(names, 2.0)
        other = metrics.collection({name: jnp.ones(()) for name in ("a", f"b_{i}")})
        assert jax.tree.structure(collected) != jax.tree.structure(other)


def test_steps_that_are_skipped_count_for_nothing_but_themselves():
    window = None
    for loss in (1.0, np.nan, 3.0, np.inf, np.nan):
        logged = metrics.collection({"loss": jnp.array(loss)}, codes=metrics.CodeUse(jnp.ones(4)))
        logged = metrics.where_finite(jnp.isfinite(loss), logged)
        window = logged if window is None else metrics.merge(window, logged)
    found = metrics.summarize(window)
    assert found["loss"] == 2 and (found["steps"], found["skipped"], found["skipped_in_row"]) == (5, 3, 2)
    assert window.by_name["codes"].counts.tolist() == [2, 2, 2, 2]
