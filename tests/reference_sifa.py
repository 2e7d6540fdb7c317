"""Slow reference of SIFA: pixel by pixel, tap by tap, corner by corner. Shares no code with the package.

Shapes: C channels, H x W cells, taps of a k x k kernel in row-major order, offsets as (dy, dx) per tap.
"""

import math

import torch
import torch.nn.functional as F


def sample(image, y, x):
    """Sample image [C, H, W] bilinearly at a point, with zeros outside -> [C]."""
    top, left = math.floor(y.item()), math.floor(x.item())
    value = torch.zeros_like(image[:, 0, 0])
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
                value = value + (1 - (y - row).abs()) * (1 - (x - column).abs()) * image[:, row, column]
    return value


def slow_attention(query, key, value, offset, kernel, softmax=False):
    """Attend from queries [C, H, W] of a frame to keys and values of another, with offset [2k^2, H, W].

    Returns correlation [k^2, H, W] and aggregated values [C, H, W].
    """
    channels, height, width = query.shape
    correlations, outputs = [], []
    for h in range(height):
        for w in range(width):
            keys, values = [], []
            for tap in range(kernel * kernel):
                y = h - kernel // 2 + tap // kernel + offset[2 * tap, h, w]
                x = w - kernel // 2 + tap % kernel + offset[2 * tap + 1, h, w]
                keys.append(sample(key, y, x))
                values.append(sample(value, y, x))
            correlation = torch.stack([(query[:, h, w] * key).sum() / channels for key in keys])
            weights = correlation.softmax(0) if softmax else correlation
            correlations.append(correlation)
            outputs.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
    return torch.stack(correlations, 1).view(-1, height, width), torch.stack(outputs, 1).view(-1, height, width)


def slow_operator(x, offsets, kernel, softmax=False):
    """Apply the operator: [N, C, T, H, W] -> [N, C, T, H, W]."""
    clips = []
    for clip, offset in zip(x, offsets, strict=True):
        frames = [
            slow_attention(clip[:, t], clip[:, t + 1], clip[:, t + 1], offset[:, t + 1], kernel, softmax)[1]
            for t in range(clip.shape[1] - 1)
        ]
        clips.append(torch.stack([*frames, torch.zeros_like(clip[:, 0])], dim=1))
    return torch.stack(clips)


def slow_update(adapter, tokens, grid):
    """Return the adapter's update of tokens [B, T, P+N, D], frame by frame, with its parameters."""
    config, prefix = adapter.config, tokens.shape[2] - grid[0] * grid[1]
    update = []
    for clip in tokens:
        images = [frame[prefix:].T.reshape(-1, *grid) for frame in clip]
        for t, image in enumerate(images):
            actual = torch.zeros_like(image)
            if t + 1 < len(images):
                following = images[t + 1]
                motion = following - image
                if config.motion == "feature":
                    motion = torch.sigmoid(motion) * following + following
                offset = torch.zeros(2 * config.kernel_size**2, *grid, dtype=image.dtype)
                if config.deformable:
                    offset = F.conv2d(motion[None], adapter.offset_conv.weight, padding=1)[0]
                inputs = [image, following, following]
                if config.projected:
                    maps = (adapter.q, adapter.k, adapter.v)
                    inputs = [
                        torch.einsum("oc,chw->ohw", layer.weight, x) for layer, x in zip(maps, inputs, strict=True)
                    ]
                actual = slow_attention(*inputs, offset, config.kernel_size, config.normalize == "softmax")[1]
            patches = F.layer_norm(actual.flatten(1).T, tokens.shape[-1:], adapter.norm.weight, adapter.norm.bias)
            update.append(torch.cat([torch.zeros_like(clip[0, :prefix]), patches]))
    return torch.stack(update).view_as(tokens)
