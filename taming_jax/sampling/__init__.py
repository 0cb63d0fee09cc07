"""Sampling: loops over a model's step function. Nothing here knows the model.

draw: one code from logits. sequence: one after another. window: grids larger than the transformer sees at once.
wavefront: many rows of such a grid at a time. painter: a whole grid by one of these. tiling: decoding it in parts.
animation: the window at work.
"""
