"""What sets of features say about sets of images: pure functions of numpy arrays, in float64."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 1024  # features whose distances are held at once


class Gaussian(NamedTuple):
    """The mean [D] and the covariance [D,D] of `count` feature vectors, float64. Divided by count - 1."""

    count: int
    mean: np.ndarray
    covariance: np.ndarray


def fit_gaussian(parts: Iterable[np.ndarray]) -> Gaussian:
    """Fits parts [n,D] one after another (Chan, Golub & LeVeque 1979): the memory does not grow with their number.

    Raises ValueError for fewer than two vectors, since one has no covariance.
    """
    count, mean, scatter = 0, 0.0, 0.0
    for part in parts:
        part = np.asarray(part, np.float64)
        n, middle = len(part), part.mean(0)
        centred, shift = part - middle, middle - mean
        scatter = scatter + centred.T @ centred + np.outer(shift, shift) * (count * n / (count + n))
        mean = mean + shift * (n / (count + n))
        count += n
    if count < 2:
        raise ValueError(f"{count} feature vectors have no covariance")
    return Gaussian(count, mean, scatter / (count - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet distance of two Gaussians (Dowson & Landau 1982), as in Heusel et al. 2017, eq. 6.

    tr sqrt(A B) is the sum of the square roots of the eigenvalues of sqrt(A) B sqrt(A), which is symmetric: so its
    eigenvalues are real and, but for rounding, not negative, also where a covariance has not its full rank. The
    original's matrix square root fails there and adds 1e-6 to the diagonals.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ b.covariance @ root)
    shift = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(max(0.0, shift @ shift + traces - 2 * np.sqrt(product.clip(0)).sum()))


def inception_score(logits: np.ndarray, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """The mean and the deviation over splits of exp E KL(p(y|x) || p(y)) (Salimans et al. 2016, section 4).

    logits [N,K], N >= splits. They are shuffled first, with torch-fidelity's seed: samples often lie sorted by class.
    """
    logits = np.asarray(logits, np.float64)[np.random.RandomState(seed).permutation(len(logits))]
    log_p = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
    scores = []
    for part in (log_p[i * len(log_p) // splits : (i + 1) * len(log_p) // splits] for i in range(splits)):
        p = np.exp(part)
        scores.append(np.exp((p * (part - np.log(p.mean(0)))).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[N,D] x [M,D] -> [N,M] float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return np.maximum(np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T, 0)


def blocks(count: int) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, count, BLOCK))


def radii(features: np.ndarray, neighbours: int) -> np.ndarray:
    """The squared distance of each vector to its k-th nearest other one. [N,D], N > k -> [N]."""
    found = np.empty(len(features))
    for part in blocks(len(features)):
        near = squared_distances(features[part], features)
        near[np.arange(len(near)), np.arange(part.start, part.start + len(near))] = 0  # itself, whatever rounding says
        found[part] = np.partition(near, neighbours, 1)[:, neighbours]
    return found


def precision_recall(samples: np.ndarray, reference: np.ndarray, neighbours: int = 3) -> tuple[float, float]:
    """Kynkäänniemi et al. 2019, eq. 1 and 2: the share of samples that lie within a ball around a reference, whose
    radius is the distance to its k-th neighbour there, and the reverse. [N,D] x [M,D], both longer than k.
    """
    of_samples, of_reference = radii(samples, neighbours), radii(reference, neighbours)
    inside, covered = np.zeros(len(samples), bool), np.zeros(len(reference), bool)
    for part in blocks(len(samples)):
        near = squared_distances(samples[part], reference)
        inside[part] = (near <= of_reference).any(1)
        covered |= (near <= of_samples[part, None]).any(0)
    return float(inside.mean()), float(covered.mean())


def nearest(samples: np.ndarray, reference: Iterable[np.ndarray]) -> np.ndarray:
    """The reference that is nearest to each sample, by index. [N,D] x parts [M,D] -> [N] int."""
    least, found, start = np.full(len(samples), np.inf), np.zeros(len(samples), int), 0
    for part in reference:
        distances = squared_distances(samples, part)
        at, closer = distances.argmin(1), distances.min(1) < least
        least, found = np.where(closer, distances.min(1), least), np.where(closer, start + at, found)
        start += len(part)
    return found
