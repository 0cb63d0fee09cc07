"""The pictures of a run: those that it was shown, its reconstructions, also of disturbed codes, and its samples."""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from taming_jax import data, request
from taming_jax.first_stage import FirstStage
from taming_jax.generator import Generator
from taming_jax.images import to_uint8
from taming_jax.painting import Plan
from taming_jax.quality.pictures import Pictures
from taming_jax.quality.statistics import squared_distances
from taming_jax.tokenizer import in_batches

FIRST = 64  # pictures of a split that its hash is of
CONDITIONS = 1024  # held-out images whose conditions samples are painted for, at most


class Disturb(NamedTuple):
    """How codes are disturbed (Qiu et al. 2025, "Robust Latent Matters").

    images: beta, the share of images. codes: alpha, the share of codes in them. neighbours: delta, of how many nearest
    other codes one takes a code's place. seed: of the draws. The default of beta is the paper's, the others are ours.
    """

    images: float = 0.1
    codes: float = 0.9
    neighbours: int = 100
    seed: int = 0


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


def shown(config: ConfigDict, split: str, most: int = 0) -> Pictures:
    """The centres of a split's pictures as the run sees them, in the order of an evaluation; most: how many, 0 for all.

    In the place of one that cannot be read stands the next one.
    """
    source = data.open_source(config.data, split)
    augment = data.make_augment(config.data)
    order = data.eval_order(source)
    order = order[: most or len(order)]

    def read(start: int, stop: int) -> np.ndarray:
        return np.stack([source.read(int(i), augment.centered)["image"] for i in order[start:stop]])

    fields = {name: config.data[name] for name in ("name", "path", "size", "resize_factor", "validation_share")}
    first = hashlib.sha256(read(0, min(FIRST, len(order)))).hexdigest()  # a hash of all would take too long
    about = dict(kind="split", split=split, count=len(order), of=len(source), first_pictures=first, data=fields)
    return Pictures(len(order), about, read)


def reconstructed(
    stage: FirstStage, params: dict, mesh: Mesh, pictures: Pictures, about: dict, disturb: Disturb | None = None
) -> Pictures:
    """What a first stage makes of pictures. about: of the run. disturb: what is done to the codes before."""
    neighbours = None if disturb is None else near_codes(np.asarray(stage.codebook(params)), disturb.neighbours)

    @jax.jit
    def make(params: dict, seen: jax.Array, first: jax.Array) -> jax.Array:
        ids = stage.encode(params, {"image": seen})
        if disturb is not None:
            ids = disturb_codes(ids, jnp.asarray(neighbours), disturb, first)
        return stage.decode(params, ids)

    def read(start: int, stop: int) -> np.ndarray:
        rows = {"seen": pictures.read(start, stop), "number": np.arange(start, stop, dtype=np.int32)}
        step = lambda rows: make(params, rows["seen"], rows["number"])  # noqa: E731
        return to_uint8(in_batches(mesh, step, rows, stop - start, False, "reconstructing"))

    told = dict(kind="reconstructions", of=pictures.about, run=about)
    return Pictures(pictures.count, told | ({"disturb": disturb._asdict()} if disturb else {}), read)


def sampled(generator: Generator, plan: Plan, count: int, about: dict) -> Pictures:
    """Samples of a transformer: its classes or held-out conditions in turn, as many of each as `count` needs.

    The same seed gives the same pictures, whatever the parts in which they are painted.
    """
    conditions = min(count, CONDITIONS)
    rows = request.make_rows(generator.stage, generator.config, plan.size, {}, None, conditions)
    kinds = len(rows["label"])
    numbers = np.arange(count)
    rows = {name: value[numbers % kinds] for name, value in rows.items()}
    rows["index"] = (numbers // kinds).astype(np.int32)

    def read(start: int, stop: int) -> np.ndarray:
        part = {name: value[start:stop] for name, value in rows.items()}
        return np.concatenate(list(generator.paint(part, plan, stop - start, progress=False)))

    told = dict(kind="samples", count=count, seed=plan.seed, **plan.sampling._asdict(), conditions=kinds)
    return Pictures(count, told | dict(run=about), read)
