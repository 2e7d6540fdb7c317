"""Relevance maps: slow references, every tower class with every adapter, and the number of passes."""

import math

import numpy as np
import pytest
import torch
from conftest import SMALL, random_frames, shake_adapters
from test_towers import CLASSES, frames_of, little, video_model
from torch import nn

from clipvid.adapters import ADAPTERS
from clipvid.data.synthetic.rendering import draw_frames, draw_scene
from clipvid.hub.loading import load_model
from clipvid.inference.explain import attention
from clipvid.inference.explain.attention import GradientAttention, Rollout
from clipvid.inference.explain.grad_cam import GradCAM
from clipvid.inference.explain.methods import METHODS
from clipvid.inference.explain.occlusion import Occlusion, cover
from clipvid.inference.explain.recording import attention_weights, record
from clipvid.inference.explain.target import Target, find_label

NAMES = [name for name in ADAPTERS if name != "none"]
LABELS = ["walking", "running", "jumping"]
TARGET = Target(1)


def explicit_pass(model, clip, target):
    """Return attention weights [T, heads, L, L] by block, their gradients, and tokens and gradient of the last block.

    Runs a tower without adapters, block by block, with attention written out.
    """
    tower = model.encoder.tower
    tokens, weights = tower.embed(clip[0].clone().requires_grad_()), []
    for layer in model.encoder.layers:
        block, heads = layer.block, layer.block.attn.num_heads
        q, k, v = (
            part(block.ln_1(tokens)).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in (block.attn.q, block.attn.k, block.attn.v)
        )
        weights.append((q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1))
        tokens = tokens + block.attn.out((weights[-1] @ v).transpose(1, 2).flatten(2))
        tokens = tokens + block.feed_forward(tokens)
    pooled = tower.head(tokens).mean(dim=0, keepdim=True)
    logits = model.text.logit_scale * model.head(pooled, tokens[None, :, 1:], model.label_features)
    score = logits[0, target.label] - logits[0, [0, 2]].mean()
    *slopes, last = torch.autograd.grad(score, [*weights, tokens])
    return weights, slopes, tokens, last


def relation(matrices):
    """Return the product of all (1 + A), [T, L, L], as full matrices."""
    product = torch.eye(matrices[0].shape[-1]).expand_as(matrices[0])
    for matrix in matrices:
        product = product + matrix @ product
    return product


def test_attention_equals_full_matrices(make_model):
    model, clip = make_model(labels=LABELS), random_frames(1, 3)
    weights, slopes, tokens, last = explicit_pass(model, clip, TARGET)
    matrices = [(weight * slope).clamp(min=0).mean(dim=1) for weight, slope in zip(weights, slopes, strict=True)]
    scale = torch.stack(matrices).sum(dim=(1, 2, 3)).mean() / 3
    start = tokens.norm(dim=-1) * last.norm(dim=-1)
    expected = torch.einsum("ti,tij->tj", 3 * start / start.sum(), relation([matrix / scale for matrix in matrices]))
    assert (start[:, 1:] == 0).all()  # the head reads the class token only
    result = GradientAttention().relevance(model, clip, TARGET)
    torch.testing.assert_close(result, expected[:, 1:].detach().unflatten(1, (4, 4)), rtol=1e-3, atol=1e-6)


def test_rollout_equals_full_matrices(make_model):
    model, clip = make_model(labels=LABELS), random_frames(1, 3)
    weights, _, tokens, last = explicit_pass(model, clip, TARGET)
    start = tokens.norm(dim=-1) * last.norm(dim=-1)
    mixed = relation([weight.mean(dim=1) for weight in weights]) / 4
    expected = torch.einsum("ti,tij->tj", 3 * start / start.sum(), mixed)[:, 1:]
    result = Rollout().relevance(model, clip, TARGET)
    torch.testing.assert_close(result, expected.detach().unflatten(1, (4, 4)), rtol=1e-3, atol=1e-6)


def test_attention_weights_equal_torchs_fused_attention():
    query, key, value = (torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    options = [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.randn(5, 5)},
        {"attn_mask": torch.randn(5, 5) > -1 + 2 * torch.eye(5)},
    ]
    options[-1]["attn_mask"] |= torch.eye(5, dtype=torch.bool)
    for chosen in options:
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, **chosen)
        torch.testing.assert_close(attention_weights(query, key, value, **chosen) @ value, expected)


def test_grad_cam_equals_a_pass_by_hand(make_model):
    model, clip = make_model(labels=LABELS), random_frames(1, 3)
    seen = {}
    norm = model.encoder.layers[-1].block.ln_1
    handle = norm.register_forward_hook(lambda module, args, output: seen.update(tokens=output))
    logits = model(clip.requires_grad_(), normalized=True).logits[0]
    handle.remove()
    (slope,) = torch.autograd.grad(logits[1] - logits[[0, 2]].mean(), [seen["tokens"]])
    values = torch.zeros(3, 16)
    mean = slope[:, 1:].mean(dim=(0, 1))
    for frame in range(3):
        for patch in range(16):
            values[frame, patch] = (seen["tokens"][frame, 1 + patch] @ mean).detach().clamp(min=0)
    result = GradCAM().relevance(model, clip.detach(), TARGET)
    torch.testing.assert_close(result.flatten(1), values)
    assert values.max() > 0


def test_occlusion_is_the_loss_of_score(make_model):
    model, clip = make_model("ila", LABELS), random_frames(1, 2)
    result = Occlusion(size=2).relevance(model, clip, TARGET)
    covered = clip.clone()
    covered[:, 1, :, 32:, :32] = clip[:, 1].mean(dim=(-2, -1), keepdim=True)
    with torch.no_grad():
        scores = [TARGET.score(model(frames, normalized=True).logits) for frames in (clip, covered)]
    expected = (scores[0] - scores[1]).clamp(min=0).expand(4)
    torch.testing.assert_close(result[1, 2:, :2].flatten(), expected, atol=1e-5, rtol=1e-4)
    assert result.unique().numel() > 2
    torch.testing.assert_close(cover(clip, (4, 4), 1, 2, 0, 2), covered)


# Every tower and adapter


def check_map(model, clip, method, target=TARGET):
    result = method.relevance(model, clip, target)
    assert result.shape == (clip.shape[1], *model.encoder.tower.grid)
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    assert result.min() >= 0
    assert result.max() > 0
    return result


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        pytest.param(name, adapter, marks=() if name == CLASSES[0] or adapter in ("none", "ila") else pytest.mark.slow)
        for name in CLASSES
        for adapter in ["none", *NAMES]
    ],
)
def test_every_method_on_every_tower_and_adapter(name, adapter):
    """Gradients reach the maps through class tokens, mean pooling and attention pooling."""
    _, backbone = little(name)
    if adapter == "xclip" and (
        backbone.vision.num_prefix == 0 or getattr(backbone.blocks[0], "rope", None) is not None
    ):
        return
    model = shake_adapters(video_model(backbone, adapter={"name": adapter, **SMALL.get(adapter, {})}))
    clip = frames_of(backbone)
    with torch.no_grad():
        expected = model(clip, normalized=True).logits
        with record(model):
            result = model(clip, normalized=True).logits
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)
    for method in (GradientAttention(), Rollout(), GradCAM()):
        check_map(model, clip, method)


@pytest.mark.parametrize("head", [{"name": "text", "prompt_layers": 1}, "linear", "cosine", "class_token"], ids=str)
@pytest.mark.parametrize("pooling", ["mean", "mit"])
def test_every_head_and_pooling(make_model, head, pooling):
    model = shake_adapters(make_model("ila", LABELS, head=head, pooling=pooling))
    for method in (GradientAttention(), Rollout(), GradCAM()):
        check_map(model, random_frames(1, 3), method)


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_any_number_of_frames(make_model, num_frames):
    model = shake_adapters(make_model(["ila", "sifa"], LABELS))
    for method in (GradientAttention(), Rollout(), GradCAM()):
        check_map(model, random_frames(1, num_frames), method)
    assert Occlusion(4).relevance(model, random_frames(1, num_frames), TARGET).shape == (num_frames, 4, 4)


def test_adapter_moves_relevance_between_frames(make_model):
    """The head reads the last frame only. Without adapters, all relevance is there."""

    class Last(nn.Module):
        def forward(self, features):
            return features[:, -1]

    clip = random_frames(1, 3)
    for adapter, is_local in (("none", True), ("attention", False), ("ila", False), ("xclip", False)):
        model = shake_adapters(make_model(adapter, LABELS))
        model.pooling = Last()
        by_frame = GradientAttention().relevance(model, clip, TARGET).flatten(1).sum(dim=1)
        assert by_frame[-1] > 0
        assert (by_frame[:-1] == 0).all() == is_local, adapter
        if adapter != "xclip":  # whose message is part of the attention
            identity = GradientAttention("identity").relevance(model, clip, TARGET).flatten(1).sum(dim=1)
            assert (identity[:-1] == 0).all()


def test_explanation_does_not_depend_on_the_scale_of_logits(make_model):
    model, clip = shake_adapters(make_model("ila", LABELS)), random_frames(1, 3)
    before = GradientAttention().relevance(model, clip, TARGET)
    with torch.no_grad():
        model.text.clip.logit_scale += 2.0
    torch.testing.assert_close(GradientAttention().relevance(model, clip, TARGET), before, rtol=1e-3, atol=1e-6)


def test_contrast_of_two_classes_differs_from_a_class(make_model):
    model, clip = shake_adapters(make_model("ila", LABELS)), random_frames(1, 3)
    alone, contrast, reverse = (
        GradientAttention().relevance(model, clip, target) for target in (TARGET, Target(1, 2), Target(2, 1))
    )
    assert not torch.allclose(alone, contrast)
    assert not torch.allclose(contrast, reverse)


@pytest.mark.parametrize("method", ["attention", "grad_cam", "rollout"])
def test_a_map_costs_one_forward_and_one_backward_pass(make_model, monkeypatch, method):
    model, clip = make_model("ila", LABELS), random_frames(1, 3)
    calls = {"forward": 0, "backward": 0}
    model.encoder.register_forward_hook(lambda *args: calls.update(forward=calls["forward"] + 1))
    real = torch.autograd.grad

    def counted(*args, **options):
        calls["backward"] += 1
        return real(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    METHODS.resolve(method).config.relevance(model, clip, TARGET)
    assert calls == {"forward": 1, "backward": 1}


def test_compiled_blocks_give_the_same_map(make_model):
    model, clip = shake_adapters(make_model("ila", LABELS)), random_frames(1, 3)
    expected = GradientAttention().relevance(model, clip, TARGET)
    model.encoder.compile_blocks(backend="eager")
    torch.testing.assert_close(GradientAttention().relevance(model, clip, TARGET), expected)


def test_model_in_bfloat16_gives_a_similar_map(make_model):
    model, clip = shake_adapters(make_model("ila", LABELS)), random_frames(1, 3)
    expected = GradientAttention().relevance(model, clip, TARGET).flatten()
    result = check_map(model.bfloat16(), clip.bfloat16(), GradientAttention()).flatten()
    assert torch.corrcoef(torch.stack([expected, result]))[0, 1] > 0.9


def test_nothing_is_left_in_the_model(make_model):
    """Hooks are removed after a failure too, and parameters get no gradients."""
    model, clip = make_model("ila", LABELS), random_frames(1, 3)
    GradientAttention().relevance(model, clip, TARGET)
    with pytest.raises(RuntimeError, match="stop"), record(model):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attention_that_is_not_fused_is_refused_with_advice(make_model):
    model = make_model(labels=LABELS)

    class Plain(nn.Module):
        num_heads = 2

        def forward(self, x):
            return x

    model.encoder.layers[0].block.attn = Plain()
    with pytest.raises(ValueError, match="use method='grad_cam' or method='occlusion'"):
        GradientAttention().relevance(model, random_frames(1, 2), TARGET)
    check_map(model, random_frames(1, 2), GradCAM())


# Packaged model


def test_packaged_clip_finds_the_object():
    """The most relevant patch is on the object in more than twice as many frames as chance gives."""
    model = load_model("tiny", None, 1, ["ball", "box", "star", "cross"])
    hits, chance = [], []
    places = (torch.arange(6) + 0.5) / 6
    for seed in range(24):
        generator = torch.Generator().manual_seed(seed)
        rng = np.random.default_rng(seed)
        name = model.labels[int(torch.randint(4, (1,), generator=generator))]
        scene = draw_scene(rng, name, "horizontal", 2, 48)
        frames = torch.from_numpy(draw_frames(scene, np.array([0]), rng)).permute(0, 3, 1, 2)
        on = torch.hypot(places[None] - float(scene.x[0]), places[:, None] - float(scene.y[0])) <= float(
            scene.radius[0]
        )
        target = Target(find_label(name, model.labels, "label"))
        result = GradientAttention().relevance(model, model.normalize(frames[None]), target)[0]
        hits.append(float(on.flatten()[result.argmax()]))
        chance.append(float(on.float().mean()))
    assert sum(hits) > 2 * sum(chance) + 4, (sum(hits), sum(chance))


# Targets


def test_score_is_the_difference_to_the_other_classes():
    logits = torch.tensor([[1.0, 2.0, 6.0]])
    assert Target(2).score(logits).item() == pytest.approx(4.5)
    assert Target(2, 1).score(logits).item() == 4.0
    assert Target(0).score(logits[:, :1]).item() == 1.0


def test_unknown_class_suggests_the_nearest():
    assert find_label("running", LABELS, "label") == 1
    assert find_label(2, LABELS, "label") == 2
    with pytest.raises(ValueError, match=r"label='runing' is not a class of the model \(did you mean 'running'\?\)"):
        find_label("runing", LABELS, "label")
    with pytest.raises(ValueError, match=r"against=3: expected an index from 0 to 2"):
        find_label(3, LABELS, "against")


def test_unknown_method_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"unknown explanation method 'atention' \(did you mean 'attention'\?\)"):
        METHODS.resolve("atention")
    with pytest.raises(ValueError, match="is not one of gradient, identity"):
        attention.GradientAttention("none")
    with pytest.raises(ValueError, match="size=0 must be at least 1"):
        Occlusion(0)
