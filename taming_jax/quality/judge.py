"""Judges samples by a reference: numbers by name, and the protocol that they follow."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from taming_jax.errors import ArgumentError, UserError, reason
from taming_jax.quality.features import Seen
from taming_jax.quality.inception import SPATIAL
from taming_jax.quality.networks import Network, sha256
from taming_jax.quality.statistics import (
    Gaussian,
    fit_gaussian,
    frechet_distance,
    inception_score,
    precision_recall,
)
from taming_jax.versions import versions_of

SFID = 17 * 17 * SPATIAL  # features of sFID, of so many places
NEIGHBOURS = 3  # of precision and recall, as in their paper
SPLITS = 10  # of the Inception Score
MOST = 10_000  # pictures of each that precision and recall are of, the first ones: their cost grows with the square
FEW = 10_000  # samples, below which a Fréchet distance says more about their number than about them


class Reference(NamedTuple):
    """What samples are compared with: features, or the Gaussians alone where only these are known.

    gaussians: by the name of the features, 'pool' and maybe 'spatial'. about: as in `Pictures`.
    """

    gaussians: dict[str, Gaussian]
    seen: Seen | None
    about: dict


def refer(seen: Seen, about: dict) -> Reference:
    """A reference of features."""
    return Reference(gaussians_of(seen, "the reference"), seen, about)


def gaussians_of(seen: Seen, word: str) -> dict[str, Gaussian]:
    """The Gaussians of features, by their names. Raises UserError for fewer than two pictures."""
    if seen.count < 2:
        raise UserError(
            f"{word} is one picture: a Fréchet distance needs two at least, and says something from thousands"
        )
    return {name: fit_gaussian(seen.each(name)) for name in seen.names() if name != "logits"}


def judge(network: Network, samples: Seen, reference: Reference) -> dict[str, float]:
    """All numbers that the features allow, called as `Network.named` says.

    frechet, spatial: squared Fréchet distances. precision, recall: of the first MOST pictures, where the reference has
    features, and both have more pictures than neighbours. inception_score, inception_score_std: Inception's, where
    there is a picture a split.
    """
    found = {}
    for name, gaussian in gaussians_of(samples, "the set of samples").items():
        if name in reference.gaussians:
            number = {"pool": "frechet"}.get(name, name)
            found[network.named(number)] = frechet_distance(gaussian, reference.gaussians[name])
    if network.name == "inception" and samples.count >= SPLITS:
        score = inception_score(samples.all("logits"), SPLITS)
        found |= dict(zip(("inception_score", "inception_score_std"), score, strict=True))
    if reference.seen is not None and min(samples.count, reference.seen.count) > NEIGHBOURS:
        shares = precision_recall(samples.first("pool", MOST), reference.seen.first("pool", MOST), NEIGHBOURS)
        found |= {network.named(n): value for n, value in zip(("precision", "recall"), shares, strict=True)}
    return found


def protocol(network: Network, samples: dict, reference: dict) -> dict:
    """What numbers follow from, as JSON; two numbers can be compared where theirs are equal."""
    return dict(
        network=dict(name=network.name, sha256=network.digest, resize=network.resize, dtype=network.dtype),
        samples=samples,
        reference=reference,
        neighbours=NEIGHBOURS,
        precision_recall_of=MOST,
        splits=SPLITS,
        versions=versions_of(jax, np),
    )


def read_statistics(name: str, path: Path, network: Network) -> Reference | None:
    """The mean and covariance that an .npz file holds as mu and sigma (and mu_s, sigma_s, ADM's spatial ones).

    None where it holds none. Raises ArgumentError for statistics of another network, which their length tells, or that
    are no Gaussian's.
    """
    sizes = {"inception": 2048, "efficientnet": 1280, "vgg": 512}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("mu", "sigma", "mu_s", "sigma_s", "network") if key in file}
    except Exception as e:  # damage surfaces anywhere in numpy and zipfile
        raise ArgumentError(f"{name}={path} cannot be read as an archive of arrays ({reason(e)})") from e
    if "mu" not in arrays or "sigma" not in arrays:
        return None
    size, mu, sigma = sizes[network.name], arrays["mu"], arrays["sigma"]
    told = str(arrays["network"]) if "network" in arrays else network.name
    if mu.shape != (size,) or sigma.shape != (size, size) or told != network.name:
        raise ArgumentError(
            f"{name}={path}: statistics {mu.shape} of {told if told != network.name else 'another network'};"
            f" {network.name} has {size} features"
        )
    gaussians = {"pool": Gaussian(0, mu.astype(np.float64), sigma.astype(np.float64))}
    if "mu_s" in arrays and "sigma_s" in arrays and network.name == "inception":
        gaussians["spatial"] = Gaussian(0, arrays["mu_s"].astype(np.float64), arrays["sigma_s"].astype(np.float64))
        if gaussians["spatial"].mean.shape != (SFID,) or gaussians["spatial"].covariance.shape != (SFID, SFID):
            raise ArgumentError(f"{name}={path}: mu_s {arrays['mu_s'].shape} is not of sFID's {SFID} features")
    if not all(np.isfinite(x).all() for gaussian in gaussians.values() for x in gaussian[1:]):
        raise ArgumentError(f"{name}={path}: its statistics are not finite")
    return Reference(gaussians, None, dict(kind="statistics", path=str(path), sha256=sha256(path)))
