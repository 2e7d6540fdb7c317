"""ST-Adapter against a reference of loops with gradients; kernels, widths, receptive field, options."""

import itertools
import re

import pytest
import torch
from conftest import shake
from torch.nn import functional as F

from clipvid.adapters import resolve_adapters
from clipvid.adapters.base import BlockInfo
from clipvid.adapters.st_adapter import STAdapter, STAdapterConfig

WIDTH = 12


def make_st(**options):
    """Build an ST-Adapter of width 12 in float64 with every tensor random."""
    torch.manual_seed(0)
    adapter = STAdapter(STAdapterConfig(**options), BlockInfo(WIDTH, 2, 3)).double()
    shake(adapter, 0.3)
    return adapter


def tokens_for(frames=3, grid=(2, 3), prefix=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, frames, prefix + grid[0] * grid[1], WIDTH)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def slow_st(adapter, tokens, grid):
    """Return the update [B, T, P+N, D], one place at a time, with zeros outside the clip."""
    (frames, (rows, columns)), kernel = (tokens.shape[1], grid), adapter.config.kernel_size
    num_prefix = tokens.shape[2] - rows * columns
    low = tokens[:, :, num_prefix:] @ adapter.down.weight.T + adapter.down.bias
    update = []
    for t in range(frames):
        places = [torch.zeros_like(tokens[:, 0, 0])] * num_prefix
        for h, w in itertools.product(range(rows), range(columns)):
            total = adapter.conv.bias.expand(tokens.shape[0], -1)
            for i, j, k in itertools.product(*map(range, kernel)):
                time, row, column = t + i - kernel[0] // 2, h + j - kernel[1] // 2, w + k - kernel[2] // 2
                if 0 <= time < frames and 0 <= row < rows and 0 <= column < columns:
                    total = total + adapter.conv.weight[:, 0, i, j, k] * low[:, time, row * columns + column]
            places.append(total @ adapter.up.weight.T + adapter.up.bias)
        update.append(torch.stack(places, dim=1))
    return torch.stack(update, dim=1)


@pytest.mark.parametrize("kernel_size", [(3, 1, 1), (5, 1, 1), (3, 3, 3), (1, 3, 5), (3, 1, 3), (1, 1, 1)])
@pytest.mark.parametrize(("frames", "grid", "prefix"), [(3, (2, 3), 1), (1, (3, 2), 3), (4, (1, 4), 0), (2, (1, 1), 1)])
def test_update_and_gradients_equal_reference(frames, grid, prefix, kernel_size):
    adapter = make_st(channels=5, kernel_size=kernel_size)
    tokens = tokens_for(frames, grid, prefix).requires_grad_()
    updates = [adapter(tokens, grid).update, slow_st(adapter, tokens, grid)]
    torch.testing.assert_close(*updates, rtol=1e-10, atol=1e-11)
    weights = tokens_for(frames, grid, prefix, seed=2)
    leaves = [tokens, *adapter.parameters()]
    gradients = [torch.autograd.grad((update * weights).sum(), leaves) for update in updates]
    for name, ours, reference in zip(["tokens", *dict(adapter.named_parameters())], *gradients, strict=True):
        torch.testing.assert_close(
            ours, reference, rtol=1e-9, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("kernel_size", "reach"), [((3, 1, 1), 1), ((5, 1, 1), 2), ((3, 3, 3), 1), ((1, 1, 1), 0)])
def test_receptive_field_is_the_kernel(kernel_size, reach):
    adapter, grid = make_st(kernel_size=kernel_size), (3, 3)
    tokens = tokens_for(7, grid)
    changed = tokens.clone()
    changed[:, 3, 1 + 4] += 1
    difference = (adapter(changed, grid).update - adapter(tokens, grid).update).abs().amax(dim=(0, 3))
    touched = difference[:, 1:].unflatten(1, grid) > 1e-9
    space = kernel_size[1] // 2
    expected = torch.zeros(7, 3, 3, dtype=torch.bool)
    expected[3 - reach : 4 + reach, 1 - space : 2 + space, 1 - space : 2 + space] = True
    assert torch.equal(touched, expected)


def test_prefix_tokens_are_not_updated():
    adapter, tokens = make_st(), tokens_for(prefix=2)
    update = adapter(tokens, (2, 3)).update
    assert not update[:, :, :2].any()
    changed = tokens.clone()
    changed[:, :, :2] += 1
    assert torch.equal(adapter(changed, (2, 3)).update, update)


@pytest.mark.parametrize(("width", "channels"), [(768, 384), (1024, 384), (512, 256), (64, 32), (1, 1)])
def test_default_bottleneck_width(width, channels):
    adapter = STAdapter(STAdapterConfig(), BlockInfo(width, 1, 3))
    assert adapter.down.weight.shape == (channels, width)
    assert adapter.conv.weight.shape == (channels, 1, 3, 1, 1)
    assert adapter.up.weight.shape == (width, channels)


def test_bottleneck_width_option():
    assert STAdapter(STAdapterConfig(channels=7), BlockInfo(WIDTH, 1, 3)).conv.weight.shape[0] == 7


def test_trace_shows_where_the_adapter_acts():
    adapter, grid = make_st(), (2, 3)
    output = adapter(tokens_for(), grid, trace=True)
    assert set(output.trace) == {"response"}
    expected = output.update[:, :, 1:].square().sum(-1).sqrt().reshape(2, 3, 2, 3)
    torch.testing.assert_close(output.trace["response"], expected)
    torch.testing.assert_close(output.trace["response"][0, 1, 1, 2], output.update[0, 1, 6].norm())


def test_temporal_kernel_fast_path_equals_convolution():
    adapter, grid = make_st(), (2, 3)
    maps = adapter.down(tokens_for(prefix=0)).unflatten(2, grid).permute(0, 4, 1, 2, 3)
    expected = adapter.up(adapter.conv(maps).permute(0, 2, 3, 4, 1).flatten(2, 3))
    torch.testing.assert_close(adapter(tokens_for(prefix=0), grid).update, expected)
    cosine = F.cosine_similarity(expected.flatten(), adapter.up(adapter.down(tokens_for(prefix=0))).flatten(), dim=0)
    assert cosine < 0.99, "the convolution does nothing here"


def test_kernel_of_a_list_is_the_same_config():
    configs = [resolve_adapters({"name": "st_adapter", "kernel_size": kernel}) for kernel in ([3, 3, 3], (3, 3, 3))]
    assert configs[0] == configs[1]
    assert configs[0]["st_adapter"].kernel_size == (3, 3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "st_adapter: channels=0 must be at least 1, or unset"),
        ({"kernel_size": 3}, "st_adapter: kernel_size=3 must be three odd sizes, [frames, rows, columns]"),
        ({"kernel_size": [3, 3]}, "kernel_size=[3, 3] must be three odd sizes"),
        ({"kernel_size": (3, 2, 1)}, "kernel_size=(3, 2, 1) must be three odd sizes"),
        ({"kernel_size": (3, -1, 1)}, "kernel_size=(3, -1, 1) must be three odd sizes"),
        ({"kernel_size": (3, 1.0, 1)}, "kernel_size=(3, 1.0, 1) must be three odd sizes"),
        ({"kernel_size": "311"}, "kernel_size='311' must be three odd sizes"),
    ],
)
def test_wrong_option_is_refused_by_the_config(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        STAdapterConfig(**options)
