"""Converts checkpoints of the original PyTorch code into run directories, and back.

The rooms, each of which knows only those before it: `pickles` and `files` read files of tensors, `settings` the YAML;
`names` has the rules from our paths to the original's, `tensors` moves arrays along them, `vqgan` converts first
stages, `transformer` second stages with their conditions, and `checkpoints` whole checkpoints. `diffusers` writes first
stages for Hugging Face's library, `stablehlo` programs for jax alone, and `successors` knows LlamaGen's and RAR's
files.
"""
