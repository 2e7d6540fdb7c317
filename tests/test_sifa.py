"""SIFA against a slow reference that samples tap by tap, and the authors' intermediates; properties and errors."""

import re

import pytest
import torch
import torch.nn.functional as F
from conftest import shake
from reference_sifa import slow_attention, slow_operator, slow_update
from torch import nn

from clipvid.adapters.base import BlockInfo
from clipvid.adapters.deformable import place_taps
from clipvid.adapters.sifa import SIFA, SIFAConfig, aggregate, correlate, inter_frame_attention, motion_feature

WIDTH = 8
OPTIONS = {
    "default": {},
    "fixed": {"deformable": False},
    "difference": {"motion": "difference"},
    "softmax": {"normalize": "softmax"},
    "projected": {"projected": True},
    "all": {"kernel_size": 5, "normalize": "softmax", "projected": True},
    "point": {"kernel_size": 1},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def random_tensor(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_sifa(fresh=False, width=WIDTH, **options):
    """Build a SIFA in float64, with noise added unless `fresh`."""
    torch.manual_seed(0)
    adapter = SIFA(SIFAConfig(**options), BlockInfo(width, 2, 4)).double()
    if not fresh:
        shake(adapter, 0.3)
    return adapter


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# The operator

CASES = [  # frames, grid, kernel size, spread of the offsets in cells
    (3, (3, 4), 3, 0.0),
    (3, (3, 4), 3, 0.7),
    (2, (3, 3), 3, 40.0),
    (3, (3, 3), 3, 4.0),
    (2, (4, 3), 5, 2.0),
    (2, (2, 5), 1, 1.0),
    (2, (1, 4), 3, 0.7),
    (2, (4, 1), 3, 0.7),
    (3, (1, 1), 3, 0.7),
    (2, (1, 1), 7, 3.0),
]


@pytest.mark.parametrize("normalize", [None, "softmax"])
@pytest.mark.parametrize(("frames", "grid", "kernel", "spread"), CASES, ids=str)
def test_operator_and_gradients_equal_reference(frames, grid, kernel, spread, normalize):
    x = random_tensor(2, 5, frames, *grid).requires_grad_()
    offsets = random_tensor(2, 2 * kernel**2, frames, *grid, seed=1, scale=spread).requires_grad_()
    actual = inter_frame_attention(x, offsets, kernel, normalize)
    expected = slow_operator(x, offsets, kernel, normalize == "softmax")
    close(actual, expected)
    assert not actual[:, :, -1].any()
    weights = random_tensor(*x.shape, seed=2)
    ours, reference = (
        torch.autograd.grad((y * weights).sum(), [x, offsets], materialize_grads=True) for y in (actual, expected)
    )
    close(ours[0], reference[0])
    if spread:  # at integer positions the derivative is one-sided
        close(ours[1], reference[1])


def test_operator_equals_authors_intermediates(shared_fixture):
    expected = shared_fixture("sifa_op_tiny")
    x, grid = expected["x"], tuple(expected["x"].shape[-2:])
    adapter = make_sifa(width=x.shape[1])
    adapter.offset_conv.weight.data = expected["conv_offset_weight"][:, :, 0]

    def maps(tensor):  # [N, T, HW, C] -> [N, C, T, H, W]
        return tensor.transpose(1, 3).transpose(2, 3).unflatten(-1, grid)

    frames = x.flatten(-2).permute(0, 2, 3, 1)
    previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    close(maps(motion_feature(previous, frames)), expected["motion_feature"], 1e-12)
    offsets = adapter.predict_offsets(previous, frames, grid)
    close(maps(offsets.flatten(-2)), expected["offset"], 1e-12)
    taps = place_taps(offsets, grid, 3)
    correlation = correlate(previous, frames, taps)
    close(maps(correlation), expected["correlation"], 1e-12)
    close(maps(aggregate(correlation, frames, taps)), expected["aggregated"], 1e-12)
    close(inter_frame_attention(x, expected["offset"]), expected["output"], 1e-12)
    with torch.no_grad():
        adapter.norm.weight.fill_(1)
        adapter.norm.bias.zero_()
    update = F.layer_norm(expected["output"].flatten(-2).permute(0, 2, 3, 1), (x.shape[1],))
    close(adapter(frames, grid).update, update, 1e-12)


@pytest.mark.parametrize("normalize", [None, "softmax"])
def test_numeric_derivatives_of_features_and_offsets(normalize):
    grid = (2, 3)
    generator = torch.Generator().manual_seed(1)
    shape = (1, 18, 2, *grid)
    whole = torch.randint(-2, 3, shape, generator=generator)
    offsets = whole + 0.1 + 0.8 * torch.rand(shape, generator=generator, dtype=torch.float64)
    inputs = (random_tensor(1, 2, 2, *grid).requires_grad_(), offsets.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, o: inter_frame_attention(x, o, normalize=normalize), inputs)


@pytest.mark.parametrize(("dy", "dx"), [(1, 0), (0, 1), (-1, 2), (2, -1)])
def test_offsets_along_motion_find_patches(dy, dx):
    """A frame moves by whole cells: the middle tap, at offset (dy, dx), correlates like every patch with itself."""
    grid = (6, 7)
    frame = random_tensor(5, *grid)
    moved = torch.roll(frame, (dy, dx), dims=(1, 2))
    offsets = torch.tensor([dy, dx], dtype=torch.float64).expand(42, 1, 2)
    taps = place_taps(offsets, grid, 1)
    correlation = correlate(frame.flatten(1).T, moved.flatten(1).T, taps)[:, 0].view(grid)
    expected = frame.square().mean(0)
    inside = (slice(max(0, -dy), 6 - max(0, dy)), slice(max(0, -dx), 7 - max(0, dx)))
    close(correlation[inside], expected[inside])
    assert correlation.count_nonzero() == expected[inside].numel()


@pytest.mark.parametrize("kernel", [0, 2, 4, -3])
def test_kernel_without_a_middle_is_refused(kernel):
    message = f"kernel_size={kernel} must be odd and positive"
    with pytest.raises(ValueError, match="inter_frame_attention: " + message):
        inter_frame_attention(torch.zeros(1, 2, 2, 3, 3), torch.zeros(1, 2 * kernel**2, 2, 3, 3), kernel)
    with pytest.raises(ValueError, match="sifa: " + message):
        SIFAConfig(kernel_size=kernel)


@pytest.mark.parametrize(
    ("x", "offsets"),
    [
        ((1, 2, 2, 3, 3), (1, 9, 2, 3, 3)),
        ((1, 2, 2, 3, 3), (1, 18, 1, 3, 3)),
        ((2, 2, 2, 3, 3), (1, 18, 2, 3, 3)),
        ((1, 2, 3, 3), (1, 18, 3, 3)),
    ],
)
def test_offsets_of_another_shape_are_refused(x, offsets):
    with pytest.raises(ValueError, match=re.escape(f"[N, 2 * 3 * 3, T, H, W], got {x} and {offsets}")):
        inter_frame_attention(torch.zeros(x), torch.zeros(offsets))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "l2"}, "sifa: normalize='l2' is not one of None, softmax"),
        ({"motion": "flow"}, "sifa: motion='flow' is not one of feature, difference"),
    ],
)
def test_wrong_option_is_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SIFAConfig(**options)
    with pytest.raises(ValueError, match="inter_frame_attention: normalize='l2' is not one of None, softmax"):
        inter_frame_attention(torch.zeros(1, 2, 2, 3, 3), torch.zeros(1, 18, 2, 3, 3), normalize="l2")


# The module


@every_option
@pytest.mark.parametrize(("frames", "grid", "prefix"), [(3, (2, 3), 1), (2, (3, 2), 0), (2, (1, 1), 3)], ids=str)
def test_update_and_every_gradient_equal_reference(options, frames, grid, prefix):
    adapter = make_sifa(**options)
    tokens = random_tensor(2, frames, prefix + grid[0] * grid[1], WIDTH, seed=3).requires_grad_()
    actual, expected = adapter(tokens, grid).update, slow_update(adapter, tokens, grid)
    close(actual, expected)
    assert not actual[:, :, :prefix].any()
    weights = random_tensor(*tokens.shape, seed=4)
    leaves = [tokens, *adapter.parameters()]
    ours, reference = (torch.autograd.grad((update * weights).sum(), leaves) for update in (actual, expected))
    for mine, theirs in zip(ours, reference, strict=True):
        close(mine, theirs, 1e-8)


@every_option
def test_frame_depends_on_itself_and_next_only(options):
    adapter, grid = make_sifa(**options), (2, 3)
    tokens = random_tensor(1, 4, 7, WIDTH, seed=3)
    for changed in range(4):
        other = tokens.clone()
        other[:, changed, 1:] += random_tensor(6, WIDTH, seed=5)
        moved = (adapter(other, grid).update != adapter(tokens, grid).update).flatten(2).any(-1)[0]
        assert moved.nonzero().flatten().tolist() == [t for t in (changed - 1, changed) if 0 <= t < 3]


def test_prefix_tokens_are_ignored():
    adapter, tokens = make_sifa(), random_tensor(2, 3, 8, WIDTH, seed=3)
    update = adapter(tokens, (2, 3)).update
    assert not update[:, :, :2].any()
    assert torch.equal(adapter(tokens[:, :, 2:], (2, 3)).update, update[:, :, 2:])


def test_last_frame_gets_the_bias_of_the_norm():
    adapter = make_sifa()
    for frames in (1, 3):
        update = adapter(random_tensor(2, frames, 7, WIDTH), (2, 3)).update
        close(update[:, -1, 1:], adapter.norm.bias.detach().expand(2, 6, WIDTH))


@every_option
@pytest.mark.parametrize("frames", [1, 3])
def test_every_parameter_gets_a_gradient(options, frames):
    adapter = make_sifa(fresh=True, **options)
    update = adapter(random_tensor(2, frames, 7, WIDTH), (2, 3)).update
    assert not update.any()
    (update * random_tensor(*update.shape, seed=1)).sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    assert adapter.norm.bias.grad.all()
    assert bool(adapter.norm.weight.grad.all()) == (frames > 1)


def test_fresh_adapter_equals_plain_operator():
    tokens, grid = random_tensor(2, 3, 7, WIDTH), (2, 3)
    updates = []
    for options in ({"deformable": False}, {}, {"projected": True}, {"motion": "difference"}):
        adapter = make_sifa(fresh=True, **options)
        nn.init.ones_(adapter.norm.weight)
        updates.append(adapter(tokens, grid).update)
    assert updates[0].abs().amax() > 0.1
    for update in updates[1:]:
        close(update, updates[0], 1e-12)


def test_options_determine_parameters():
    assert {name: tuple(value.shape) for name, value in make_sifa(kernel_size=5).named_parameters()} == {
        "offset_conv.weight": (50, WIDTH, 3, 3),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    assert [name for name, _ in make_sifa(deformable=False).named_parameters()] == ["norm.weight", "norm.bias"]
    names = [name for name, _ in make_sifa(deformable=False, projected=True).named_parameters()]
    assert names == ["q.weight", "k.weight", "v.weight", "norm.weight", "norm.bias"]


@pytest.mark.parametrize("deformable", [True, False])
def test_trace_shows_offsets_and_correlation_of_each_pair(deformable):
    adapter, grid = make_sifa(deformable=deformable), (2, 3)
    tokens = random_tensor(2, 4, 7, WIDTH, seed=3)
    trace = adapter(tokens, grid, trace=True).trace
    assert trace["offsets"].shape == (2, 3, 6, 9, 2)
    assert trace["correlation"].shape == (2, 3, 6, 9)
    assert trace["offsets"].any() == deformable
    images = tokens[1, :, 1:].transpose(1, 2).unflatten(-1, grid)
    offset = trace["offsets"][1, 2].flatten(1).T.unflatten(-1, grid)
    expected, _ = slow_attention(images[2], images[3], images[3], offset, 3)
    close(trace["correlation"][1, 2].T, expected.flatten(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_option
def test_half_precision_with_large_features(options, dtype):
    """Some channels of a CLIP's stream reach hundreds. Their cube exceeds float16."""
    adapter = make_sifa(fresh=True, width=64, **options)
    nn.init.normal_(adapter.norm.weight)
    tokens = random_tensor(1, 3, 13, 64, seed=3)
    tokens[..., 5] += 300
    tokens = tokens.to(dtype)
    expected = adapter(tokens.double(), (3, 4)).update
    update = adapter.to(dtype)(tokens, (3, 4)).update
    assert update.dtype == dtype
    assert F.cosine_similarity(update.double().flatten(), expected.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("options", [OPTIONS["default"], OPTIONS["all"]], ids=["default", "all"])
def test_backward_memory_is_bounded(options):
    adapter = make_sifa(width=64, **options)
    tokens = random_tensor(2, 3, 16, 64).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        adapter(tokens, (4, 4))
    own = max(parameter.numel() for parameter in adapter.parameters())
    assert len(kept) > 5
    assert max(kept) <= max(own, tokens.numel())


@pytest.mark.parametrize("options", [OPTIONS["fixed"], OPTIONS["all"]], ids=["fixed", "all"])
def test_options_compile_without_graph_breaks(options):
    torch._dynamo.reset()
    adapter = make_sifa(**options)
    compiled = torch.compile(adapter, fullgraph=True, backend="aot_eager")
    leaves = [random_tensor(2, 3, 7, WIDTH, seed=3).requires_grad_(), *adapter.parameters()]
    weights = random_tensor(2, 3, 7, WIDTH, seed=4)
    results = []
    for module in (adapter, compiled):
        update = module(leaves[0], (2, 3)).update
        results.append([update, *torch.autograd.grad((update * weights).sum(), leaves)])
    for actual, expected in zip(*results, strict=True):
        close(actual, expected)
