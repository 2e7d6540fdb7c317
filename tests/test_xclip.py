"""X-CLIP's message token: a block against loops over frames and heads, and misuse of context tokens."""

import pytest
import torch
from conftest import make_adapter, random_frames, shake
from torch import nn

from clipvid.adapters import ADAPTERS, Adapter, AdapterOutput
from clipvid.adapters.xclip import XCLIPConfig
from clipvid.layers.attention import SelfAttention
from clipvid.model.encoder import VideoBlock

WIDTH, HEADS = 64, 2


class PlainBlock(nn.Module):
    """Block with layer norms, attention and a linear as its MLP."""

    rope = None

    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = SelfAttention(WIDTH, HEADS), nn.Linear(WIDTH, WIDTH)

    def attention(self, x):
        return self.attn(self.ln_1(x))

    def feed_forward(self, x):
        return self.mlp(self.ln_2(x))


def make_block(names=("xclip",), frames=3):
    torch.manual_seed(0)
    block = VideoBlock(PlainBlock(), {name: make_adapter(name, frames) for name in names})
    shake(block)
    return block.double()


def slow_attention(attention, x):
    """Return the attention of one sequence [L, D], one head and one query at a time."""
    q, k, v = attention.q(x), attention.k(x), attention.v(x)
    size = WIDTH // HEADS
    rows = []
    for query in range(len(x)):
        parts = []
        for head in range(HEADS):
            own = slice(head * size, (head + 1) * size)
            scores = torch.stack([q[query, own] @ k[key, own] / size**0.5 for key in range(len(x))])
            weights = scores.exp() / scores.exp().sum()
            parts.append(sum(weight * v[key, own] for key, weight in enumerate(weights)))
        rows.append(torch.cat(parts))
    return attention.out(torch.stack(rows))


def slow_block(block, tokens):
    """Return the output of a block with `xclip`, one clip and one frame at a time."""
    xclip, plain, clips = block.adapters["xclip"], block.block, []
    for clip in tokens:
        message = torch.stack([xclip.message_fc(frame[0]) for frame in clip])
        message = message + slow_attention(xclip.message_attn, xclip.message_ln(message))
        frames = []
        for frame, own in zip(clip, message, strict=True):
            seen = plain.ln_1(torch.cat([own[None], frame]))
            frame = frame + slow_attention(plain.attn, seen)[1:]
            frames.append(frame + plain.mlp(plain.ln_2(frame)))
        clips.append(torch.stack(frames))
    return torch.stack(clips)


def tokens_for(frames, prefix=1, batch=2):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, frames, prefix + 4, WIDTH, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("prefix", [1, 2])
def test_block_and_gradients_equal_reference(frames, prefix):
    block, tokens = make_block(frames=frames), tokens_for(frames, prefix).requires_grad_()
    leaves = {"tokens": tokens} | dict(block.named_parameters())
    outputs = [block(tokens, (2, 2))[0], slow_block(block, tokens)]
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)
    probe = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first, second = (torch.autograd.grad((output * probe).sum(), list(leaves.values())) for output in outputs)
    for name, one, other in zip(leaves, first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, msg=name)


def test_trace_has_the_attention_between_frames():
    block, tokens = make_block(), tokens_for(3)
    attention = block(tokens, (2, 2), trace=True)[2]["xclip"]["attention"]
    assert attention.shape == (2, 3, 3)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, dtype=torch.float64))


def test_drop_path_drops_attention_between_messages_of_a_clip():
    adapter = make_adapter("xclip", drop_path=0.5).double().train()
    tokens = tokens_for(3, batch=16)
    alone = adapter.message_fc(tokens[:, :, 0])
    full = alone + adapter.message_attn(adapter.message_ln(alone))
    torch.manual_seed(0)
    actual = adapter(tokens, (2, 2)).context.squeeze(2)
    dropped = [torch.equal(clip, own) for clip, own in zip(actual, alone, strict=True)]
    assert 0 < sum(dropped) < 16
    for clip, own, both, is_dropped in zip(actual, alone, full, dropped, strict=True):
        if not is_dropped:
            torch.testing.assert_close(clip - own, 2 * (both - own))
    torch.testing.assert_close(adapter.eval()(tokens, (2, 2)).context.squeeze(2), full)


@torch.no_grad()
def test_order_of_frames_reaches_the_features_only_through_other_frames(make_model):
    """The messages have no time embedding, so permuted frames give permuted features."""
    model, frames = make_model("xclip"), random_frames(num_frames=4)
    shake(model.encoder.layers[0].adapters)
    order = [2, 0, 3, 1]
    features, permuted = (model.encoder(clip).frame_features for clip in (frames, frames[:, order]))
    torch.testing.assert_close(permuted, features[:, order])
    changed = frames.clone()
    changed[:, 3] = changed[:, 3].flip(-1)
    assert (model.encoder(changed).frame_features - features)[:, :3].abs().max() > 1e-4


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_drop_path_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match="xclip: drop_path"):
        XCLIPConfig(drop_path=value)


# Context tokens of any adapter


class Extra(Adapter):
    """Adapter with context tokens of a given shape."""

    place = "before_attention"
    adds_context = True

    def __init__(self, shape, place="before_attention", declared=True):
        super().__init__(None, None)
        self.shape, self.place, self.adds_context = shape, place, declared

    def forward(self, tokens, grid, trace=False):
        return AdapterOutput(context=tokens.new_ones(self.shape))


@pytest.mark.parametrize("shape", [(2, 3, WIDTH), (2, 2, 1, WIDTH), (2, 3, 1, 8)])
def test_context_of_a_wrong_shape_is_refused(shape):
    block = VideoBlock(PlainBlock(), {"extra": Extra(shape)})
    with pytest.raises(ValueError, match=r"adapter extra returned context tokens .*; expected \[2, 3, M, 64\]"):
        block(tokens_for(3).float(), (2, 2))


@pytest.mark.parametrize("options", [{"place": "after_attention"}, {"declared": False}])
def test_context_that_is_not_declared_is_refused(options):
    block = VideoBlock(PlainBlock(), {"extra": Extra((2, 3, 1, WIDTH), **options)})
    with pytest.raises(ValueError, match="adds_context = True and place = 'before_attention'"):
        block(tokens_for(3).float(), (2, 2))


@torch.no_grad()
def test_context_of_several_adapters_is_concatenated():
    """Equal context tokens raise their weight: two adapters with one token equal one adapter with two."""
    shapes = {"one": [(2, 3, 1, WIDTH)] * 2, "two": [(2, 3, 2, WIDTH)]}
    outputs = []
    for own in shapes.values():
        torch.manual_seed(0)
        block = VideoBlock(PlainBlock(), {f"extra{index}": Extra(shape) for index, shape in enumerate(own)})
        outputs.append(block(tokens_for(3).float(), (2, 2))[0])
    torch.testing.assert_close(*outputs)
    torch.manual_seed(0)
    assert not torch.allclose(VideoBlock(PlainBlock(), {})(tokens_for(3).float(), (2, 2))[0], outputs[0])


def test_flags_of_the_registry():
    assert [name for name in ADAPTERS if ADAPTERS[name].adds_context] == ["xclip"]
    assert all(ADAPTERS[name].place == "before_attention" for name in ADAPTERS if ADAPTERS[name].adds_context)
