"""ILA against its slow reference: points, masks, losses, updates and every gradient; schedules and statistics."""

import re

import pytest
import torch
from conftest import random_frames, shake
from reference_ila import (
    aligned_frames,
    axis_mask,
    ila_update,
    interactive_block,
    interactive_points,
    jitter_at,
    masks_of,
    max_pool_2,
    message_tokens,
    patch_maps,
)
from torch import nn

from clipvid.adapters.base import BlockInfo
from clipvid.adapters.ila import ILA, ILAConfig, _halve, align, point_mask
from clipvid.hub import from_pretrained

HIDDEN = 64
K400 = ("0.depthwise_conv.0", "0.depthwise_conv.1", None, "0.pointwise_conv.0", "0.pointwise_conv.1", None, "1", "2")
CONVS = {"k400": K400, "ssv2": ("0", "1", None, "3", "4")}
POINTS = {"conv1": "0", "norm1": "1", "conv2": "4", "norm2": "5", "reduce": "10", "predict": "12"}


def make_ila(variant="k400", norm="batch", seed=0, **options):
    """An ILA of width 64 in float64 with every tensor random."""
    torch.manual_seed(seed)
    adapter = ILA(ILAConfig(variant=variant, hidden=HIDDEN, norm=norm, **options), BlockInfo(64, 1, 4)).double()
    shake(adapter, 0.1, seed)
    return adapter


def authors_state(adapter):
    """The adapter's tensors under the authors' names; gradients flow back to the adapter's parameters."""
    state = {}
    for name, value in {**dict(adapter.named_parameters()), **dict(adapter.named_buffers())}.items():
        place, _, rest = name.partition(".")
        if place in ("jitter", "shifts"):
            continue
        if place == "interactive_block":
            index, kind = rest.split(".")
            name = f"message_attn.interactive_block.{CONVS[adapter.config.variant][int(index)]}.{kind}"
        elif place == "point_predictor":
            layer, kind = rest.split(".")
            name = f"message_attn.prediction_block.{POINTS[layer]}.{kind}"
        elif place == "temporal_conv":
            name = f"message_attn.conv.{rest}"
            value = value[..., None, None] if rest == "weight" else value
        elif place == "interactive_fc":
            name = f"message_attn.fc.{rest}"
        state[name] = value
    return state


def tokens_for(frames, grid, prefix=1, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, frames, prefix + grid[0] * grid[1], 64)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


# Parity with the reference

PARITY = [  # frames, grid, prefix
    (2, (4, 4), 1),
    (5, (3, 5), 1),
    (3, (7, 6), 0),
    (3, (5, 4), 3),
    (2, (1, 6), 1),
    (3, (6, 1), 2),
    (3, (2, 3), 1),
    (2, (1, 1), 1),
]
MODES = {  # norm policy, training: jitter and batch statistics come with them
    "inference": ("batch", False),
    "training": ("batch", True),
    "frozen_training": ("frozen_batch", True),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", ["k400", "ssv2"])
@pytest.mark.parametrize(("frames", "grid", "prefix"), PARITY, ids=str)
def test_update_loss_and_gradients_meet_the_reference(variant, mode, frames, grid, prefix):
    norm, training = MODES[mode]
    adapter = make_ila(variant, norm).train(training)
    adapter.start_epoch(0)
    tokens = tokens_for(frames, grid, prefix).requires_grad_()
    jitter = jitter_at(0) if training else None
    expected = ila_update(authors_state(adapter), tokens, grid, jitter, batch_stats=mode == "training")
    output = adapter(tokens, grid)
    close(output.update, expected[0])
    close(output.loss, expected[1])
    weights = tokens_for(frames, grid, prefix, seed=2)
    leaves = [tokens, *adapter.parameters()]
    gradients = [
        torch.autograd.grad((update * weights).sum() + 10 * loss, leaves)
        for update, loss in ((output.update, output.loss), expected)
    ]
    for name, ours, reference in zip(["tokens", *dict(adapter.named_parameters())], *gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("variant", ["k400", "ssv2"])
def test_single_frame_has_no_pairs(variant, training):
    adapter = make_ila(variant).train(training)
    tokens = tokens_for(1, (3, 5))
    update, loss = ila_update(authors_state(adapter), tokens, (3, 5))
    output = adapter(tokens, (3, 5), trace=True)
    close(output.update, update)
    assert loss == 0
    assert output.loss is None


@pytest.mark.parametrize("variant", ["k400", "ssv2"])
def test_trace_shows_the_points_and_masks_of_the_reference(variant):
    adapter, grid = make_ila(variant).eval(), (3, 5)
    tokens = tokens_for(4, grid)
    state = authors_state(adapter)
    maps = patch_maps(message_tokens(state, tokens), grid)
    pairs = torch.cat([maps[:, :-1], maps[:, 1:]], dim=2).flatten(0, 1)
    points = interactive_points(state, interactive_block(state, pairs))
    trace = adapter(tokens, grid, trace=True).trace
    assert trace["points"].shape == (2, 3, 2, 2)
    close(trace["points"].flatten(0, 1).flatten(1), points)
    assert points.std() > 1e-3
    assert trace["masks"].shape == (2, 3, 2, 15)
    for frame in range(2):
        close(trace["masks"][:, :, frame].flatten(0, 1), masks_of(points[:, 2 * frame :][:, :2], grid).flatten(1))


def test_fresh_points_lie_in_the_middle():
    adapter = ILA(ILAConfig(hidden=HIDDEN), BlockInfo(64, 1, 4)).double()
    assert not adapter(tokens_for(3, (4, 4)), (4, 4), trace=True).trace["points"].any()


@pytest.mark.parametrize("length", [1, 2, 3, 7, 14])
def test_mask_along_an_axis_meets_the_reference(length):
    points = torch.linspace(-1.2, 1.2, 41, dtype=torch.float64)
    close(point_mask(points, length), axis_mask(points, length))


def test_mask_falls_as_described():
    """1 within 0.25, then 1.5 less per unit of distance, never below 0."""
    points = torch.tensor([0.0, -0.25, 0.25, 0.45, -0.75, 0.95], dtype=torch.float64)
    expected = torch.tensor([1, 1, 1, 0.7, 0.25, 0], dtype=torch.float64)
    close(point_mask(points, 1)[:, 0], expected)
    close(point_mask(torch.tensor([1.0], dtype=torch.float64), 3)[0], torch.tensor([0, 0, 1.0], dtype=torch.float64))


def test_training_averages_nine_masks_around_each_point():
    adapter, grid = make_ila(norm="frozen_batch").train(), (4, 6)
    adapter.jitter.fill_(0.13)
    trace = adapter(tokens_for(3, grid), grid, trace=True).trace
    for frame in range(2):
        expected = masks_of(trace["points"][:, :, frame].flatten(0, 1), grid, 0.13)
        close(trace["masks"][:, :, frame].flatten(0, 1), expected.flatten(1))


def test_alignment_meets_the_reference_on_points_of_any_place():
    """Points given, outside of the grid too: a frame whose mask is empty has cosine 0."""
    grid = (3, 4)
    patches = tokens_for(4, grid, prefix=0)
    points = 3 * torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 1.5
    points[0, 0] = 5.0
    masks = torch.stack([masks_of(points[..., i : i + 2].flatten(0, 1), grid) for i in (0, 2)], 1)
    aligned, loss = align(patches, masks.flatten(2).unflatten(0, (2, 3)))
    expected, expected_loss = aligned_frames(patches, points, grid)
    close(aligned, expected)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (3, 2), (7, 8)])
def test_pooling_keeps_an_axis_of_one_cell(size):
    maps = torch.randn(2, 3, *size)
    assert torch.equal(_halve(maps), max_pool_2(maps))
    assert _halve(maps).shape[2:] == tuple(max(1, length // 2) for length in size)


# Schedule


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.2), (29, 0.2), (30, 0.1), (35, 0.2 / 64)])
def test_jitter_halves_every_epoch_after_the_29th_and_survives_a_save(make_model, tmp_path, epoch, expected):
    model = make_model("ila")
    for adapter in model.encoder.adapters():
        adapter.start_epoch(epoch)
    assert expected == pytest.approx(jitter_at(epoch))
    names = [name for name in model.trained_state() if name.endswith("ila.jitter")]
    assert len(names) == 2
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    for name in names:
        assert loaded.state_dict()[name].item() == pytest.approx(expected)
        assert name in dict(loaded.named_buffers())


def test_jitter_matters_in_training_only():
    adapter, tokens = make_ila(norm="frozen_batch"), tokens_for(3, (4, 4))
    seen = {}
    for training in (True, False):
        for epoch in (0, 30):
            adapter.train(training).start_epoch(epoch)
            seen[training, epoch] = adapter(tokens, (4, 4)).update
    assert not torch.allclose(seen[True, 0], seen[True, 30])
    assert torch.equal(seen[False, 0], seen[False, 30])


# Statistics, drop path, options


@pytest.mark.parametrize(("norm", "moves"), [("batch", True), ("frozen_batch", False)])
def test_training_moves_statistics_only_under_the_batch_policy(norm, moves):
    adapter, tokens = make_ila(norm=norm), tokens_for(3, (4, 4))
    start = {name: value.clone() for name, value in adapter.named_buffers() if "norm" in name or "running" in name}
    assert len([name for name in start if name.endswith("running_mean")]) == 5
    adapter.eval()(tokens, (4, 4))
    buffers = dict(adapter.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in start.items())
    adapter.train()(tokens, (4, 4))
    for name, value in start.items():
        assert torch.equal(buffers[name], value) != moves, name


def test_group_policy_keeps_no_statistics_and_clips_apart():
    adapter, tokens = make_ila(norm="group").train(), tokens_for(3, (4, 4))
    assert not [name for name, _ in adapter.named_buffers() if "running" in name]
    assert not [module for module in adapter.modules() if isinstance(module, nn.BatchNorm2d)]
    close(adapter(tokens, (4, 4)).update[:1], adapter(tokens[:1], (4, 4)).update)


def test_drop_path_drops_each_of_two_updates_of_whole_clips_in_training():
    options = {"norm": "frozen_batch"}
    full, dropping = make_ila(**options).train(), make_ila(**options, drop_path=0.5).train()
    tokens = tokens_for(3, (4, 4), batch=64)
    update = dropping(tokens, (4, 4)).update
    both = full(tokens, (4, 4)).update
    with torch.no_grad():
        full.temporal_skip_fc.weight.zero_()
        full.temporal_skip_fc.bias.zero_()
    aligned = full(tokens, (4, 4)).update
    interactive = both - aligned
    kinds = torch.stack([torch.zeros_like(aligned), 2 * aligned, 2 * interactive, 2 * (aligned + interactive)])
    distance = (update - kinds).abs().amax(dim=(2, 3, 4))  # [4 kinds, 64 clips]
    assert distance.amin(dim=0).max() < 1e-9
    assert set(distance.argmin(dim=0).tolist()) == {0, 1, 2, 3}
    close(dropping.eval()(tokens, (4, 4)).update, make_ila(**options).eval()(tokens, (4, 4)).update)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "k600"}, "ila: variant='k600' is not one of k400, ssv2"),
        ({"norm": "layer"}, "ila: norm='layer' is not one of batch, frozen_batch, group"),
        ({"hidden": 12}, "ila: hidden=12 must be a positive multiple of 8"),
        ({"hidden": 0}, "ila: hidden=0 must be a positive multiple of 8"),
        ({"drop_path": 1.5}, "drop_path"),
    ],
)
def test_wrong_option_is_refused_by_the_config(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ILAConfig(**options)


def test_model_returns_a_loss_per_block(make_model):
    output = make_model("ila", labels=["a", "b"])(random_frames())
    assert list(output.losses) == ["ila.0", "ila.1"]
    assert all(0 < loss < 2 for loss in output.losses.values())
