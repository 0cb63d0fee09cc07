"""Conditions of a second stage, a file for each kind. A new kind is a file with a `Condition`, and a line below."""

import dataclasses

from ml_collections import ConfigDict

from taming_jax.conditions.caption import Caption
from taming_jax.conditions.condition import Condition, Unconditional
from taming_jax.conditions.coordinates import Coordinates
from taming_jax.conditions.label import Label
from taming_jax.conditions.layout import Layout
from taming_jax.conditions.picture import Picture
from taming_jax.errors import not_among
from taming_jax.first_stage import make_first_stage

CONDITIONS: dict[str, type[Condition]] = {
    "none": Unconditional,
    "class": Label,
    "coordinates": Coordinates,
    "image": Picture,
    "objects": Layout,
    "caption": Caption,
}
ARGUMENTS = {name: text for kind in CONDITIONS.values() for name, text in kind.ARGUMENTS.items()}


def find_condition(name: str) -> type[Condition]:
    """The kind of `config.cond.name`; raises UserError for a name that is not there."""
    if name not in CONDITIONS:
        raise not_among("cond.name", name, CONDITIONS)
    return CONDITIONS[name]


def make_condition(config: ConfigDict) -> Condition:
    """The condition of a complete config; raises UserError where its parts do not fit."""
    kind = find_condition(config.cond.name)
    if not kind.HAS_STAGE:
        return kind.make(config, None)
    return kind.make(config, dataclasses.replace(make_first_stage(config.cond.config), size=config.data.size))
