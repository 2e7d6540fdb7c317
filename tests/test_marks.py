"""Marks that adapters draw from their traces: shapes over the registry, and places that are known."""

import pytest
import torch
from conftest import make_adapter, random_tokens

from clipvid.adapters import ADAPTERS
from clipvid.adapters.ata import compose
from clipvid.adapters.marks import Arrows, FrameMatrix, HeatMap, Points, Tracks, patch_centers

NAMES = [name for name in ADAPTERS if name != "none"]
DRAWN = {
    "ila": [Points, HeatMap],
    "ata": [Tracks, FrameMatrix],
    "attention": [FrameMatrix],
    "gta": [FrameMatrix, FrameMatrix],
    "shift": [],  # without a trace: the size of its update is shown
    "sifa": [Arrows],
    "st_adapter": [HeatMap],
    "xclip": [FrameMatrix],
    "temporal_conv": [HeatMap],
}


def test_every_adapter_is_in_the_table():
    assert DRAWN.keys() == set(NAMES)


def check(mark, num_frames, grid):
    """Check shapes, ranges and texts of a mark."""
    assert mark.title
    assert mark.note.endswith(".")
    if isinstance(mark, HeatMap):
        assert mark.values.shape == (num_frames, *grid)
    elif isinstance(mark, FrameMatrix):
        assert mark.values.shape == (num_frames, num_frames)
    elif isinstance(mark, Tracks):
        assert mark.positions.shape[1:] == (num_frames, 2)
    elif isinstance(mark, Points):
        assert mark.positions.shape == (len(mark.frames), 2)
        assert len(mark.kinds) == len(mark.frames)
        assert mark.kinds.max() < len(mark.names)
    else:
        assert mark.starts.shape == mark.ends.shape == (len(mark.frames), 2)
        assert mark.weights.shape == mark.frames.shape
    for values in (getattr(mark, name, None) for name in ("values", "weights")):
        assert values is None or (values.isfinite().all() and values.min() >= 0)
    for places in (getattr(mark, name, None) for name in ("positions", "starts")):
        assert places is None or (places.min() >= 0 and places.max() <= 1)
    frames = getattr(mark, "frames", None)
    assert frames is None or (frames.min() >= 0 and frames.max() < num_frames)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(3, 5), (1, 1), (1, 4)], ids=str)
@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("num_frames", [1, 2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_every_adapter_draws_its_trace(name, num_frames, prefix, grid):
    if ADAPTERS[name].needs_class_token and not prefix:
        return
    adapter = make_adapter(name, num_frames).eval()
    output = adapter(random_tokens(num_frames, grid, prefix, batch=1), grid, trace=True)
    marks = adapter.draw_trace(output.trace or {}, grid) if output.trace is not None else []
    if num_frames > 1:
        assert [type(mark) for mark in marks] == DRAWN[name]
    for mark in marks:
        if not isinstance(mark, Arrows) or len(mark.frames):
            check(mark, num_frames, grid)


def test_half_precision_traces_are_drawn_in_float32():
    adapter = make_adapter("ila").eval().bfloat16()
    with torch.no_grad():
        trace = adapter(random_tokens(batch=1).bfloat16(), (3, 5), trace=True).trace
    assert all(
        mark.values.dtype == torch.float32 for mark in adapter.draw_trace(trace, (3, 5)) if hasattr(mark, "values")
    )


def test_ila_points_are_where_the_masks_are_highest():
    """A point on the middle of a patch gives a mask that is highest there."""
    grid, adapter = (5, 7), make_adapter("ila").eval()
    for row, column in ((0, 0), (1, 5), (4, 3)):
        point = torch.tensor([2 * column / 6 - 1, 2 * row / 4 - 1])
        points = point.expand(1, 1, 2, 2).contiguous()
        marks = adapter.draw_trace({"points": points, "masks": adapter._masks(points, grid)}, grid)
        expected = patch_centers(grid)[row * 7 + column]
        torch.testing.assert_close(marks[0].positions, expected.expand(2, 2))
        assert marks[0].frames.tolist() == [0, 1]
        near = patch_centers(grid)[marks[1].values[0].flatten() == marks[1].values[0].max()]
        assert (near - expected).abs().sum(-1).min() < 1e-6


def test_ata_tracks_follow_matches():
    """Patches that move one column to the right per frame give tracks that do so."""
    grid = (2, 4)
    places = torch.arange(8).view(grid)
    moved = places.roll(-1, dims=1).flatten()  # patch i of a frame is at the next column in the following one
    tubes = compose(moved.expand(1, 2, 8))
    trace = {"tubes": tubes, "attention": torch.full((1, 9, 3, 3), 1 / 3)}
    tracks = make_adapter("ata").draw_trace(trace, grid)[0]
    torch.testing.assert_close(tracks.positions[0], torch.tensor([[0.125, 0.25], [0.375, 0.25], [0.625, 0.25]]))


def test_sifa_arrow_ends_at_the_best_sample():
    """The tap below right of the middle wins, moved by its offset of half a row up and two columns right."""
    grid, adapter = (4, 5), make_adapter("sifa")
    correlation = torch.zeros(1, 1, 20, 9)
    correlation[..., 8] = 2.0
    offsets = torch.zeros(1, 1, 20, 9, 2)
    offsets[..., 8, :] = torch.tensor([-0.5, 2.0])
    arrows = adapter.draw_trace({"offsets": offsets, "correlation": correlation}, grid)[0]
    step = (arrows.ends - arrows.starts) * torch.tensor([5.0, 4.0])
    torch.testing.assert_close(step, torch.tensor([3.0, 0.5]).expand(20, 2))
    assert arrows.weights.unique().tolist() == [2.0]


def test_gta_matrix_is_the_mean_size_over_groups():
    matrices = torch.randn(2, 2, 3, 3)
    marks = make_adapter("gta").draw_trace({"pixel_matrices": matrices}, (1, 1))
    torch.testing.assert_close(marks[0].values, matrices.abs().mean(dim=(0, 1)))
