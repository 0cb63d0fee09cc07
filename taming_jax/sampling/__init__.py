"""Sampling: loops over a model's step function. Nothing here knows the model.

draw: one code from logits. sequence: one after another; speculative: several at once, of the same distribution. window:
grids larger than the transformer sees at once; cache: as much of a cache as is filled. wavefront: many rows of such a
grid at a time. schedule: the fronts of a wavefront transformer. painter: a whole grid by one of these. rejection: the
best of several. tiling: decoding a grid in parts. animation: the window at work.
"""
