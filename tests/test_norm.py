"""Building blocks of adapters: split tokens, means over pairs, policies of normalization."""

import copy

import pytest
import torch
from conftest import shake
from torch import nn
from torch.nn import functional as F

from clipvid.adapters.base import adjacent_pair_mean, split_prefix, zero_init
from clipvid.layers.norm import FrozenBatchNorm2d, PausableBatchNorm2d, build_norm, frozen_bn_statistics

# Small pieces


def test_prefix_precedes_the_grid():
    tokens = torch.arange(2 * 3 * 8).view(2, 3, 8, 1)
    prefix, patches = split_prefix(tokens, (2, 3))
    assert torch.equal(torch.cat([prefix, patches], dim=2), tokens)
    assert prefix.shape == (2, 3, 2, 1)
    with pytest.raises(ValueError, match="8 tokens per frame do not cover a grid of 3 x 3"):
        split_prefix(tokens, (3, 3))


def test_pair_mean_gives_end_frames_their_only_value():
    first, second = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[10.0, 20.0, 40.0]])
    assert adjacent_pair_mean(first, second).tolist() == [[1.0, 6.0, 12.0, 40.0]]
    assert adjacent_pair_mean(first[:, :1], second[:, :1]).tolist() == [[1.0, 10.0]]


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Linear(3, 2, bias=False), nn.Conv1d(3, 2, 1)])
def test_zero_init_leaves_nothing(layer):
    assert all(not parameter.any() for parameter in zero_init(layer).parameters())


# Normalization


def test_batch_policy_is_batchnorm():
    norm, plain = build_norm("batch", 8), nn.BatchNorm2d(8)
    for training in (True, True, False):
        maps = 3 * torch.randn(4, 8, 3, 3) + 1
        assert torch.equal(norm.train(training)(maps), plain.train(training)(maps))
    assert norm.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in norm.state_dict().items())


def test_frozen_batch_policy_ignores_the_batch():
    norm = build_norm("frozen_batch", 8)
    shake(norm)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    maps = 3 * torch.randn(4, 8, 3, 3) + 1
    training = norm.train()(maps)
    assert torch.equal(training, norm.eval()(maps))
    torch.testing.assert_close(training[:1], norm.train()(maps[:1]))
    expected = F.batch_norm(maps, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
    torch.testing.assert_close(training, expected)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    assert isinstance(norm, FrozenBatchNorm2d)
    assert [name for name, _ in norm.named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("channels", [8, 12, 64, 96])
def test_group_policy_ignores_the_batch(channels):
    norm = build_norm("group", channels)
    maps = torch.randn(4, channels, 3, 3)
    torch.testing.assert_close(norm(maps)[:1], norm(maps[:1]))
    assert not dict(norm.named_buffers())
    assert norm.eps == 1e-5


def test_held_statistics_are_restored_after_an_error():
    block = nn.Sequential(build_norm("batch", 8))
    plain = copy.deepcopy(block)
    maps = 3 * torch.randn(4, 8, 3, 3) + 1
    before = copy.deepcopy(block.state_dict())
    with frozen_bn_statistics(block):
        assert torch.equal(block(maps), plain(maps))
    with pytest.raises(RuntimeError), frozen_bn_statistics(block):
        block(maps[:, :3])
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())
    block(maps)
    assert isinstance(block[0], PausableBatchNorm2d)
    assert block[0].num_batches_tracked == 1
