"""Converts checkpoints of the original PyTorch code into run directories, and back.

The rooms, each of which knows only those before it: `names` has the rules from our paths to the original's, `tensors`
moves arrays along them, `vqgan` converts first stages, `transformer` second stages with their conditions, and
`checkpoints` reads and writes whole files. `diffusers` writes first stages for Hugging Face's library.
"""
