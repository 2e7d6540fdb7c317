"""Reading of deformed taps, and both directions of sampling. SIFA's tests compare both with a loop over taps."""

import math

import torch

from clipvid.adapters.deformable import gather_taps, place_taps, scatter_taps


def test_scatter_is_transpose_of_gather():
    generator = torch.Generator().manual_seed(0)
    offsets, matrix, values = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 12, 9, 2), (3, 12, 12), (3, 12, 9))
    )
    taps = place_taps(2 * offsets, (3, 4), 3)
    read, spread = gather_taps(matrix, taps), scatter_taps(values, taps)
    assert read.abs().max() > 0.1
    torch.testing.assert_close((read * values).sum(), (matrix * spread).sum())


def test_tap_weights_sum_to_one_inside_zero_outside():
    offsets = torch.tensor([[0.25, 0.5], [-1.25, 0.0], [40.0, 0.0], [1e30, -1e30], [0.0, -math.inf]])
    taps = place_taps(offsets.view(5, 1, 1, 2).expand(5, 12, 1, 2), (3, 4), 1)
    assert taps.cells.min() >= 0
    assert taps.cells.max() < 12
    sums = taps.weights.sum(-1)
    assert sums[0, 0] == 1
    assert sums[1, 0] == 0
    assert sums[1, 4] == 0.75
    assert not sums[2:].any()


def test_half_precision_offsets_keep_subcell_positions():
    taps = place_taps(torch.full((300, 1, 2), 0.25, dtype=torch.bfloat16), (1, 300), 1)
    assert taps.weights.dtype == torch.float32
    assert taps.cells[290, :2].tolist() == [290, 291]
    assert taps.weights[290, :2].tolist() == [0.75 * 0.75, 0.75 * 0.25]
