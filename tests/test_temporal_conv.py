"""Temporal convolution against a reference of loops with gradients; frame counts, tokens, and the preset with SIFA."""

import re

import pytest
import torch
from conftest import random_frames, shake, shake_adapters

from clipvid.adapters import ADAPTERS, resolve_adapters
from clipvid.adapters.base import BlockInfo
from clipvid.adapters.temporal_conv import TemporalConv, TemporalConvConfig
from clipvid.hub.loading import from_pretrained
from clipvid.model.factory import create_model

WIDTH = 6
LABELS = ["walking", "running"]


def make_conv(**options):
    """Build a temporal convolution of width 6 in float64 with random matrices."""
    conv = TemporalConv(TemporalConvConfig(**options), BlockInfo(WIDTH, 2, 3)).double()
    shake(conv, 0.3)
    return conv


def tokens_for(frames=3, grid=(2, 3), prefix=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, frames, prefix + grid[0] * grid[1], WIDTH)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def slow_conv(weight, tokens, num_still):
    """Return the update [B, T, L, D], one clip, frame and token at a time. The first tokens of a frame stay."""
    update = []
    for clip in tokens:
        for t in range(len(clip)):
            for place in range(clip.shape[1]):
                total = torch.zeros_like(clip[t, place])
                for tap, source in enumerate((t - 1, t, t + 1)):
                    if place >= num_still and 0 <= source < len(clip):
                        total = total + weight[tap] @ clip[source, place]
                update.append(total)
    return torch.stack(update).view_as(tokens)


@pytest.mark.parametrize("which", ["all", "patches"])
@pytest.mark.parametrize(("frames", "grid", "prefix"), [(3, (2, 3), 1), (1, (3, 2), 3), (5, (1, 4), 0), (2, (1, 1), 1)])
def test_update_and_gradients_equal_reference(frames, grid, prefix, which):
    conv, tokens = make_conv(tokens=which), tokens_for(frames, grid, prefix).requires_grad_()
    still = prefix if which == "patches" else 0
    updates = [conv(tokens, grid).update, slow_conv(conv.weight, tokens, still)]
    torch.testing.assert_close(*updates, rtol=1e-12, atol=1e-12)
    assert not updates[0][:, :, :still].any()
    weights = tokens_for(frames, grid, prefix, seed=2)
    gradients = [torch.autograd.grad((update * weights).sum(), [tokens, conv.weight]) for update in updates]
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-11, atol=1e-12)


def test_single_frame_uses_the_middle_matrix_only():
    conv, tokens = make_conv(), tokens_for(1)
    torch.testing.assert_close(conv(tokens, (2, 3)).update, tokens @ conv.weight[1].T)


def test_order_of_frames_changes_the_update():
    """The reversed clip equals the clip under exchanged outer matrices."""
    conv, tokens = make_conv(), tokens_for(4)
    backwards = conv(tokens.flip(1), (2, 3)).update.flip(1)
    assert (backwards - conv(tokens, (2, 3)).update).abs().max() > 0.1
    conv.weight.data = conv.weight.data.flip(0)
    torch.testing.assert_close(conv(tokens, (2, 3)).update, backwards)


def test_trace_is_the_norm_of_each_update():
    output = make_conv()(tokens_for(), (2, 3), trace=True)
    assert set(output.trace) == {"response"}
    torch.testing.assert_close(output.trace["response"], output.update.square().sum(-1).sqrt())


def test_wrong_option_is_refused():
    with pytest.raises(ValueError, match="temporal_conv: tokens='patch' is not one of all, patches"):
        TemporalConvConfig(tokens="patch")


# The preset


def test_preset_is_the_list_of_its_adapters():
    written = [{"name": "sifa", "layers": "even", "deformable": False}, {"name": "temporal_conv", "layers": "odd"}]
    assert resolve_adapters("sifa_transformer") == resolve_adapters(written)
    assert list(resolve_adapters(["sifa_transformer", "gta"])) == ["sifa", "temporal_conv", "gta"]
    assert resolve_adapters({"name": "sifa_transformer"}) == resolve_adapters(written)


@torch.no_grad()
def test_preset_model_is_saved_as_its_list(make_model, tmp_path):
    model, frames = shake_adapters(make_model("sifa_transformer", LABELS)), random_frames()
    assert [list(layer.adapters) for layer in model.encoder.layers] == [["sifa"], ["temporal_conv"]]
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert [choice["name"] for choice in loaded.config.adapter] == ["sifa", "temporal_conv"]
    assert torch.equal(loaded(frames).logits, model(frames).logits)


@torch.no_grad()
def test_fresh_preset_is_the_identity_for_any_number_of_frames(make_model):
    for num_frames in (1, 2, 9):
        frames = random_frames(num_frames=num_frames)
        assert torch.equal(make_model("sifa_transformer").encode_video(frames), make_model().encode_video(frames))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"name": "sifa_transformer", "layers": "all"},
            "preset without options, got 'layers'; to change it, write its",
        ),
        (["sifa", "sifa_transformer"], r"each name may be listed once, got ['sifa', 'sifa', 'temporal_conv']"),
        ("sifa_transformr", "unknown adapter 'sifa_transformr' (did you mean 'sifa_transformer'?)"),
    ],
)
def test_misuse_of_a_preset_is_refused(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        resolve_adapters(spec)


def test_option_of_create_model_beside_a_preset_is_refused():
    with pytest.raises(ValueError, match="preset without options, got 'kernel_size'"):
        create_model("tiny", adapter="sifa_transformer", kernel_size=5)


def test_own_preset_is_one_entry(monkeypatch):
    monkeypatch.setitem(ADAPTERS.presets, "my_stack", ["gta", {"name": "shift", "layers": "upper"}])
    assert list(resolve_adapters("my_stack")) == ["gta", "shift"]
    assert resolve_adapters("my_stack")["shift"].layers == "upper"
