"""Drawing codes: one of them, a sequence, and grids of any size."""
