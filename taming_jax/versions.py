"""The versions of the libraries that compute."""

from types import ModuleType

import taming_jax


def versions_of(*libraries: ModuleType) -> dict[str, str]:
    """This package's version and those of libraries, by their names; of those that say one."""
    found = {library.__name__: getattr(library, "__version__", None) for library in (taming_jax, *libraries)}
    return {name.replace(".", "-"): version for name, version in found.items() if version is not None}
