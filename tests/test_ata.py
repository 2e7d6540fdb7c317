"""ATA and attention over time against slow references: updates and every gradient, identities of matching."""

import re

import pytest
import torch
from conftest import make_adapter, random_tokens, shake
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional as F

from clipvid.adapters import BlockInfo, build_adapters, resolve_adapters
from clipvid.adapters import ata as ata_module
from clipvid.adapters.ata import ATA, ATAConfig, compose, frame_similarity, tube_rows
from clipvid.adapters.base import AdapterConfig
from clipvid.adapters.matching import assign, invert, matching_gap
from clipvid.adapters.temporal_attention import TemporalAttention
from clipvid.layers.attention import SelfAttention

WIDTH, HEADS = 16, 2
NAMES = ["ata", "attention"]
MATCH_ON = ["stream", "normed"]


def make(name, num_frames=4, seed=0, **options):
    """Build an adapter of width 16 in float64 with every tensor random."""
    torch.manual_seed(seed)
    block = BlockInfo(WIDTH, HEADS, num_frames)
    adapter = ATA(ATAConfig(**options), block) if name == "ata" else TemporalAttention(AdapterConfig(), block)
    shake(adapter.double(), 0.3, seed)
    return adapter


def tokens_for(frames, grid, prefix=1, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, prefix + grid[0] * grid[1], WIDTH, generator=generator, dtype=torch.float64)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def in_place(similarity, solver):
    """Match every patch with the one at its place."""
    return torch.arange(similarity.shape[-1]).expand(similarity.shape[:-1])


# The slow references: one clip, tube, head and frame at a time.


def slow_norm(adapter, token):
    centred = token - token.mean()
    return centred / (centred.square().mean() + adapter.norm.eps).sqrt() * adapter.norm.weight + adapter.norm.bias


def slow_embed(adapter, frame, num_frames):
    """Return the embedding at the middle of a frame's part of the clip, interpolated between the trained frames."""
    trained = adapter.temporal_embed
    place = min(max((frame + 0.5) / num_frames * len(trained) - 0.5, 0.0), len(trained) - 1.0)
    low = int(place)
    high = min(low + 1, len(trained) - 1)
    return trained[low] * (1 - (place - low)) + trained[high] * (place - low)


def slow_tube_attention(adapter, tube):
    """Return updates and weights [T, T], mean over heads, of the tokens of a tube, one per frame."""
    attn, count = adapter.attn, len(tube)
    x = [slow_norm(adapter, token) + slow_embed(adapter, frame, count) for frame, token in enumerate(tube)]
    q = [attn.q.weight @ token + attn.q.bias for token in x]
    k = [attn.k.weight @ token for token in x]
    v = [attn.v.weight @ token + attn.v.bias for token in x]
    size = WIDTH // HEADS
    updates, weights = [], torch.zeros(count, count, dtype=tube[0].dtype)
    for frame in range(count):
        heads = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            scores = torch.stack([q[frame][part] @ key[part] for key in k]) / size**0.5
            share = scores.exp() / scores.exp().sum()
            weights[frame] += share.detach() / HEADS
            heads.append(sum(share[other] * v[other][part] for other in range(count)))
        mixed = attn.out.weight @ torch.cat(heads) + attn.out.bias
        updates.append(adapter.temporal_fc.weight @ mixed + adapter.temporal_fc.bias)
    return updates, weights


def slow_tubes(frames):
    """Return tubes [T][N] of patches [T, N, D]: each frame is matched against the aligned one before it."""
    count, size, _ = frames.shape
    tubes = [list(range(size))]
    aligned = frames[0]
    for frame in range(1, count):
        cost = [[-F.cosine_similarity(a, b, dim=0).item() for b in frames[frame]] for a in aligned]
        tubes.append(linear_sum_assignment(cost)[1].tolist())
        aligned = torch.stack([frames[frame][patch] for patch in tubes[-1]])
    return tubes


def slow_update(adapter, tokens, grid, matched=True):
    """Return updates [B, T, P+N, D], tubes [B][T][N] and weights [B, P+N, T, T]."""
    _, t, length, _ = tokens.shape
    size = grid[0] * grid[1]
    prefix = length - size
    clips, all_tubes, all_weights = [], [], []
    for clip in tokens:
        seen = clip
        if matched and adapter.config.match_on == "normed":
            seen = torch.stack([torch.stack([slow_norm(adapter, token) for token in frame]) for frame in clip])
        tubes = slow_tubes(seen[:, prefix:].detach()) if matched else [list(range(size))] * t
        rows = [[slot] * t for slot in range(prefix)]
        rows += [[prefix + tubes[frame][i] for frame in range(t)] for i in range(size)]
        update = [[None] * length for _ in range(t)]
        weights = []
        for row in rows:
            updates, share = slow_tube_attention(adapter, [clip[frame, slot] for frame, slot in enumerate(row)])
            weights.append(share)
            for frame, slot in enumerate(row):
                update[frame][slot] = updates[frame]
        clips.append(torch.stack([torch.stack(frame) for frame in update]))
        all_tubes.append(tubes)
        all_weights.append(torch.stack(weights))
    return torch.stack(clips), torch.tensor(all_tubes), torch.stack(all_weights)


PARITY = [  # frames, grid, prefix; trained with 4 frames
    (4, (2, 3), 1),
    (4, (3, 2), 0),
    (3, (2, 2), 3),
    (6, (1, 4), 1),
    (1, (2, 2), 1),
    (2, (1, 1), 2),
]


def compare_with_slow(name, tokens, grid, **options):
    adapter = make(name, **options)
    tokens = tokens.requires_grad_()
    expected, tubes, weights = slow_update(adapter, tokens, grid, name == "ata")
    output = adapter(tokens, grid, trace=True)
    close(output.update, expected)
    close(output.trace["attention"], weights)
    if name == "ata":
        assert torch.equal(output.trace["tubes"], tubes)
    assert output.loss is None
    probe = tokens_for(*tokens.shape[1:2], grid, tokens.shape[2] - grid[0] * grid[1], seed=2)
    leaves = {"tokens": tokens, **dict(adapter.named_parameters())}
    gradients = [torch.autograd.grad((x * probe).sum(), list(leaves.values())) for x in (output.update, expected)]
    for key, ours, reference in zip(leaves, *gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-7, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("options", [{}, {"match_on": "normed"}], ids=str)
@pytest.mark.parametrize(("frames", "grid", "prefix"), PARITY, ids=str)
def test_ata_equals_reference_with_gradients(frames, grid, prefix, options):
    compare_with_slow("ata", tokens_for(frames, grid, prefix), grid, **options)


@pytest.mark.parametrize(("frames", "grid", "prefix"), PARITY, ids=str)
def test_divided_attention_equals_reference_with_gradients(frames, grid, prefix):
    compare_with_slow("attention", tokens_for(frames, grid, prefix), grid)


def test_match_on_selects_the_matched_tokens():
    """The norm removes an offset in all channels, the stream keeps it."""
    tokens, grid = tokens_for(4, (3, 3)), (3, 3)
    tokens += torch.linspace(-9, 9, 10, dtype=tokens.dtype).view(1, 1, 10, 1)
    stream, normed = (make("ata", match_on=what)(tokens, grid, trace=True).trace["tubes"] for what in MATCH_ON)
    assert not torch.equal(stream, normed)


# Identities


@pytest.mark.parametrize(("frames", "grid", "prefix"), PARITY, ids=str)
def test_identity_matching_is_divided_attention(monkeypatch, frames, grid, prefix):
    monkeypatch.setattr(ata_module, "assign", in_place)
    ata, attention = make("ata"), make("attention")
    attention.load_state_dict(ata.state_dict())
    results = []
    for adapter in (ata, attention):
        tokens = tokens_for(frames, grid, prefix).requires_grad_()
        update = adapter(tokens, grid).update
        update.square().sum().backward()
        results.append([update, tokens.grad])
    assert torch.equal(results[0][0], results[1][0])
    close(*results[0][1:], *results[1][1:])


def test_frames_alike_are_matched_in_place():
    tokens = tokens_for(1, (3, 4)).expand(-1, 5, -1, -1)
    attention = make("attention")
    for solver in ("exact", "greedy"):
        ata = make("ata", solver=solver)
        attention.load_state_dict(ata.state_dict())
        output = ata(tokens, (3, 4), trace=True)
        assert torch.equal(output.trace["tubes"], torch.arange(12).expand(2, 5, 12))
        assert torch.equal(output.update, attention(tokens, (3, 4)).update)
        close(output.trace["similarity"], torch.full((2, 4), 12.0, dtype=torch.float64))


@pytest.mark.parametrize("match_on", MATCH_ON)
@pytest.mark.parametrize("solver", ["exact", "greedy"])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_permuted_patches_of_each_frame_permute_the_update(solver, match_on, prefix):
    adapter, grid = make("ata", solver=solver, match_on=match_on), (3, 4)
    tokens = tokens_for(5, grid, prefix)
    generator = torch.Generator().manual_seed(7)
    order = torch.stack([torch.randperm(12, generator=generator) for _ in range(10)]).view(2, 5, 12)
    slots = torch.cat([torch.arange(prefix).expand(2, 5, prefix), order + prefix], dim=-1).unsqueeze(-1)
    permuted = adapter(tokens.take_along_dim(slots, 2), grid).update
    close(permuted, adapter(tokens, grid).update.take_along_dim(slots, 2))
    attention = make("attention")
    broken = attention(tokens.take_along_dim(slots, 2), grid).update
    assert not torch.allclose(broken, attention(tokens, grid).update.take_along_dim(slots, 2))


def test_permuted_still_equals_still():
    """The patches of one frame are shuffled differently in every frame. The tubes undo it, and the prefix stays."""
    still, grid = tokens_for(1, (3, 4)).expand(-1, 5, -1, -1), (3, 4)
    generator = torch.Generator().manual_seed(7)
    order = torch.stack([torch.randperm(12, generator=generator) for _ in range(10)]).view(2, 5, 12)
    slots = torch.cat([torch.zeros(2, 5, 1, dtype=torch.long), order + 1], dim=-1).unsqueeze(-1)
    adapter = make("ata")
    output = adapter(still.take_along_dim(slots, 2), grid, trace=True)
    close(output.update, adapter(still, grid).update.take_along_dim(slots, 2))
    seen = order.gather(-1, output.trace["tubes"])
    assert torch.equal(seen, seen[:, :1].expand_as(seen))


def test_composed_matches_equal_matching_aligned_frames():
    patches = tokens_for(6, (3, 4), prefix=0)
    tubes = compose(assign(frame_similarity(patches)))
    aligned = patches[:, 0]
    for frame in range(1, 6):
        match = assign(frame_similarity(torch.stack([aligned, patches[:, frame]], dim=1)))[:, 0]
        assert torch.equal(match, tubes[:, frame])
        aligned = patches[:, frame].take_along_dim(match.unsqueeze(-1), 1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.integers(0, 3), st.integers(0, 10**6))
def test_gather_scatter_identity_and_tube_permutations(batch, frames, size, prefix, seed):
    generator = torch.Generator().manual_seed(seed)
    matches = torch.rand(batch, frames - 1, size, generator=generator).argsort(-1)
    tubes = compose(matches)
    assert torch.equal(tubes.sort(-1).values, torch.arange(size).expand(batch, frames, size))
    for clip in range(batch):
        for start in range(size):
            patch = start
            for frame in range(frames):
                assert tubes[clip, frame, start] == patch
                patch = matches[clip, frame, patch].item() if frame < frames - 1 else patch
    rows = tube_rows(tubes, prefix)
    length = prefix + size
    assert rows.shape == (batch, length, frames)
    names = torch.arange(batch * frames * length)
    assert torch.equal(names[rows.flatten()][invert(rows.flatten())], names)
    clip_of, frame_of, slot_of = rows // (frames * length), rows // length % frames, rows % length
    assert torch.equal(clip_of, torch.arange(batch).view(-1, 1, 1).expand_as(rows))
    assert torch.equal(frame_of, torch.arange(frames).expand_as(rows))
    assert torch.equal(slot_of[:, :prefix], torch.arange(prefix).view(1, -1, 1).expand(batch, prefix, frames))
    assert torch.equal(slot_of[:, prefix:] - prefix, tubes.mT)


# Similarity and matching


def test_similarity_is_float32_cosine_under_autocast():
    patches = random_tokens(4, (3, 3), prefix=0)
    expected = F.cosine_similarity(patches[:, :-1, :, None].double(), patches[:, 1:, None].double(), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        under = frame_similarity(patches)
        low = frame_similarity(patches.bfloat16())
    for similarity, tolerance in ((frame_similarity(patches), 1e-6), (under, 1e-6), (low, 1e-2)):
        assert similarity.dtype == torch.float32
        torch.testing.assert_close(similarity.double(), expected, rtol=0, atol=tolerance)
    assert not frame_similarity(patches.requires_grad_()).requires_grad
    assert not frame_similarity(torch.zeros(1, 2, 3, 4)).any()


def test_greedy_solver_is_used_with_measurable_gap():
    tokens, grid = tokens_for(4, (4, 4)), (4, 4)
    exact, greedy = (make("ata", solver=solver)(tokens, grid, trace=True).trace for solver in ("exact", "greedy"))
    similarity = frame_similarity(tokens[:, :, 1:])
    assert torch.equal(greedy["tubes"], compose(assign(similarity, "greedy")))
    assert not torch.equal(greedy["tubes"], exact["tubes"])
    gap = matching_gap(similarity, assign(similarity, "greedy"))
    close(greedy["similarity"], exact["similarity"] * (1 - gap))
    assert (gap > 0).any()


def test_trace_has_the_documented_shapes():
    trace = make("ata")(tokens_for(3, (2, 3), prefix=2), (2, 3), trace=True).trace
    assert {key: tuple(value.shape) for key, value in trace.items()} == {
        "tubes": (2, 3, 6),
        "similarity": (2, 2),
        "attention": (2, 8, 3, 3),
    }
    trace = make("attention")(tokens_for(3, (2, 3), prefix=2), (2, 3), trace=True).trace
    assert trace.keys() == {"attention"}
    close(trace["attention"].sum(-1), torch.ones(2, 8, 3, dtype=torch.float64))


def test_exact_solver_refuses_nonfinite_tokens():
    tokens = tokens_for(3, (2, 2))
    tokens[0, 1, 2] = float("nan")
    with pytest.raises(ValueError, match=r"8 NaN and 0 infinite of 64 values in matrices 4 x 4"):
        make("ata")(tokens, (2, 2))


# Weights


def make_block(width=WIDTH, dtype=torch.float32):
    torch.manual_seed(3)
    attn, norm = SelfAttention(width, HEADS), nn.LayerNorm(width, eps=1e-3)
    shake(norm)
    return BlockInfo(width, HEADS, 4, attn.to(dtype).requires_grad_(False), norm.to(dtype).requires_grad_(False))


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_copied_from_the_block(name):
    block = make_block()
    adapter = build_adapters(resolve_adapters(name), 0, 1, block)[name]
    for ours, theirs in ((adapter.attn, block.attn), (adapter.norm, block.norm)):
        state = {key: value for key, value in theirs.state_dict().items() if key != "k.bias"}
        assert ours.state_dict().keys() == state.keys()
        for key, value in state.items():
            assert torch.equal(ours.state_dict()[key], value), key
            assert ours.state_dict()[key].data_ptr() != value.data_ptr(), key
    assert adapter.norm.eps == 1e-3
    assert adapter.attn.num_heads == HEADS
    assert all(parameter.requires_grad for parameter in adapter.parameters())
    assert not {id(module) for module in adapter.modules()} & {id(block.attn), id(block.norm)}
    for zero in (adapter.temporal_embed, adapter.temporal_fc.weight, adapter.temporal_fc.bias):
        assert not zero.any()


def test_copied_attention_drops_key_bias():
    block = make_block()
    with torch.no_grad():
        block.attn.k.bias.fill_(3.0)
    adapter = TemporalAttention(AdapterConfig(), block)
    x = torch.randn(5, 4, WIDTH)
    torch.testing.assert_close(adapter.attn(x), block.attn(x))


def test_weights_of_a_half_precision_block_become_float32():
    adapter = TemporalAttention(AdapterConfig(), make_block(dtype=torch.float16))
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}


@pytest.mark.parametrize("norm", [nn.LayerNorm(WIDTH, elementwise_affine=False), nn.LayerNorm(WIDTH, bias=False)])
def test_norm_without_weight_or_bias_is_copied(norm):
    adapter = TemporalAttention(AdapterConfig(), BlockInfo(WIDTH, HEADS, 4, None, norm))
    x = torch.randn(3, WIDTH)
    assert torch.equal(adapter.norm(x), norm(x))
    assert adapter.norm.bias is not None


@pytest.mark.parametrize("attn", [None, nn.MultiheadAttention(WIDTH, HEADS)], ids=["none", "another kind"])
def test_weights_are_fresh_without_source(attn):
    adapter = TemporalAttention(AdapterConfig(), BlockInfo(WIDTH, HEADS, 4, attn, nn.Identity()))
    assert adapter.norm.weight.eq(1).all()
    assert adapter.attn.q.weight.std() > 0.01
    assert adapter(random_tokens()[..., :WIDTH], (3, 5)).update.shape == (2, 3, 16, WIDTH)


# Time


def test_only_embedding_distinguishes_frames():
    """With a zero embedding, reversed clips give reversed updates."""
    for name in NAMES:
        adapter, tokens = make(name), tokens_for(4, (2, 3))
        difference = adapter(tokens.flip(1), (2, 3)).update.flip(1) - adapter(tokens, (2, 3)).update
        assert difference.abs().max() > 1e-3
        with torch.no_grad():
            adapter.temporal_embed.zero_()
        close(adapter(tokens.flip(1), (2, 3)).update.flip(1), adapter(tokens, (2, 3)).update)


def test_resampled_embedding_keeps_linear_functions():
    adapter = make("attention", num_frames=8)
    assert adapter._embed_of(8) is adapter.temporal_embed
    with torch.no_grad():
        adapter.temporal_embed.copy_(torch.arange(8.0).view(8, 1).expand(8, WIDTH))
    close(adapter._embed_of(4)[:, 0], torch.tensor([0.5, 2.5, 4.5, 6.5], dtype=torch.float64))
    close(adapter._embed_of(1)[:, 0], torch.tensor([3.5], dtype=torch.float64))
    close(adapter._embed_of(16)[1:-1, 0], torch.arange(1, 15).double() / 2 - 0.25)
    assert make("attention", num_frames=1)._embed_of(5).eq(make("attention", num_frames=1).temporal_embed).all()


@pytest.mark.parametrize("name", NAMES)
def test_other_numbers_of_frames_train_the_embedding(name):
    adapter = make(name, num_frames=8)
    adapter(tokens_for(5, (2, 2)), (2, 2)).update.square().sum().backward()
    assert adapter.temporal_embed.grad.abs().amax(dim=1).min() > 0


# Low precision, options


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_half_precision_weights_and_stream(name, dtype):
    """Frames differ by small noise only, so that rounding does not change the matches."""
    adapter = make_adapter(name)
    tokens = (random_tokens(1) + 0.1 * random_tokens(3)).to(dtype)
    expected = adapter(tokens.float(), (3, 5), trace=True)
    output = adapter.to(dtype)(tokens, (3, 5), trace=True)
    assert output.update.dtype == dtype
    assert F.cosine_similarity(output.update.float(), expected.update, dim=-1).min() > 0.99
    if name == "ata":
        assert torch.equal(output.trace["tubes"], expected.trace["tubes"])
        assert output.trace["similarity"].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "sinkhorn"}, "ata: solver='sinkhorn' is not one of exact, greedy"),
        ({"match_on": "keys"}, "ata: match_on='keys' is not one of stream, normed"),
    ],
)
def test_wrong_option_is_refused_by_the_config(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ATAConfig(**options)
