"""Counts the model's own arithmetic in its definition, before any compiler."""

import math
from collections.abc import Iterator

import jax
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import Mesh
from ml_collections import ConfigDict

from taming_jax.aot.programs import PROGRAMS


def model_flops(config: ConfigDict, mesh: Mesh, program: str) -> int:
    """Floating-point operations of the model's own products and convolutions, on all chips, without recomputation."""
    plain = config.copy_and_resolve_references()
    if plain.task == "transformer":
        plain.gpt.remat = "none"
    else:
        plain.model.remat = False
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        jaxpr = PROGRAMS[program](plain, mesh).jaxpr.jaxpr
    return count_flops(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])  # without dead code


def count_flops(jaxpr: core.Jaxpr) -> int:
    """Operations of its products and convolutions, two for each multiplication; loops count by length, if known."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(out) * math.prod(left[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            features = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(out) * math.prod(kernel) // features // math.prod(params["lhs_dilation"])
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(count_flops(inner) for inner in inner_jaxprs(params))
    return total


def inner_jaxprs(params: dict) -> Iterator[core.Jaxpr]:
    """The programs inside an equation."""
    for value in params.values():
        for inner in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(inner, core.ClosedJaxpr):
                yield inner.jaxpr
            elif isinstance(inner, core.Jaxpr):
                yield inner
