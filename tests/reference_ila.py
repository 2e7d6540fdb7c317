"""Slow and readable reference of ILA (Implicit Learnable Alignment).

Plain functions over a flat state dict with the names of the authors' checkpoints. Every size is read from the tensors,
and a head is 64 wide everywhere. Loops run over pairs, frames, points, heads and blocks where that shows the math.
Nothing here is random: dropout and drop path are omitted. BatchNorm uses its stored statistics or, with
`batch_stats=True`, those of the batch, without updating the stored ones. Everything is differentiable in the state's
tensors and the inputs, and runs in their dtype.

Shapes: B clips, T frames, R = T - 1 adjacent pairs, N = H * W patches on a grid of H rows and W columns. P prefix
tokens precede the patches (CLIP: 1, the class token). D width of the image tower, E width of the joint space, K
classes, L text length, S image size. "Step n" is the n-th step of the method:

1. linear + layer norm of all tokens, 2. interactive block over adjacent pairs, 3. interactive points,
4. masks, 5. aligned frames and the alignment loss, 6. interactive feature, 7. the update added to the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]

HEAD_WIDTH = 64
EPS = 1e-5  # of every layer norm and batch norm
POINT_RANGE = 0.75  # step 3: points stay within [-0.75, 0.75]
MASK_RADIUS = 0.25  # step 4: within this distance of the point the mask is 1 ...
MASK_SLOPE = 1.5  # ... and falls with this slope outside
JITTER = 0.2  # step 4: spread of the nine points in training, before its decay
JITTER_OFFSETS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1))


# ----------------------------------------------------------------------------------------------------------
# Small pieces


def sub_state(state: State, prefix: str) -> dict[str, Tensor]:
    """Return the entries of `state` below `prefix` (without its last dot), named relative to it."""
    start = prefix + "."
    return {name[len(start) :]: value for name, value in state.items() if name.startswith(start)}


def count_layers(state: State, prefix: str) -> int:
    """Count the layers `prefix.0`, `prefix.1`, ... in the state."""
    start = prefix + "."
    numbers = {int(name[len(start) :].split(".")[0]) for name in state if name.startswith(start)}
    return len(numbers)


def variant_of(state: State) -> str:
    """Return `"ssv2"` if the state has a linear classification head, otherwise `"k400"` (text classifier)."""
    return "ssv2" if "mit.classify_head.2.weight" in state else "k400"


def quick_gelu(x: Tensor) -> Tensor:
    """Return `x * sigmoid(1.702 x)`, for any shape."""
    return x * torch.sigmoid(1.702 * x)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """Apply `name.weight [O, I]` and the optional `name.bias [O]`: `x [..., I] -> [..., O]`."""
    y = x @ state[f"{name}.weight"].T
    bias = state.get(f"{name}.bias")
    return y if bias is None else y + bias


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    """Apply layer norm to `x [..., D]` over its last axis."""
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + EPS) * state[f"{name}.weight"] + state[f"{name}.bias"]


def batch_norm(state: State, name: str, x: Tensor, batch_stats: bool) -> Tensor:
    """Apply batch norm to `x [M, C, H, W]` per channel.

    With `batch_stats`, mean and biased variance are those of `x` over M, H and W, as in training. M counts all pairs of
    all clips. Otherwise the stored ones are used.
    """
    if batch_stats:
        mean = x.mean(dim=(0, 2, 3))
        variance = ((x - mean[:, None, None]) ** 2).mean(dim=(0, 2, 3))
    else:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    normed = (x - mean[:, None, None]) / torch.sqrt(variance + EPS)[:, None, None]
    return normed * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def conv3x3(state: State, name: str, x: Tensor, groups: int = 1) -> Tensor:
    """Apply a 3x3 convolution with zero padding 1 and bias: `x [M, C, H, W] -> [M, O, H, W]`."""
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1, groups=groups)


def max_pool_2(x: Tensor) -> Tensor:
    """Max-pool 2x2, stride 2, floor: `x [M, C, H, W] -> [M, C, H // 2, W // 2]`.

    An axis of length 1, which the pool would empty, is kept (the other axis is still pooled). With both axes at least 4
    this never happens in the two pools of the prediction block.
    """
    kernel = (2 if x.shape[2] >= 2 else 1, 2 if x.shape[3] >= 2 else 1)
    return F.max_pool2d(x, kernel_size=kernel, stride=kernel)


def attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """Compute scaled dot-product attention, head by head: `[M, Q, D], [M, C, D], [M, C, D] -> [M, Q, D]`.

    Heads are D / 64 slices of 64 channels. With `causal`, position i sees positions 0..i.
    """
    width = query.shape[-1]
    if width % HEAD_WIDTH:
        raise ValueError(f"width {width} is not a multiple of the head width {HEAD_WIDTH}")
    heads = []
    for head in range(width // HEAD_WIDTH):
        channels = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
        scores = query[..., channels] @ key[..., channels].transpose(-1, -2) * HEAD_WIDTH**-0.5
        if causal:
            length = scores.shape[-1]
            future = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(diagonal=1)
            scores = scores.masked_fill(future, float("-inf"))
        heads.append(torch.softmax(scores, dim=-1) @ value[..., channels])
    return torch.cat(heads, dim=-1)


def clip_block(block: State, x: Tensor, causal: bool = False) -> Tensor:
    """Apply CLIP's pre-norm transformer block: `x [M, L, D] -> [M, L, D]`, names `ln_1 attn ln_2 mlp`."""
    normed = layer_norm(block, "ln_1", x)
    qkv = normed @ block["attn.in_proj_weight"].T + block["attn.in_proj_bias"]
    query, key, value = qkv.chunk(3, dim=-1)
    x = x + linear(block, "attn.out_proj", attention(query, key, value, causal))
    hidden = quick_gelu(linear(block, "mlp.c_fc", layer_norm(block, "ln_2", x)))
    return x + linear(block, "mlp.c_proj", hidden)


# ----------------------------------------------------------------------------------------------------------
# One block's adapter, steps 1 to 7


def message_tokens(block: State, tokens: Tensor) -> Tensor:
    """Compute step 1, `a = LN(Linear(x))` of all tokens, prefix included: `[..., D] -> [..., D]`."""
    return layer_norm(block, "message_ln", linear(block, "message_fc", tokens))


def patch_maps(a: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the patches of `a [B, T, P+N, D]`, without the prefix, as maps `[B, T, D, H, W]` (rows first)."""
    batch, frames, length, width = a.shape
    rows, columns = grid
    patches = a[:, :, length - rows * columns :]
    return patches.reshape(batch, frames, rows, columns, width).permute(0, 1, 4, 2, 3)


def interactive_block(block: State, pairs: Tensor, batch_stats: bool = False) -> Tensor:
    """Compute step 2 on stacked pairs: `[M, 2D, H, W] -> f [M, 256, H, W]`.

    K400: depthwise 3x3 + BN + ReLU, pointwise to 256 + BN + ReLU, 3x3 + BN + ReLU. SSv2: 3x3 to 256 + BN + ReLU, 3x3 +
    BN + ReLU. The names distinguish them.
    """
    name = "message_attn.interactive_block"
    if f"{name}.0.depthwise_conv.0.weight" in block:
        x = conv3x3(block, f"{name}.0.depthwise_conv.0", pairs, groups=pairs.shape[1])
        x = torch.relu(batch_norm(block, f"{name}.0.depthwise_conv.1", x, batch_stats))
        pointwise = f"{name}.0.pointwise_conv.0"
        x = F.conv2d(x, block[f"{pointwise}.weight"], block[f"{pointwise}.bias"])
        x = torch.relu(batch_norm(block, f"{name}.0.pointwise_conv.1", x, batch_stats))
        second_conv, second_norm = f"{name}.1", f"{name}.2"
    else:
        x = conv3x3(block, f"{name}.0", pairs)
        x = torch.relu(batch_norm(block, f"{name}.1", x, batch_stats))
        second_conv, second_norm = f"{name}.3", f"{name}.4"
    x = conv3x3(block, second_conv, x)
    return torch.relu(batch_norm(block, second_norm, x, batch_stats))


def interactive_points(block: State, f: Tensor, batch_stats: bool = False) -> Tensor:
    """Compute step 3, `f [M, 256, H, W] -> [M, 4]`: (x, y) in the pair's first frame, then (x, y) in its second.

    The two Conv1d over the pair axis have kernel 1, so they are per-pair linear maps. With their two groups, the first
    half of the channels determines the first frame's point, the second half the second frame's.
    """
    name = "message_attn.prediction_block"
    x = batch_norm(block, f"{name}.1", conv3x3(block, f"{name}.0", f), batch_stats)
    x = torch.relu(max_pool_2(x))
    x = batch_norm(block, f"{name}.5", conv3x3(block, f"{name}.4", x), batch_stats)
    x = torch.relu(max_pool_2(x))
    x = x.amax(dim=(2, 3))  # global max pool, [M, 128]
    points = []
    for group in range(2):
        hidden = torch.relu(_conv1d_group(block, f"{name}.10", x.chunk(2, dim=1)[group], group))
        points.append(torch.tanh(_conv1d_group(block, f"{name}.12", hidden, group)) * POINT_RANGE)
    return torch.cat(points, dim=1)


def _conv1d_group(block: State, name: str, x: Tensor, group: int) -> Tensor:
    """Apply one of two groups of a Conv1d with kernel 1, `weight [O, I / 2, 1]`: `x [M, I / 2] -> [M, O / 2]`."""
    weight = block[f"{name}.weight"].chunk(2, dim=0)[group].squeeze(-1)
    bias = block[f"{name}.bias"].chunk(2, dim=0)[group]
    return x @ weight.T + bias


def axis_mask(point: Tensor, length: int) -> Tensor:
    """Compute step 4 along one axis: coordinates `point [M] -> [M, length]`.

    Cells are at linspace(-1, 1, length), both ends included. The cell of a length-1 axis is in the middle.
    """
    cells = torch.linspace(-1, 1, length, dtype=point.dtype, device=point.device)
    if length == 1:
        cells = torch.zeros_like(cells)
    distance = (cells[None, :] - point[:, None]).abs()
    outside = torch.relu(1 - MASK_SLOPE * (distance - MASK_RADIUS))
    return torch.where(distance <= MASK_RADIUS, torch.ones_like(outside), outside)


def point_mask(point: Tensor, grid: tuple[int, int]) -> Tensor:
    """Compute step 4 around one point: (x, y) `[M, 2] -> [M, H, W]`, with x along W and y along H."""
    rows, columns = grid
    return axis_mask(point[:, 1], rows)[:, :, None] * axis_mask(point[:, 0], columns)[:, None, :]


def masks_of(point: Tensor, grid: tuple[int, int], jitter: float | None = None) -> Tensor:
    """Compute step 4, `[M, 2] -> [M, H, W]`: the point's mask, or with `jitter` the mean over nine points around it.

    The nine points are not clamped to the grid.
    """
    if jitter is None:
        return point_mask(point, grid)
    total = torch.zeros(point.shape[0], *grid, dtype=point.dtype, device=point.device)
    for offset in JITTER_OFFSETS:
        shift = torch.tensor(offset, dtype=point.dtype, device=point.device) * jitter
        total = total + point_mask(point + shift, grid)
    return total / len(JITTER_OFFSETS)


def jitter_at(epoch: int) -> float:
    """Return the spread of the nine points of step 4 in `epoch`, counted from 0."""
    return JITTER * 0.5 ** max(0, epoch - 29)


def pairs_to_frames(firsts: Sequence[Tensor], seconds: Sequence[Tensor]) -> list[Tensor]:
    """Combine values of R pairs for their first and second frame to values of R + 1 frames, in steps 5 and 6.

    The first and the last frame are in one pair and take its value, every other frame takes the mean of two.
    """
    last = len(firsts)
    frames = []
    for t in range(last + 1):
        if t == 0:
            frames.append(firsts[0])
        elif t == last:
            frames.append(seconds[last - 1])
        else:
            frames.append((seconds[t - 1] + firsts[t]) / 2)
    return frames


def aligned_frames(
    a: Tensor, points: Tensor, grid: tuple[int, int], jitter: float | None = None
) -> tuple[Tensor, Tensor]:
    """Compute step 5: `a [B, T, P+N, D]` and `points [B, R, 4]` -> aligned tokens `[B, T, P+N, D]` and the loss `[]`.

    Loss: 1 - cosine between the two frames' mask-weighted sums of patches, mean over pairs and clips. (A norm below
    1e-8 counts as 1e-8, so a fully masked frame has cosine 0.)
    """
    frames = a.shape[1]
    prefix = a.shape[2] - grid[0] * grid[1]
    firsts, seconds, losses = [], [], []
    for pair in range(frames - 1):
        masked = []
        for frame, point in ((pair, points[:, pair, :2]), (pair + 1, points[:, pair, 2:])):
            mask = masks_of(point, grid, jitter).flatten(1)[:, :, None]  # [B, N, 1]
            masked.append(a[:, frame, prefix:] * mask)
        first_sum, second_sum = masked[0].sum(dim=1), masked[1].sum(dim=1)  # [B, D]
        norms = first_sum.norm(dim=-1).clamp(min=1e-8) * second_sum.norm(dim=-1).clamp(min=1e-8)
        losses.append(1 - (first_sum * second_sum).sum(dim=-1) / norms)
        firsts.append(masked[0])
        seconds.append(masked[1])
    patches = torch.stack(pairs_to_frames(firsts, seconds), dim=1)
    return torch.cat([a[:, :, :prefix], patches], dim=2), torch.stack(losses).mean()


def interactive_frames(block: State, a: Tensor, f: Tensor) -> Tensor:
    """Compute step 6: `a [B, T, P+N, D]` and `f [B, R, 256, H, W]` -> interactive tokens `[B, T, P+N, D]`.

    The prefix tokens are those of `a`. The 128 channels per frame pass a Conv3d (3, 1, 1) over time, zero beyond the
    clip's ends, and a linear map to D.
    """
    half = f.shape[2] // 2
    pairs = range(f.shape[1])
    frames = pairs_to_frames([f[:, p, :half] for p in pairs], [f[:, p, half:] for p in pairs])
    weight, bias = block["message_attn.conv.weight"], block["message_attn.conv.bias"]
    patches = []
    for t in range(len(frames)):
        mixed = bias[None, :, None, None]
        for tap, source in enumerate((t - 1, t, t + 1)):
            if 0 <= source < len(frames):
                mixed = mixed + torch.einsum("oc,bchw->bohw", weight[:, :, tap, 0, 0], frames[source])
        patches.append(linear(block, "message_attn.fc", mixed.flatten(2).transpose(1, 2)))  # [B, N, D]
    prefix = a.shape[2] - patches[0].shape[1]
    return torch.cat([a[:, :, :prefix], torch.stack(patches, dim=1)], dim=2)


def ila_update(
    block_state: State,
    tokens: Tensor,
    grid: tuple[int, int],
    jitter: float | None = None,
    batch_stats: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute steps 1 to 7 of one block, the update of its stream before spatial attention, without drop path.

    `block_state`: the block's tensors, named relative to it (`message_fc.weight`, ...).
    `tokens [B, T, P+N, D]`, `grid` = (H, W); P is the number of tokens beyond H * W.
    `jitter`: None for inference, else the spread of the nine points of step 4.
    Returns the update `[B, T, P+N, D]` and the block's alignment loss `[]`.

    A clip of one frame has no pairs. Its update is defined as zero, prefix tokens included, and its loss as 0. For
    grids with an axis below 4 see `max_pool_2`.
    """
    batch, frames = tokens.shape[:2]
    if frames == 1:
        return torch.zeros_like(tokens), tokens.new_zeros(())
    a = message_tokens(block_state, tokens)
    maps = patch_maps(a, grid)
    pairs = torch.stack([torch.cat([maps[:, t], maps[:, t + 1]], dim=1) for t in range(frames - 1)], dim=1)
    f = interactive_block(block_state, pairs.flatten(0, 1), batch_stats)
    points = interactive_points(block_state, f, batch_stats)
    aligned, loss = aligned_frames(a, points.unflatten(0, (batch, frames - 1)), grid, jitter)
    interactive = interactive_frames(block_state, a, f.unflatten(0, (batch, frames - 1)))
    update = linear(block_state, "temporal_skip_align_fc", aligned)
    update = update + linear(block_state, "temporal_skip_fc", interactive)
    return update, loss


# ----------------------------------------------------------------------------------------------------------
# Towers and heads


def embed_frames(state: State, frames: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Compute CLIP's embedding of `frames [B, T, 3, S, S]`: tokens `[B, T, 1+N, D]` after ln_pre, and (H, W)."""
    visual = sub_state(state, "visual")
    weight = visual["conv1.weight"]
    maps = F.conv2d(frames.flatten(0, 1), weight, stride=weight.shape[-1])  # [B*T, D, H, W]
    grid = (maps.shape[2], maps.shape[3])
    patches = maps.flatten(2).transpose(1, 2)
    class_token = visual["class_embedding"].expand(patches.shape[0], 1, -1)
    tokens = torch.cat([class_token, patches], dim=1) + visual["positional_embedding"]
    return layer_norm(visual, "ln_pre", tokens).unflatten(0, frames.shape[:2]), grid


def image_tower(
    state: State, frames: Tensor, jitter: float | None = None, batch_stats: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Run the image tower with adapters: `frames [B, T, 3, S, S]` -> tokens `[B, T, 1+N, D]` (no ln_post), losses.

    Step 7 in every block: the update is added to the stream, then the block runs as usual, frame by frame.
    """
    tokens, grid = embed_frames(state, frames)
    losses = []
    for layer in range(count_layers(state, "visual.transformer.resblocks")):
        block = sub_state(state, f"visual.transformer.resblocks.{layer}")
        update, loss = ila_update(block, tokens, grid, jitter, batch_stats)
        tokens = tokens + update
        tokens = torch.stack([clip_block(block, tokens[:, t]) for t in range(tokens.shape[1])], dim=1)
        losses.append(loss)
    return tokens, losses


def text_tower(state: State, text_tokens: Tensor) -> Tensor:
    """Run CLIP's causal text tower: ids `[K, L]` -> features `[K, E]`, read at the largest id, not normalized."""
    x = state["token_embedding.weight"][text_tokens] + state["positional_embedding"][: text_tokens.shape[1]]
    for layer in range(count_layers(state, "transformer.resblocks")):
        x = clip_block(sub_state(state, f"transformer.resblocks.{layer}"), x, causal=True)
    x = layer_norm(state, "ln_final", x)
    ends = text_tokens.argmax(dim=-1)
    return torch.stack([x[k, end] for k, end in enumerate(ends.tolist())]) @ state["text_projection"]


def frame_features_of(state: State, tokens: Tensor) -> Tensor:
    """Project class tokens of `tokens [B, T, 1+N, D]` after ln_post: `[B, T, E]`."""
    return layer_norm(state, "visual.ln_post", tokens[:, :, 0]) @ state["visual.proj"]


def integrate_frames(state: State, features: Tensor) -> Tensor:
    """Integrate frames: `[B, T, E] -> [B, E]`, `mean_t(x + blocks(x + pos))`, not normalized."""
    positions = state["mit.positional_embedding"]
    if positions.shape[1] != features.shape[1]:
        raise ValueError(f"{features.shape[1]} frames, but positions for {positions.shape[1]}")
    y = features + positions
    for layer in range(count_layers(state, "mit.resblocks")):
        y = clip_block(sub_state(state, f"mit.resblocks.{layer}"), y)
    return (features + y).mean(dim=1)


def prompt_text(state: State, text_features: Tensor, patch_tokens: Tensor) -> Tensor:
    """Compute video-specific prompts: text `[K, E]`, patch tokens `[B, T, N, D]` (no ln_post) -> text `[B, K, E]`.

    Patches are normalized, projected, averaged over frames and normalized again, so text attends to N visual tokens.
    """
    visual = layer_norm(state, "prompts_visual_ln", patch_tokens) @ state["prompts_visual_proj"]
    visual = layer_norm(state, "prompts_generator.norm", visual.mean(dim=1))  # [B, N, E]
    text = text_features.expand(visual.shape[0], -1, -1)
    x = text
    for layer in range(count_layers(state, "prompts_generator.decoder")):
        decoder = sub_state(state, f"prompts_generator.decoder.{layer}")
        query = linear(decoder, "cross_attn.q_proj", layer_norm(decoder, "norm1", x))
        key = linear(decoder, "cross_attn.k_proj", visual)
        value = linear(decoder, "cross_attn.v_proj", visual)
        x = x + linear(decoder, "cross_attn.proj", attention(query, key, value))
        hidden = quick_gelu(linear(decoder, "mlp.0", layer_norm(decoder, "norm3", x)))
        x = x + linear(decoder, "mlp.3", hidden)
    return text + state["prompts_generator.alpha"] * x


def text_logits(state: State, video_features: Tensor, text: Tensor) -> Tensor:
    """Compute the K400 head: cosines of video `[B, E]` and its text `[B, K, E]` times exp(logit_scale): `[B, K]`."""
    video = video_features / video_features.norm(dim=-1, keepdim=True)
    text = text / text.norm(dim=-1, keepdim=True)
    return torch.einsum("be,bke->bk", video, text) * state["logit_scale"].exp()


def linear_logits(state: State, video_features: Tensor) -> Tensor:
    """Compute the SSv2 head, `[B, E] -> [B, K]`: L2 norm, layer norm (whose eps makes the former matter), linear."""
    video = video_features / video_features.norm(dim=-1, keepdim=True)
    return linear(state, "mit.classify_head.2", layer_norm(state, "mit.classify_head.0", video))


def ila_forward(
    state: State,
    frames: Tensor,
    text_tokens: Tensor | None = None,
    *,
    jitter: float | None = None,
    batch_stats: bool = False,
) -> dict[str, Any]:
    """Run the whole model on normalized `frames [B, T, 3, S, S]` and `text_tokens [K, L]` (SSv2 ignores them).

    `jitter`: None for inference, else the spread of the nine points of step 4 (0.2, later less).
    `batch_stats`: BatchNorm uses the statistics of this batch's pairs instead of the stored ones.

    Returns a dict of
    - `logits [B, K]`; None for K400 without text,
    - `video_features [B, E]`: after the integration over frames, not normalized,
    - `frame_features [B*T, E]`: after ln_post and projection, frames of clip 0 first,
    - `patch_tokens [B*T, N, D]`: of the last block, no ln_post,
    - `alignment_losses`: a list with a scalar per block,
    - `text_features [K, E]`: not normalized, before prompting; None without text and for SSv2.
    """
    tokens, alignment_losses = image_tower(state, frames, jitter, batch_stats)
    frame_features = frame_features_of(state, tokens)
    patch_tokens = tokens[:, :, 1:]
    video_features = integrate_frames(state, frame_features)
    text_features: Tensor | None = None
    logits: Tensor | None = None
    if variant_of(state) == "ssv2":
        logits = linear_logits(state, video_features)
    elif text_tokens is not None:
        text_features = text_tower(state, text_tokens)
        logits = text_logits(state, video_features, prompt_text(state, text_features, patch_tokens))
    return {
        "logits": logits,
        "video_features": video_features,
        "frame_features": frame_features.flatten(0, 1),
        "patch_tokens": patch_tokens.flatten(0, 1),
        "alignment_losses": alignment_losses,
        "text_features": text_features,
    }
