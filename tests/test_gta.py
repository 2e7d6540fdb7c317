"""GTA against a reference of loops with gradients, the learned shared temporal matrix, and other clip lengths."""

import itertools
import re

import pytest
import torch
from conftest import make_adapter, random_frames, shake
from torch.nn import functional as F

from clipvid.adapters.base import BlockInfo
from clipvid.adapters.gta import GTA, GTAConfig, interpolation_weights, resample_matrices

WIDTH = 16


def make_gta(num_frames=3, **options):
    """Build a GTA of width 16 in float64 with every tensor random."""
    torch.manual_seed(0)
    adapter = GTA(GTAConfig(**{"groups": 4, "regions": 3} | options), BlockInfo(WIDTH, 2, num_frames)).double()
    shake(adapter, 0.3)
    return adapter


def tokens_for(frames=3, length=7, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, length, WIDTH, generator=generator, dtype=torch.float64)


def update_of(adapter, tokens):
    return adapter(tokens, (1, tokens.shape[2])).update


def slow_weights(old, new):
    """Return the share of each of `old` cells in each of `new` ones along the same axis, one number at a time."""
    rows = []
    for i in range(new):
        centre, reach = (i + 0.5) * old / new - 0.5, max(1.0, old / new)
        row = [max(0.0, 1 - abs(centre - j) / reach) for j in range(old)]
        rows.append([value / sum(row) for value in row])
    return rows


def slow_matrix(matrix, normalize, frames):
    """Resample one learned matrix [T, T] to `frames` frames: rows interpolated, columns divided."""
    if normalize == "softmax":
        matrix = torch.stack([row.exp() / row.exp().sum() for row in matrix])
    old = matrix.shape[0]
    weights = slow_weights(old, frames)
    columns = [sum(row[j] for row in weights) for j in range(old)]
    result = torch.zeros(frames, frames, dtype=matrix.dtype)
    for t, s, i, j in itertools.product(range(frames), range(frames), range(old), range(old)):
        result[t, s] += weights[t][i] * weights[s][j] / columns[j] * matrix[i, j]
    return result


def slow_mix(mix, values):
    """Compute y_g[t] = sum_h sum_s A_gh[t, s] v_h[s] on values [B, T, M, D], group by group and frame by frame."""
    frames, learned = values.shape[1], mix.matrices
    parts = values.chunk(learned.shape[0], dim=-1)
    groups = []
    for g in range(len(parts)):
        sources = range(len(parts)) if learned.ndim == 4 else [g]
        moments = [0.0] * frames
        for h in sources:
            matrix = slow_matrix(learned[g, h] if learned.ndim == 4 else learned[g], mix.normalize, frames)
            for t in range(frames):
                moments[t] = moments[t] + sum(matrix[t, s] * parts[h][:, s] for s in range(frames))
        groups.append(torch.stack(moments, dim=1))
    return torch.cat(groups, dim=-1)


def slow_regions(branch, hidden, values):
    """Compute the region branch token by token."""
    logits = hidden @ branch.assign.weight.T + branch.assign.bias
    shares = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    regions = []
    for r in range(shares.shape[-1]):
        weighted = sum(shares[:, :, n, r, None] * values[:, :, n] for n in range(values.shape[2]))
        regions.append(weighted / sum(shares[:, :, n, r, None] for n in range(values.shape[2])))
    mixed = slow_mix(branch.mix, torch.stack(regions, dim=2))
    handed_back = torch.zeros_like(values)
    for n, r in itertools.product(range(values.shape[2]), range(mixed.shape[2])):
        handed_back[:, :, n] += shares[:, :, n, r, None] * mixed[:, :, r]
    return handed_back, shares


def slow_gta(adapter, tokens):
    """Compute the update [B, T, P+N, D]."""
    mean, variance = tokens.mean(-1, keepdim=True), tokens.var(-1, correction=0, keepdim=True)
    hidden = (tokens - mean) / (variance + 1e-5).sqrt() * adapter.norm.weight + adapter.norm.bias
    values = hidden @ adapter.value.weight.T + adapter.value.bias
    mixed = slow_mix(adapter.pixels, values)
    if adapter.regions is not None:
        mixed = mixed + slow_regions(adapter.regions, hidden, values)[0]
    return mixed @ adapter.out.weight.T + adapter.out.bias


@pytest.mark.parametrize("regions", [0, 3])
@pytest.mark.parametrize("normalize", ["none", "softmax"])
@pytest.mark.parametrize("cross_channel", [True, False])
@pytest.mark.parametrize(("trained", "frames"), [(3, 3), (3, 5), (5, 2), (3, 1), (1, 3), (1, 1)])
def test_update_and_gradients_equal_reference(trained, frames, cross_channel, normalize, regions):
    adapter = make_gta(trained, cross_channel=cross_channel, normalize=normalize, regions=regions)
    tokens = tokens_for(frames, 5).requires_grad_()
    weights = tokens_for(frames, 5, seed=2)
    updates = [update_of(adapter, tokens), slow_gta(adapter, tokens)]
    torch.testing.assert_close(*updates, rtol=1e-9, atol=1e-10)
    leaves = [tokens, *adapter.parameters()]
    gradients = [torch.autograd.grad((update * weights).sum(), leaves) for update in updates]
    for name, ours, reference in zip(["tokens", *dict(adapter.named_parameters())], *gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_trace_matches_reference_matrices_and_regions():
    adapter, tokens = make_gta(3, normalize="softmax"), tokens_for(4, 9)
    trace = adapter(tokens, (2, 4), trace=True).trace
    assert set(trace) == {"pixel_matrices", "region_matrices", "regions"}
    hidden = adapter.norm(tokens)
    torch.testing.assert_close(trace["regions"], slow_regions(adapter.regions, hidden, adapter.value(hidden))[1])
    for name, mix in (("pixel_matrices", adapter.pixels), ("region_matrices", adapter.regions.mix)):
        assert trace[name].shape == (4, 4, 4, 4)
        torch.testing.assert_close(trace[name][1, 2], slow_matrix(mix.matrices[1, 2], "softmax", 4))
    alone = make_gta(3, cross_channel=False, regions=0)(tokens, (2, 4), trace=True).trace
    assert {name: tuple(seen.shape) for name, seen in alone.items()} == {"pixel_matrices": (4, 4, 4)}


@pytest.mark.parametrize("num_frames", [4, 16])
def test_initial_matrices_have_std_one_over_frames(num_frames):
    torch.manual_seed(0)
    adapter = GTA(GTAConfig(), BlockInfo(64, 2, num_frames))
    for matrices in (adapter.pixels.matrices, adapter.regions.mix.matrices):
        assert matrices.shape == (8, 8, num_frames, num_frames)
        assert matrices.std().item() == pytest.approx(1 / num_frames, rel=0.1)
        assert matrices.mean().abs().item() < 0.1 / num_frames


def test_all_samples_share_the_matrices():
    adapter = make_gta()
    traces = [adapter(tokens_for(seed=seed), (2, 3), trace=True).trace for seed in (1, 2)]
    for name in ("pixel_matrices", "region_matrices"):
        assert torch.equal(traces[0][name], traces[1][name])
    assert not torch.allclose(traces[0]["regions"], traces[1]["regions"])


@pytest.mark.parametrize("regions", [0, 3])
@pytest.mark.parametrize("normalize", ["none", "softmax"])
def test_order_of_the_frames_matters(normalize, regions):
    adapter, tokens = make_gta(normalize=normalize, regions=regions), tokens_for()
    backward = update_of(adapter, tokens.flip(1))
    assert (backward - update_of(adapter, tokens).flip(1)).abs().max() > 0.05
    assert (backward.mean(1) - update_of(adapter, tokens).mean(1)).abs().max() > 0.05


def test_every_frame_reads_every_frame():
    adapter, tokens = make_gta(5), tokens_for(5).requires_grad_()
    update = update_of(adapter, tokens)
    for t in range(5):
        gradient = torch.autograd.grad(update[:, t].square().sum(), tokens, retain_graph=True)[0]
        assert gradient.abs().amax(dim=(0, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("cross_channel", [True, False])
def test_cross_channel_mixes_groups(cross_channel):
    mix = make_gta(cross_channel=cross_channel).pixels
    values = tokens_for()
    changed = values.clone()
    changed[..., :4] += 1
    difference = (mix(changed) - mix(values)).abs().amax(dim=(0, 1, 2)).unflatten(0, (4, 4)).amax(-1)
    assert difference[0] > 0.1
    assert (difference[1:] > 0.1).tolist() == [cross_channel] * 3
    assert (difference[1:] == 0).tolist() == [not cross_channel] * 3


def test_pixel_branch_is_local_and_regions_are_global():
    tokens = tokens_for()
    changed = tokens.clone()
    changed[:, :, 2] = changed[:, :, 2].flip(-1)
    for regions, touched in ((0, {2}), (3, set(range(7)))):
        adapter = make_gta(regions=regions)
        difference = (update_of(adapter, changed) - update_of(adapter, tokens)).abs().amax(dim=(0, 1, 3))
        assert {place for place in range(7) if difference[place] > 1e-9} == touched


def test_prefix_tokens_are_treated_as_pixels():
    adapter, tokens = make_gta(), tokens_for()
    assert torch.equal(adapter(tokens, (2, 3)).update, adapter(tokens, (1, 7)).update)
    order = torch.tensor([3, 0, 6, 5, 1, 2, 4])
    torch.testing.assert_close(update_of(adapter, tokens[:, :, order]), update_of(adapter, tokens)[:, :, order])


def test_regions_are_weighted_means():
    branch, values = make_gta().regions, tokens_for()
    shares = branch(values, values)[1]
    torch.testing.assert_close(shares.sum(-1), torch.ones_like(shares[..., 0]))
    assert shares.std(dim=2).min() > 0.01
    constant = values[:, :, :1].expand(-1, -1, 7, -1)
    torch.testing.assert_close(branch(values, constant)[0], branch.mix(constant))


def test_empty_region_is_finite_in_half_precision():
    adapter = GTA(GTAConfig(groups=4, regions=3), BlockInfo(WIDTH, 2, 3))
    shake(adapter, 0.3)
    with torch.no_grad():
        adapter.regions.assign.bias[1] = -200.0
    adapter.half()
    tokens = tokens_for().half().requires_grad_()
    update = update_of(adapter, tokens)
    update.float().square().mean().backward()
    assert adapter(tokens, (1, 7), trace=True).trace["regions"][..., 1].max() == 0
    assert update.isfinite().all()
    assert tokens.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in adapter.parameters())


@pytest.mark.parametrize(("trained", "frames"), [(8, 16), (8, 5), (4, 11), (8, 1), (1, 8), (3, 64), (64, 3)])
def test_resampling_keeps_row_sums(trained, frames):
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(2, 3, trained, trained, generator=generator, dtype=torch.float64)
    sums = resample_matrices(matrices, frames).sum(-1)
    expected = matrices.sum(-1) @ torch.tensor(slow_weights(trained, frames), dtype=torch.float64).T
    torch.testing.assert_close(sums, expected)
    matrices = matrices.softmax(-1)
    resampled = resample_matrices(matrices, frames)
    assert (resampled >= 0).all()
    torch.testing.assert_close(resampled.sum(-1), torch.ones(2, 3, frames, dtype=torch.float64))


def test_resampling_to_the_trained_length_changes_nothing():
    matrices = torch.randn(2, 8, 8)
    assert torch.equal(resample_matrices(matrices, 8), matrices)
    assert torch.equal(interpolation_weights(8, 8, matrices), torch.eye(8))


@pytest.mark.parametrize("factor", [2, 3])
def test_integer_upsampling_is_bilinear(factor):
    matrices = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    size = (4 * factor, 4 * factor)
    expected = F.interpolate(matrices, size, mode="bilinear") / factor
    torch.testing.assert_close(resample_matrices(matrices, size[0]), expected)


def test_shortening_averages_over_all_trained_frames():
    weights = interpolation_weights(8, 2, torch.zeros(1, dtype=torch.float64))
    eye = torch.eye(8, dtype=torch.float64)[None, None]
    torch.testing.assert_close(weights, F.interpolate(eye, (2, 8), mode="bilinear", antialias=True)[0, 0])


@pytest.mark.parametrize("normalize", ["none", "softmax"])
def test_still_clip_update_is_independent_of_length(normalize):
    """It is exactly the interpolation over time of the update at the trained length."""
    adapter = make_gta(4, normalize=normalize)
    still = tokens_for(1)
    trained = update_of(adapter, still.expand(-1, 4, -1, -1))
    for frames in (1, 2, 7, 32):
        weights = torch.tensor(slow_weights(4, frames), dtype=torch.float64)
        expected = torch.einsum("ts,bsld->btld", weights, trained)
        torch.testing.assert_close(update_of(adapter, still.expand(-1, frames, -1, -1)), expected)


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 8])
def test_model_of_four_frames_runs_with_others(make_model, num_frames):
    model = make_model({"name": "gta", "groups": 4}, num_frames=4)
    for adapter in model.encoder.adapters():
        shake(adapter)
    features = model.encode_video(random_frames(num_frames=num_frames))
    assert features.isfinite().all()
    plain = make_model(num_frames=4).encode_video(random_frames(num_frames=num_frames))
    assert (features - plain).abs().max() > 1e-3


def test_every_parameter_of_every_variant_learns():
    for options in ({}, {"cross_channel": False}, {"normalize": "softmax"}, {"regions": 0}):
        adapter = make_adapter("gta", **options)
        tokens = torch.randn(2, 3, 7, 64)
        adapter(tokens, (2, 3)).update.square().mean().backward()
        silent = [name for name, value in adapter.named_parameters() if not value.grad.abs().max() > 0]
        assert not silent, options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "sum"}, "gta: normalize='sum' is not one of none, softmax"),
        ({"cross_channel": "no"}, "gta: cross_channel='no' is not one of True, False"),
        ({"groups": 0}, "gta: groups=0 must be at least 1"),
        ({"regions": 1}, "gta: regions=1 must be at least 2, or 0 to disable the region branch"),
        ({"regions": -2}, "gta: regions=-2 must be at least 2, or 0"),
    ],
)
def test_wrong_option_is_refused_by_the_config(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        GTAConfig(**options)


def test_groups_must_divide_the_width():
    with pytest.raises(ValueError, match="gta: groups=5 does not divide the tower's width 64; choose a divisor"):
        GTA(GTAConfig(groups=5), BlockInfo(64, 2, 3))
