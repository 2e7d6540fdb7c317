"""ST-Adapter against a reference of loops with gradients; kernels, widths, receptive field, options."""

import itertools
import re

import pytest
import torch
from conftest import REPOSITORY, random_frames, shake, shake_adapters
from torch.nn import functional as F

from clipvid.adapters import resolve_adapters
from clipvid.adapters.base import BlockInfo
from clipvid.adapters.st_adapter import STAdapter, STAdapterConfig
from clipvid.hub.loading import from_pretrained
from clipvid.runs.config_files import parse_config
from clipvid.training.config import FinetuneConfig

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


def test_fresh_adapter_starts_as_the_authors_do():
    """The convolution and all biases are zero, the linears are not, and the first step moves the convolution."""
    torch.manual_seed(0)
    adapter = STAdapter(STAdapterConfig(), BlockInfo(WIDTH, 2, 3))
    zero = {name for name, value in adapter.named_parameters() if not value.any()}
    assert zero == {"down.bias", "conv.weight", "conv.bias", "up.bias"}
    adapter(tokens_for().float(), (2, 3)).update.square().sum().backward()
    assert not adapter.conv.weight.grad.any()  # the update is zero, so its square has no slope
    adapter(tokens_for().float(), (2, 3)).update.sum().backward()
    assert adapter.conv.weight.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("place", "places"),
    [
        ("before_mlp", {"st_adapter": "after_attention"}),
        ("before_attention", {"st_adapter": "before_attention"}),
        ("both", {"st_adapter": "before_attention", "st_adapter_before_mlp": "after_attention"}),
    ],
)
@torch.no_grad()
def test_place_in_the_block(make_model, tmp_path, place, places):
    model = shake_adapters(make_model({"name": "st_adapter", "place": place}, ["a", "b"]))
    for layer in model.encoder.layers:
        assert {name: adapter.place for name, adapter in layer.adapters.items()} == places
    frames = random_frames()
    output = model(frames, trace=True)
    assert set(output.traces) == {f"{name}.{layer}" for name in places for layer in (0, 1)}
    model.save_pretrained(tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(frames).logits, output.logits)


@torch.no_grad()
def test_block_with_both_places_equals_its_steps(make_model):
    model = shake_adapters(make_model({"name": "st_adapter", "place": "both"}))
    layer = model.encoder.layers[0]
    tokens = torch.randn(2, 3, 17, 64)
    x = tokens + layer.adapters["st_adapter"](tokens, (4, 4)).update
    x = x + layer.block.attention(x.flatten(0, 1)).view_as(x)
    x = x + layer.adapters["st_adapter_before_mlp"](x, (4, 4)).update
    x = x + layer.block.feed_forward(x.flatten(0, 1)).view_as(x)
    torch.testing.assert_close(layer(tokens, (4, 4))[0], x)


@pytest.mark.parametrize(
    ("name", "processes", "places"), [("st_adapter_k400_b16_8f", 3, 1), ("st_adapter_ssv2_b16_8f", 4, 2)]
)
def test_recipe_has_the_settings_of_the_authors(make_model, name, processes, places):
    config = parse_config(FinetuneConfig, ["--config", str(REPOSITORY / f"configs/recipes/{name}.yaml")], "test")
    model = make_model(config.model.adapter, ["a", "b"], head=config.model.head)
    assert [len(layer.adapters) for layer in model.encoder.layers] == [places] * 2
    assert all(len(adapter.conv.weight) == 384 for adapter in model.encoder.adapters())
    share = config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps
    assert config.optim.lr == pytest.approx(1e-3 * processes * share / 256)
    assert config.optim.warmup_ratio * config.training.epochs == pytest.approx(2)
    assert config.training.max_grad_norm == float("inf")


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
        ({"place": "mlp"}, "st_adapter: place='mlp' is not one of before_mlp, before_attention, both"),
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
