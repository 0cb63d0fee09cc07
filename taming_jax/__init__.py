"""Taming Transformers in JAX: VQGAN, autoregressive transformer, sampler.

    tokenizer = taming_jax.Tokenizer.load("runs/openmoji_vq")
    generator = taming_jax.Generator.load("runs/openmoji_transformer")

A mistake that the user can correct raises `taming_jax.UserError`, whose message is one line that says what to do.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taming_jax.errors import UserError
    from taming_jax.generator import Generator
    from taming_jax.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = ["Generator", "Tokenizer", "UserError"]

HOMES = {"Tokenizer": "tokenizer", "Generator": "generator", "UserError": "errors"}


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    """Imports a name at its first use: commands that need no jax should not wait for it."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)


if sys.argv[:1] == ["-m"]:  # Python imports the package of a command that it is about to run
    importlib.import_module(f"{__name__}.stopping").end_at_once()
