"""Token shift against a reference of loops with gradients; options and the ends of a clip."""

import re

import pytest
import torch
from conftest import random_frames

from clipvid.adapters.base import BlockInfo
from clipvid.adapters.shift import Shift, ShiftConfig
from clipvid.hub.loading import from_pretrained

WIDTH = 16


def make_shift(width=WIDTH, **options):
    return Shift(ShiftConfig(**options), BlockInfo(width, 2, 3))


def tokens_for(frames=4, grid=(2, 3), prefix=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, frames, prefix + grid[0] * grid[1], WIDTH)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def slow_shift(tokens, num_prefix, share, which, order):
    """Return the shifted stream, one frame, token and channel at a time."""
    frames, length = tokens.shape[1:3]
    shifted = tokens.clone()
    for n in range(length):
        if which == ("patches" if n < num_prefix else "prefix"):
            continue
        for t in range(frames):
            for d in range(2 * share):
                from_next = (d < share) == (order == "next_first")
                source = t + 1 if from_next else t - 1
                shifted[:, t, n, d] = tokens[:, source, n, d] if 0 <= source < frames else 0.0
    return shifted


@pytest.mark.parametrize(("fraction", "share"), [(0.125, 2), (0.25, 4), (0.5, 8), (0.07, 1)])
@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize(
    ("which", "prefix"), [("patches", 0), ("patches", 1), ("prefix", 1), ("prefix", 3), ("both", 0), ("both", 3)]
)
@pytest.mark.parametrize("order", ["next_first", "previous_first"])
def test_update_and_gradient_equal_reference(order, frames, which, prefix, fraction, share):
    tokens = tokens_for(frames, prefix=prefix).requires_grad_()
    update = make_shift(fraction=fraction, tokens=which, order=order)(tokens, (2, 3)).update
    expected = slow_shift(tokens, prefix, share, which, order)
    torch.testing.assert_close(tokens + update, expected, rtol=1e-12, atol=1e-12)
    weights = tokens_for(frames, prefix=prefix, seed=1)
    gradients = [torch.autograd.grad((result * weights).sum(), tokens)[0] for result in (tokens + update, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_default_shift_takes_an_eighth_per_side():
    """Frames are numbered 1, 2, 3: checks the content of each channel of each patch after the shift."""
    tokens = torch.arange(1.0, 4.0).view(1, 3, 1, 1).expand(1, 3, 7, WIDTH)
    shifted = tokens + make_shift()(tokens, (2, 3)).update
    assert shifted[0, :, 1, :5].tolist() == [[2, 2, 0, 0, 1], [3, 3, 1, 1, 2], [0, 0, 2, 2, 3]]
    assert torch.equal(shifted[:, :, :1], tokens[:, :, :1])
    assert torch.equal(shifted[..., 4:], tokens[..., 4:])
    assert (shifted[:, :, 1:] == shifted[:, :, 1:2]).all()


def test_single_frame_is_padded_with_zeros():
    tokens = tokens_for(1)
    shifted = tokens + make_shift()(tokens, (2, 3)).update
    assert not shifted[:, :, 1:, :4].any()
    assert torch.equal(shifted[..., 4:], tokens[..., 4:])


def test_shift_twice_reaches_two_frames():
    tokens = torch.zeros(1, 5, 6, WIDTH)
    tokens[:, 2] = 1
    shift = make_shift()
    for _ in range(2):
        tokens = tokens + shift(tokens, (2, 3)).update
    assert tokens[0, :, 0, 0].tolist() == [1, 0, 0, 0, 0]
    assert tokens[0, :, 0, 2].tolist() == [0, 0, 0, 0, 1]
    assert tokens[0, :, 0, 4].tolist() == [0, 0, 1, 0, 0]


@torch.no_grad()
def test_shift_model_is_saved_without_parameters(make_model, tmp_path):
    frames = random_frames()
    model = make_model("shift", ["a", "b"])
    assert not Shift.identity_at_init
    assert not [parameter for adapter in model.encoder.adapters() for parameter in adapter.parameters()]
    features = model.encode_video(frames)
    assert (features - make_model().encode_video(frames)).abs().max() > 1e-3
    assert model(frames, trace=True).traces == {}
    model.save_pretrained(tmp_path)
    assert torch.equal(from_pretrained(tmp_path).encode_video(frames), features)


@torch.no_grad()
def test_order_of_the_frames_matters_to_the_model(make_model):
    model, frames = make_model("shift"), random_frames()
    assert (model.encode_video(frames) - model.encode_video(frames.flip(1))).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "class"}, "shift: tokens='class' is not one of patches, prefix, both"),
        ({"order": "next"}, "shift: order='next' is not one of next_first, previous_first"),
        ({"fraction": 0}, "shift: fraction=0 must be in (0, 0.5]"),
        ({"fraction": 8}, "shift: fraction=8 must be in (0, 0.5]"),
    ],
)
def test_wrong_option_is_refused_by_the_config(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ShiftConfig(**options)


def test_fraction_of_less_than_a_channel_is_refused():
    with pytest.raises(ValueError, match=r"fraction=0.05 of the tower's width 16 is less than one channel.* 0\.0625"):
        make_shift(fraction=0.05)


def test_prefix_shift_of_a_tower_without_prefix_is_refused():
    with pytest.raises(ValueError, match="this tower has no prefix tokens; use tokens='patches'"):
        make_shift(tokens="prefix")(tokens_for(prefix=0), (2, 3))
