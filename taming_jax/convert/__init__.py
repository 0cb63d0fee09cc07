"""Checkpoints of the original PyTorch code <-> run directories. The command is `__main__`.

The rooms, each of which knows only those before it: `names` has the rules from our paths to the original's, `tensors`
moves arrays along them, `vqgan` converts first stages, `transformer` second stages with their conditions, and
`checkpoints` reads and writes whole files. `diffusers` writes first stages for Hugging Face's library.
"""
