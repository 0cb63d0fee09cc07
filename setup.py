"""What pyproject.toml cannot say: packages are found, and configs/ is one of them, inside taming_jax."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["taming_jax*"]), "taming_jax.configs"],
    package_dir={"taming_jax.configs": "configs"},
)
