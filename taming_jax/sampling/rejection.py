"""Rejection sampling: keeps the images that a classifier scores best (Esser et al. 2021, section 4.2)."""

from collections.abc import Callable

import numpy as np

from taming_jax.console import bar


def accept(
    images: np.ndarray,
    labels: np.ndarray,
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    acceptance_rate: float,
    batch_size: int = 64,
) -> np.ndarray:
    """The paper's rejection sampling by a classifier: finds the images of each label that score best.

    images: uint8 [N,H,W,3], labels: [N], as `--npz` has them. score: (images [b,H,W,3], labels [b]) -> [b], a
    classifier's probability of the label, say. acceptance_rate: the share of each label's images to keep, in (0, 1];
    at least one is kept. Returns the indices of the images to keep, ascending. Raises ValueError for other rates, and
    for scores of another shape or not finite.
    """
    if not 0 < acceptance_rate <= 1:
        raise ValueError(f"acceptance_rate={acceptance_rate:g}: it must be in (0, 1]")
    scores = []
    for start in bar(range(0, len(images), batch_size), "scoring", unit="batch"):
        part = slice(start, start + batch_size)
        given = np.asarray(score(images[part], labels[part]), np.float64)
        if given.shape != labels[part].shape:
            raise ValueError(f"scores of {len(labels[part])} images: one each; got shape {given.shape}")
        if not np.isfinite(given).all():
            raise ValueError(f"scores from image {start} on are not all finite")
        scores.append(given)
    ranked, kept = np.argsort(-np.concatenate(scores), kind="stable"), []
    for label in np.unique(labels):
        of_label = ranked[labels[ranked] == label]
        kept.append(of_label[: max(1, round(acceptance_rate * len(of_label)))])
    return np.sort(np.concatenate(kept))
