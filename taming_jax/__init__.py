"""Taming Transformers in JAX: VQGAN, autoregressive transformer, sampler."""

__version__ = "0.1.0"
