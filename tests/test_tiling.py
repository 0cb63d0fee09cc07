"""Decoding in tiles: where nothing looks beyond its neighbours, the result is that of decoding at once."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from taming_jax.sampling.tiling import decode_tiled, starts


def decode(grid):
    """Each code as a square of 3x3 pixels, and its number."""
    return jnp.stack([grid, grid**2], -1).astype(jnp.float32).repeat(3, 1).repeat(3, 2)


@pytest.mark.parametrize(("h", "w"), [(8, 8), (9, 21), (40, 5), (17, 16)])
def test_tiles_make_up_the_whole(h, w):
    seen = []

    def watched(grid):
        seen.append(grid.shape)
        return decode(grid)

    grid = jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, h, w)))
    np.testing.assert_allclose(decode_tiled(watched, grid, 8), decode(grid), rtol=1e-5)
    assert len(set(seen)) == 1 and max(seen[0][1:]) <= 8  # one program


def test_neighbours_overlap_and_reach_the_ends():
    for size in range(9, 60):
        first = starts(size, 8)
        assert first[0] == 0 and first[-1] == size - 8
        assert all(b - a <= 6 for a, b in itertools.pairwise(first))


def test_a_step_in_brightness_between_tiles_becomes_a_ramp():
    """Of a decoder whose tiles differ by a constant, neighbouring pixels differ by a part of it."""
    bright = iter(range(100))
    tiled = decode_tiled(lambda grid: decode(grid * 0 + next(bright))[..., :1], jnp.zeros((1, 8, 26), int), 8)
    assert np.abs(np.diff(tiled[0, :, :, 0], axis=1)).max() < 0.2
