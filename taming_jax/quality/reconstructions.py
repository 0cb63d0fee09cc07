"""Judges a first stage by its reconstructions of the validation split, plain and of codes that are disturbed."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from taming_jax.errors import UserError
from taming_jax.first_stage import FirstStage, make_first_stage
from taming_jax.images import to_uint8
from taming_jax.quality import networks
from taming_jax.quality.judge import Reference, judge
from taming_jax.quality.pictures import Pictures, of_split
from taming_jax.quality.statistics import squared_distances
from taming_jax.quality.viewer import Judged, Viewer
from taming_jax.tokenizer import in_batches


class Disturb(NamedTuple):
    """How codes are disturbed (Qiu et al. 2025, "Robust Latent Matters").

    images: beta, the share of images. codes: alpha, the share of codes in them. neighbours: delta, of how many nearest
    other codes one takes a code's place. seed: of the draws.
    """

    images: float
    codes: float
    neighbours: int
    seed: int = 0


def make(config: ConfigDict, fields: dict[str, Any], mesh: Mesh, store: Path | None = None) -> Callable:
    """-> judge(params, about): a first stage's weights, and which they are, -> Judged.

    rfid (rfd_efficientnet, ...), precision and recall as `judge.judge` has them; pfid likewise of disturbed codes.
    fields: see `options`. Raises UserError where the stage's input is no picture in colours.
    """
    if config.input != "image":
        raise UserError(f"the run's input is {config.input!r}: Fréchet distances are of pictures in colours")
    viewer = Viewer(networks.load(fields["features"], fields["dtype"]), mesh, store, fields["batch_size"])
    stage = make_first_stage(config)
    disturb = Disturb(
        fields["disturbed_images"],
        fields["disturbed_codes"],
        min(fields["disturbed_to"], stage.codebook_size - 1),
        fields["seed"],
    )
    whole = NamedSharding(mesh, PartitionSpec())
    plain, disturbed = make_program(stage, mesh), make_program(stage, mesh, disturb)
    codebook = jax.jit(stage.codebook, out_shardings=whole)

    @functools.cache
    def reference() -> tuple[Pictures, Reference]:
        originals = of_split(config, "validation", fields["num_samples"])
        return originals, viewer.refer(originals, "originals")

    def judge_stage(params: dict, about: dict) -> Judged:
        (originals, references), params = reference(), jax.device_put(params, whole)
        once = viewer._replace(store=None)
        made = reconstructed(plain, params, None, mesh, originals, about)
        judged = once.judge(once.see(made, "reconstructions"), made.about, references)
        near = near_codes(np.asarray(codebook(params)), disturb.neighbours)
        perturbed = once.see(reconstructed(disturbed, params, near, mesh, originals, about), "disturbed codes")
        found = judge(viewer.network, perturbed, references)
        numbers = {f"r{name}": value for name, value in judged.numbers.items()}
        numbers |= {f"p{name}": value for name, value in found.items() if name.startswith("f")}
        return Judged(numbers, judged.protocol | {"disturb": disturb._asdict()})

    return judge_stage


def make_program(stage: FirstStage, mesh: Mesh, disturb: Disturb | None = None) -> Callable:
    """(params, near codes [K,n] or None, images [B,H,W,3], their numbers [B]) -> reconstructions [B,H,W,3]."""

    def reconstruct(params: dict, near: jax.Array | None, seen: jax.Array, numbers: jax.Array) -> jax.Array:
        ids = stage.encode(params, {"image": seen})
        return stage.decode(params, ids if disturb is None else disturb_codes(ids, near, disturb, numbers))

    return jax.jit(reconstruct, out_shardings=NamedSharding(mesh, PartitionSpec()))


def reconstructed(
    program: Callable, params: dict, near: np.ndarray | None, mesh: Mesh, pictures: Pictures, about: dict
) -> Pictures:
    """What a first stage makes of pictures. about: of the run."""

    def read(start: int, stop: int) -> np.ndarray:
        rows = pictures.read(start, stop), np.arange(start, stop, dtype=np.int32)
        step = lambda rows: program(params, near, *rows)  # noqa: E731
        return to_uint8(in_batches(mesh, step, rows, stop - start, False, "reconstructing"))

    return Pictures(pictures.count, dict(kind="reconstructions", of=pictures.about, run=about), read)


def near_codes(codebook: np.ndarray, neighbours: int) -> np.ndarray:
    """The nearest other codes of each code, the nearest first: [K,D] -> [K,neighbours] int32."""
    distances = squared_distances(codebook, codebook)
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, 1, kind="stable")[:, :neighbours].astype(np.int32)


def disturb_codes(ids: jax.Array, near: jax.Array, how: Disturb, numbers: jax.Array) -> jax.Array:
    """Exchanges codes for near ones. ids [B,h,w], near [K,n], numbers [B]: the images' own, which the draws follow."""

    def one(ids: jax.Array, number: jax.Array) -> jax.Array:
        image, code, which = jax.random.split(jax.random.fold_in(jax.random.key(how.seed), number), 3)
        chosen = jax.random.bernoulli(code, how.codes, ids.shape) & jax.random.bernoulli(image, how.images)
        other = near[ids, jax.random.randint(which, ids.shape, 0, near.shape[1])]
        return jnp.where(chosen, other, ids)

    return jax.vmap(one)(ids, numbers)
