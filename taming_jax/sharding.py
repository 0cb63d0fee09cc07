"""Sharding: the mesh, one table from parameter paths to mesh axes, and the split of a batch over the devices."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from taming_jax.errors import UserError

PyTree = Any
AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))

# The first pattern found in a leaf's path decides; optimizer moments and averages carry their parameter's path. An axis
# that does not divide its dimension is left out, and leaves without a pattern are replicated. The axes are those of the
# last dimensions: a parameter stacked for a scan has one more dimension in front.
RULES = (
    (r"gpt/.*/(query|key|value|mlp_in|mlp_gate)/kernel$", ("fsdp", "tensor")),
    (r"gpt/.*/(proj|mlp_out)/kernel$", ("tensor", "fsdp")),
    (r"gpt/.*head/kernel$", ("fsdp", "tensor")),
    (r"gpt/.*modulation/kernel$", ("fsdp", None)),
    (r"gpt/.*(token|position|target|step|left|above|row|column|cond)_embedding$", (None, "fsdp")),
    (r"guesses/.*kernel$", ("fsdp", None)),
    (r"(gen|disc|lpips|cond)/.*kernel$", (None, None, None, "fsdp")),
)


def make_mesh(sizes: ConfigDict, devices: list | None = None) -> Mesh:
    """Mesh over all devices with the axes `data`, `fsdp`, `tensor`; one size may be -1 for the rest."""
    devices = jax.devices() if devices is None else devices
    shape = [int(sizes[axis]) for axis in AXES]
    fixed = int(np.prod([n for n in shape if n != -1]))
    if shape.count(-1) == 1 and len(devices) % fixed == 0:
        shape[shape.index(-1)] = len(devices) // fixed
    if int(np.prod(shape)) != len(devices) or min(shape) < 1:
        asked = ", ".join(f"{axis}={sizes[axis]}" for axis in AXES)
        raise UserError(
            f"mesh ({asked}) does not match {len(devices)} devices:"
            f" the product must be {len(devices)}, one axis may be -1 for the rest"
        )
    # The devices stay in their own order, so that each process owns rows of the batch that no other process owns.
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def to_sample(mesh: Mesh) -> Mesh:
    """The same devices for sampling: parameters whole, or over 'tensor', since every code needs all of them."""
    shape = (mesh.shape["data"] * mesh.shape["fsdp"], 1, mesh.shape["tensor"])
    return Mesh(mesh.devices.reshape(shape), AXES, axis_types=mesh.axis_types)


def mesh_here(tensor: int = 1) -> Mesh:
    """A mesh of all devices, to sample from a run trained elsewhere; tensor: as there, if it divides the devices."""
    tensor = tensor if tensor > 0 and jax.device_count() % tensor == 0 else 1
    return make_mesh(ConfigDict(dict(data=-1, fsdp=1, tensor=tensor)))


def spec_of(path: str, shape: tuple[int, ...], mesh_shape: dict[str, int]) -> PartitionSpec:
    """The table's entry for a leaf."""
    for pattern, axes in RULES:
        if re.search(pattern, path) and len(shape) >= len(axes):
            axes = (None,) * (len(shape) - len(axes)) + axes
            fits = (axis and size % mesh_shape[axis] == 0 for axis, size in zip(axes, shape, strict=True))
            return PartitionSpec(*(axis if fit else None for axis, fit in zip(axes, fits, strict=True)))
    return PartitionSpec()


def infer_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Applies the table: a pytree of arrays or shapes -> the same pytree of NamedSharding."""

    def leaf(path, x):
        return NamedSharding(mesh, spec_of(jax.tree_util.keystr(path, simple=True, separator="/"), x.shape, mesh.shape))

    return jax.tree_util.tree_map_with_path(leaf, tree)


def with_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Shapes -> shapes with the table's shardings."""
    shardings = infer_shardings(tree, mesh)
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), tree, shardings)


def gather(tree: PyTree, path: str = "") -> PyTree:
    """Gathers parameters along 'fsdp', inside a jitted step under `jax.set_mesh`; their gradients are sharded again.

    path: that of `tree` in the state; the table then tells what stays split along 'tensor'. By itself, the partitioner
    would move activations, and sum whole gradients on every device. Without a mesh, returns `tree` as it is.
    """

    def leaf(x, spec):
        whole = PartitionSpec(*(axis if axis == "tensor" else None for axis in spec))
        gathered = jax.custom_vjp(lambda x: jax.lax.with_sharding_constraint(x, whole))
        gathered.defvjp(lambda x: (gathered(x), None), lambda _, g: (jax.lax.with_sharding_constraint(g, spec),))
        return gathered(x)

    return _by_table(leaf, tree, path)


def scatter(tree: PyTree, path: str = "") -> PyTree:
    """Shards the gradients of gathered parameters by the table, where `gather` itself was not differentiated."""
    return _by_table(jax.lax.with_sharding_constraint, tree, path)


def replicate(tree: PyTree) -> PyTree:
    """Replicates arrays, inside a jitted function under `jax.set_mesh`. Without a mesh, returns `tree` as it is."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def split(tree: PyTree) -> PyTree:
    """Shards the first axis like a batch, where the mesh divides it, inside a jitted function under `jax.set_mesh`.

    Without a mesh, returns `tree` as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    return jax.tree.map(lambda x: x if len(x) % parts else jax.lax.with_sharding_constraint(x, BATCH), tree)


def _by_table(function: Callable, tree: PyTree, path: str) -> PyTree:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree

    def leaf(where, x):
        name = f"{path}/{jax.tree_util.keystr(where, simple=True, separator='/')}"
        return function(x, spec_of(name, x.shape, mesh.shape))

    return jax.tree_util.tree_map_with_path(leaf, tree)


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises UserError where the mesh does not divide the batch, or the parts of it that accumulate."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (parts * accumulate):
        times = f" x accumulate={accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"batch_size={batch_size} is not divided by the mesh's data x fsdp = {parts} parts{times};"
            f" take a multiple of {parts * accumulate}"
        )


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """This process's rows -> global arrays, split over data x fsdp."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda value: jax.make_array_from_process_local_data(sharding, value), batch)


def filled_batches(rows: PyTree, batch_size: int, mesh: Mesh) -> Iterator[tuple[PyTree, int]]:
    """Rows [N,...], which every process has, in batches, sharded; and how many rows of each batch count.

    The last batch is filled up with the first rows again, so that one program serves all.
    """
    share = batch_size // jax.process_count()
    own = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    total = len(jax.tree.leaves(rows)[0])
    for start in range(0, total, batch_size):
        chosen = np.arange(start, start + batch_size)[own] % total
        batch = jax.tree.map(lambda value, chosen=chosen: value[chosen], rows)
        yield shard_batch(batch, mesh), min(batch_size, total - start)
