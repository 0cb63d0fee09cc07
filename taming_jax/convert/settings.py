"""The original's YAML files, read as OmegaConf reads them, and their fields, each checked where it is taken."""

import dataclasses
import re
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from taming_jax.errors import ArgumentError, UserError, nearest, not_among

MAX_BYTES, MAX_NODES = 2**16, 50_000  # of a file, and of its tree with all aliases written out
MAX_STEPS, MAX_TEXT = 200, 10_000  # of one interpolation
MAX_INTEGER = 2**31 - 1
INTERPOLATION = re.compile(r"\$\{([^${}]*)\}")
MISSING: Any = object()


class Loader(yaml.SafeLoader):
    """YAML as OmegaConf has it: 1e-8 is a number, a date is text, and a key comes once in a mapping."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (so it is in PyYAML)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:str":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} comes twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


@dataclasses.dataclass(frozen=True)
class Section:
    """A mapping of a YAML file. Its methods take a field as one kind of value, and raise UserError with its whole name.

    name: 'model.params', '' for the file. above: the mappings and lists from the file's root down to its own.
    A field without a default must be there.
    """

    name: str
    above: tuple[Any, ...]

    def full(self, field: str) -> str:
        """'model.params.n_embed'."""
        return f"{self.name}.{field}".removeprefix(".")

    def find(self, field: str, default: Any = MISSING) -> tuple[Any, tuple]:
        """A field's value of any kind, and what is above it."""
        fields = self.above[-1]
        if field not in fields:
            if default is MISSING:
                hint = nearest(field, [name for name in fields if isinstance(name, str)])
                raise UserError(f"{self.full(field)} is missing{hint}")
            return default, self.above
        try:
            return resolve(fields[field], self.above, iter(range(MAX_STEPS)))
        except UserError as e:
            raise UserError(f"{self.full(field)}={shown(fields[field])}: {e}") from e

    def wrong(self, field: str, value: Any, what: str) -> UserError:
        """The error for a value of another kind."""
        return UserError(f"{self.full(field)}={shown(value)}: it must be {what}")

    def section(self, field: str, default: Any = MISSING) -> "Section":
        """Fields of its own; null stands for the default."""
        value, above = self.find(field, default)
        if value is None and default is not MISSING:
            value = default
        if not isinstance(value, dict):
            raise self.wrong(field, value, "fields with names")
        return Section(self.full(field), (*above, value))

    def integer(self, field: str, default: Any = MISSING, least: int = 1, most: int = MAX_INTEGER) -> int:
        """A whole number from `least` to `most`."""
        value, _ = self.find(field, default)
        if value is not default and not is_integer(value, least, most):
            raise self.wrong(field, value, f"a whole number from {least} to {most}")
        return value

    def integers(self, field: str, fewest: int, length: int, most: int = MAX_INTEGER) -> tuple[int, ...]:
        """A list of numbers from 1 to `most`, at least `fewest` and at most `length` of them."""
        value, above = self.find(field)
        if isinstance(value, list | tuple) and fewest <= len(value) <= length:
            found = tuple(resolve(item, (*above, value), iter(range(MAX_STEPS)))[0] for item in value)
            if all(is_integer(item, 1, most) for item in found):
                return found
        raise self.wrong(field, value, f"a list of {fewest} to {length} whole numbers from 1 to {most}")

    def number(self, field: str, default: Any = MISSING, least: float = -1e30, most: float = 1e30) -> float:
        """A number from `least` to `most`."""
        value, _ = self.find(field, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.wrong(field, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def flag(self, field: str, default: Any = MISSING) -> bool:
        """True or false."""
        value, _ = self.find(field, default)
        if not isinstance(value, bool):
            raise self.wrong(field, value, "true or false")
        return value

    def text(self, field: str, default: Any = MISSING, allowed: Iterable[str] = ()) -> str:
        """Text, one of `allowed` if there are any; null stands for the default."""
        value, _ = self.find(field, default)
        if value is None and default is not MISSING:
            return default
        if not isinstance(value, str):
            raise self.wrong(field, value, "text")
        if allowed and value not in allowed:
            raise not_among(self.full(field), value[:80], allowed)
        return value

    def target(self, allowed: Iterable[str] = ()) -> str:
        """'VQModel' of the target 'taming.models.vqgan.VQModel'; one of `allowed`, if there are any."""
        name = self.text("target").rpartition(".")[2]
        if allowed and name not in allowed:
            raise not_among(self.full("target"), name[:80], allowed)
        return name


def is_integer(value: Any, least: int, most: int) -> bool:
    """Whether a value is a whole number from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def shown(value: Any) -> str:
    """A value as it is put into one short line."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a number of thousands of digits
        return "..."


def read_settings(path: Path) -> Section:
    """A YAML file's root; raises ArgumentError for what is no YAML of fields with names, or is far too large."""
    if not path.is_file():
        raise ArgumentError(f"config={path}: there is no such file")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ArgumentError(f"config={path} has more than {MAX_BYTES} bytes, so it is no YAML file of a model")
        loader = Loader(content)
        node = loader.get_single_node()
        check_size(path, node)
        fields = loader.construct_document(node) if node is not None else None
    except OSError as e:
        raise ArgumentError(f"config={path} cannot be read: {e.strerror or e}") from e
    except RecursionError as e:
        raise ArgumentError(f"config={path} is no YAML of a model: it is nested too deep") from e
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as e:  # PyYAML's, of bad values too
        raise ArgumentError(f"config={path} is no YAML: {' '.join(str(e).split())[:200]}") from e
    return Section("", (fields if isinstance(fields, dict) else {},))


def check_size(path: Path, root: yaml.Node | None) -> None:
    """Raises ArgumentError for aliases that make a small file a huge or an endless tree."""
    waiting, count = [root], 0
    while waiting:
        node, count = waiting.pop(), count + 1
        if count > MAX_NODES:
            raise ArgumentError(f"config={path} has more than {MAX_NODES} values, with its aliases written out")
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def resolve(value: Any, above: tuple, steps: Iterator[int]) -> tuple[Any, tuple]:
    """A value with every ${name} replaced by what it names, and what is above that.

    above: see `Section`. steps: as many as may still be taken. Raises UserError where a name leads nowhere.
    """
    while isinstance(value, str) and "${" in value:
        part = INTERPOLATION.search(value)
        if part is None or ":" in part[1]:
            raise UserError("of OmegaConf's interpolations, only names of other fields are read, ${name.name}")
        if next(steps, None) is None or len(value) > MAX_TEXT:
            raise UserError("it refers to itself, or to too many other fields")
        found, place = follow(part[1], above, steps)
        if part[0] == value:
            return found, place
        if isinstance(found, dict | list):
            raise UserError(f"{part[0][:80]} is no text")
        value = f"{value[: part.start()]}{found}{value[part.end() :]}"
    return value, above


def follow(name: str, above: tuple, steps: Iterator[int]) -> tuple[Any, tuple]:
    """The value of 'name.name', from the root or, with dots before it, from the mapping that holds it or above that."""
    dots = len(name) - len(name.lstrip("."))
    *place, value = above[: len(above) - dots + 1] if dots else above[:1]
    for key in re.sub(r"\[([^\]]*)\]", r".\1", name[dots:]).split("."):
        if isinstance(value, list) and key.isdecimal() and len(key) < 9 and int(key) < len(value):
            key = int(key)
        elif not isinstance(value, dict) or key not in value:
            known = [k for k in value if isinstance(k, str)] if isinstance(value, dict) else []
            raise UserError(f"there is no {shown(key)}{nearest(key[:80], known)}")
        value, place = resolve(value[key], (*place, value), steps)
    return value, tuple(place)
