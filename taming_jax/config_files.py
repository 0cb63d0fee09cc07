"""Finds configs by name or by file, from any folder: those that come with the package, and a user's own."""

import importlib
import sys
import traceback
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from taming_jax import values
from taming_jax.errors import UserError, nearest, show

# A wheel holds our configs inside the package; the repository holds them beside it.
HERE = Path(__file__).resolve().parent
OURS = HERE / "configs" if (HERE / "configs").is_dir() else HERE.parent / "configs"


def folders() -> list[Path]:
    """The folders in which names are looked up: ours, then configs/ in the current folder."""
    own = Path("configs").resolve()
    return [OURS, own] if own.is_dir() and own != OURS else [OURS]


def make_importable() -> None:
    """Makes `from configs import common` find our file first; other folders named `configs` come after ours."""
    package = sys.modules.get("configs")
    paths = list(getattr(package, "__path__", ()))
    if paths[:1] != [str(OURS)]:
        for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
            del sys.modules[name]
        package = sys.modules["configs"] = module_from_spec(ModuleSpec("configs", None, is_package=True))
    package.__path__ = list(dict.fromkeys([*map(str, folders()), *paths]))


def module(name: str) -> ModuleType:
    """Imports one of our files, such as `common`, as the configs import it."""
    make_importable()
    return importlib.import_module(f"configs.{name}")


def find(given: str) -> str:
    """The path of 'openmoji_vq', 'configs/openmoji_vq.py' or a user's own file; an ':argument' stays at its end.

    Raises UserError where there is no such file and no config of that name.
    """
    values.path("config", given)
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
    """Loads a config by its name or file; a config's argument, if it takes one, follows a colon. Raises UserError."""
    make_importable()
    path, *argument = find(given).split(":", 1)
    loader = SourceFileLoader("taming_jax_config", path)
    found = module_from_spec(spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = found  # dataclasses look for their module here
    try:
        loader.exec_module(found)
        config = found.get_config(*argument)
    except UserError:  # of a config that reads a run
        raise
    except (Exception, SystemExit) as e:  # whatever a user's program does
        raise UserError(f"config {place_of(e, path)}: {type(e).__name__}: {' '.join(str(e).split())[:300]}") from e
    if not isinstance(config, ConfigDict):
        raise UserError(f"config {path}: get_config returns {show(config)}, no ConfigDict")
    return config


def place_of(error: BaseException, path: str) -> str:
    """'file:line' where an error came up: the last line of that file that ran, or that Python cannot read."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{path}:{lines[-1]}" if lines else path
