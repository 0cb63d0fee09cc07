"""Configs by name or by file, from any folder: those that come with the package, and a user's own."""

import importlib
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from taming_jax.errors import UserError, nearest

# A wheel has our configs inside the package, the repository beside it.
HERE = Path(__file__).resolve().parent
OURS = HERE / "configs" if (HERE / "configs").is_dir() else HERE.parent / "configs"


def folders() -> list[Path]:
    """Where names are looked for: among ours, then in configs/ of the current folder."""
    own = Path("configs").resolve()
    return [OURS, own] if own.is_dir() and own != OURS else [OURS]


def make_importable() -> None:
    """Makes `from configs import common` find ours first, whatever else is called so; other configs come behind."""
    package = sys.modules.get("configs")
    paths = list(getattr(package, "__path__", ()))
    if paths[:1] != [str(OURS)]:
        for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
            del sys.modules[name]
        package = sys.modules["configs"] = module_from_spec(ModuleSpec("configs", None, is_package=True))
    package.__path__ = list(dict.fromkeys([*map(str, folders()), *paths]))


def module(name: str) -> ModuleType:
    """One of our files as the module that configs import, such as `common`."""
    make_importable()
    return importlib.import_module(f"configs.{name}")


def find(given: str) -> str:
    """The path of 'openmoji_vq', 'configs/openmoji_vq.py' or a file of one's own; ':argument' stays behind it.

    Raises UserError where there is neither file nor name.
    """
    name, colon, argument = given.partition(":")
    path = Path(name)
    if not path.is_file():
        named = {p.stem: p for folder in reversed(folders()) for p in folder.glob("*.py") if p.stem != "common"}
        short = path.parent in (Path(), Path("configs")) and path.suffix in ("", ".py")
        if not short or path.stem not in named:
            hint = nearest(path.stem, named) or f"; names are those in {OURS}"
            raise UserError(f"config {name!r}: there is no such file, and no config of that name{hint}")
        path = named[path.stem]
    return f"{path}{colon}{argument}"


def load(given: str) -> ConfigDict:
    """The config of a name or a file, with its argument behind a colon if it takes one. Raises UserError."""
    make_importable()
    path, *argument = find(given).split(":", 1)
    loader = SourceFileLoader("taming_jax_config", path)
    found = module_from_spec(spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = found  # where dataclasses look for their module
    loader.exec_module(found)
    return found.get_config(*argument)
