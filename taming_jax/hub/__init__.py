"""Publishes runs on the Hugging Face Hub or in folders, and makes run directories of published runs.

address: hf://user/name, and what keeps one from it. card: the model card. runs: run directories into published runs,
and back. The form of the folder itself is `taming_jax.published`, which `checkpoint` reads.
"""
