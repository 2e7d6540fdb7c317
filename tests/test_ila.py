"""ILA against its slow reference: points, masks, losses, updates and every gradient; schedules and statistics."""

import re

import open_clip
import pytest
import torch
from conftest import REPOSITORY, random_frames, shake
from reference_ila import (
    aligned_frames,
    axis_mask,
    ila_forward,
    ila_update,
    interactive_block,
    interactive_points,
    jitter_at,
    masks_of,
    max_pool_2,
    message_tokens,
    patch_maps,
)
from test_convert import small_checkpoint
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clipvid.adapters.base import BlockInfo
from clipvid.adapters.ila import ILA, ILAConfig, _halve, align, point_mask
from clipvid.backbone import NO_TEXT, build_backbone
from clipvid.backbone.state_dicts import load_strictly
from clipvid.convert import from_ila
from clipvid.hub.loading import from_pretrained
from clipvid.model.config import ModelConfig
from clipvid.model.factory import assemble_model
from clipvid.runs.config_files import parse_config
from clipvid.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from clipvid.training.config import FinetuneConfig
from clipvid.training.optim import build_optimizer

HIDDEN = 64
K400 = ("0.depthwise_conv.0", "0.depthwise_conv.1", None, "0.pointwise_conv.0", "0.pointwise_conv.1", None, "1", "2")
CONVS = {"k400": K400, "ssv2": ("0", "1", None, "3", "4")}
POINTS = {"conv1": "0", "norm1": "1", "conv2": "4", "norm2": "5", "reduce": "10", "predict": "12"}


def make_ila(variant="k400", norm="batch", seed=0, **options):
    """Build an ILA of width 64 in float64 with every tensor random."""
    torch.manual_seed(seed)
    adapter = ILA(ILAConfig(variant=variant, hidden=HIDDEN, norm=norm, **options), BlockInfo(64, 1, 4)).double()
    shake(adapter, 0.1, seed)
    return adapter


def authors_state(adapter):
    """Return the adapter's tensors under the authors' names. Gradients flow back to the adapter's parameters."""
    state = {}
    for name, value in {**dict(adapter.named_parameters()), **dict(adapter.named_buffers())}.items():
        if name not in ("jitter", "shifts"):
            value = value[..., None, None] if name == "temporal_conv.weight" else value
            state[authors_name(name, adapter.config.variant)] = value
    return state


def authors_name(name, variant):
    """Return the authors' name of a tensor in a block."""
    place, _, rest = name.partition(".")
    if place == "interactive_block":
        index, kind = rest.split(".")
        return f"message_attn.interactive_block.{CONVS[variant][int(index)]}.{kind}"
    if place == "point_predictor":
        layer, kind = rest.split(".")
        return f"message_attn.prediction_block.{POINTS[layer]}.{kind}"
    renamed = {"temporal_conv": "message_attn.conv", "interactive_fc": "message_attn.fc"}
    return f"{renamed.get(place, place)}.{rest}"


def tokens_for(frames, grid, prefix=1, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, frames, prefix + grid[0] * grid[1], 64)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


# Parity with the reference

PARITY = [  # frames, grid, prefix
    (2, (4, 4), 1),
    (5, (3, 5), 1),
    (3, (7, 6), 0),
    (3, (5, 4), 3),
    (2, (1, 6), 1),
    (3, (6, 1), 2),
    (3, (2, 3), 1),
    (2, (1, 1), 1),
]
MODES = {  # options, training (jitter comes with it), batch statistics
    "inference": ({"norm": "batch"}, False, False),
    "training": ({"norm": "batch"}, True, True),
    "frozen_training": ({"norm": "frozen_batch"}, True, False),
    "authors_validation": ({"norm": "batch", "eval_batch_stats": True}, False, True),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", ["k400", "ssv2"])
@pytest.mark.parametrize(("frames", "grid", "prefix"), PARITY, ids=str)
def test_update_loss_and_gradients_equal_reference(variant, mode, frames, grid, prefix):
    options, training, batch_stats = MODES[mode]
    adapter = make_ila(variant, **options).train(training)
    adapter.start_epoch(0)
    tokens = tokens_for(frames, grid, prefix).requires_grad_()
    jitter = jitter_at(0) if training else None
    expected = ila_update(authors_state(adapter), tokens, grid, jitter, batch_stats=batch_stats)
    output = adapter(tokens, grid)
    close(output.update, expected[0])
    close(output.loss, expected[1])
    weights = tokens_for(frames, grid, prefix, seed=2)
    leaves = [tokens, *adapter.parameters()]
    gradients = [
        torch.autograd.grad((update * weights).sum() + 10 * loss, leaves)
        for update, loss in ((output.update, output.loss), expected)
    ]
    for name, ours, reference in zip(["tokens", *dict(adapter.named_parameters())], *gradients, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
@pytest.mark.parametrize(("frames", "grid", "prefix"), PARITY, ids=str)
def test_folded_linears_equal_reference(frames, grid, prefix):
    adapter, tokens = make_ila().eval(), tokens_for(frames, grid, prefix)
    expected, _ = ila_update(authors_state(adapter), tokens, grid)
    close(adapter(tokens, grid).update, expected)
    adapter, tokens = adapter.float(), tokens.float()
    with torch.enable_grad():
        unfolded = adapter(tokens, grid).update
    folded = adapter(tokens, grid).update
    torch.testing.assert_close(folded, unfolded, rtol=1e-5, atol=1e-5)
    assert not torch.equal(folded, unfolded)


@torch.no_grad()
def test_folded_linears_are_never_stale():
    adapter, tokens, grid = make_ila().eval(), tokens_for(3, (4, 4)), (4, 4)
    before = adapter(tokens, grid).update
    for linear in (adapter.interactive_fc, adapter.temporal_skip_fc):
        for parameter in linear.parameters():
            parameter.mul_(1.5)
            expected, _ = ila_update(authors_state(adapter), tokens, grid)
            close(adapter(tokens, grid).update, expected)
            assert not torch.allclose(expected, before)


@torch.no_grad()
@pytest.mark.parametrize("name", ["interactive_fc", "temporal_skip_fc"])
def test_wrapped_linears_are_not_folded(name):
    """The addition of a LoRA layer must not be lost."""

    class Wrapped(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    adapter, tokens, grid = make_ila().eval(), tokens_for(3, (4, 4)), (4, 4)
    wrapped = Wrapped(*reversed(getattr(adapter, name).weight.shape)).double()
    wrapped.load_state_dict(getattr(adapter, name).state_dict())
    doubled = {key: 2 * value if f".{name}." in f".{key}" else value for key, value in adapter.state_dict().items()}
    setattr(adapter, name, wrapped)
    update = adapter(tokens, grid).update
    setattr(adapter, name, nn.Linear(*reversed(wrapped.weight.shape)).double())
    adapter.load_state_dict(doubled)
    close(update, adapter(tokens, grid).update)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("variant", ["k400", "ssv2"])
def test_single_frame_has_no_pairs(variant, training):
    adapter = make_ila(variant).train(training)
    tokens = tokens_for(1, (3, 5))
    update, loss = ila_update(authors_state(adapter), tokens, (3, 5))
    output = adapter(tokens, (3, 5), trace=True)
    close(output.update, update)
    assert loss == 0
    assert output.loss is None


@pytest.mark.parametrize("variant", ["k400", "ssv2"])
def test_trace_matches_reference_points_and_masks(variant):
    adapter, grid = make_ila(variant).eval(), (3, 5)
    tokens = tokens_for(4, grid)
    state = authors_state(adapter)
    maps = patch_maps(message_tokens(state, tokens), grid)
    pairs = torch.cat([maps[:, :-1], maps[:, 1:]], dim=2).flatten(0, 1)
    points = interactive_points(state, interactive_block(state, pairs))
    trace = adapter(tokens, grid, trace=True).trace
    assert trace["points"].shape == (2, 3, 2, 2)
    close(trace["points"].flatten(0, 1).flatten(1), points)
    assert points.std() > 1e-3
    assert trace["masks"].shape == (2, 3, 2, 15)
    for frame in range(2):
        close(trace["masks"][:, :, frame].flatten(0, 1), masks_of(points[:, 2 * frame :][:, :2], grid).flatten(1))


def test_fresh_points_lie_in_the_middle():
    adapter = ILA(ILAConfig(hidden=HIDDEN), BlockInfo(64, 1, 4)).double()
    assert not adapter(tokens_for(3, (4, 4)), (4, 4), trace=True).trace["points"].any()


@pytest.mark.parametrize("length", [1, 2, 3, 7, 14])
def test_axis_mask_equals_reference(length):
    points = torch.linspace(-1.2, 1.2, 41, dtype=torch.float64)
    close(point_mask(points, length), axis_mask(points, length))


def test_mask_falls_as_described():
    """The mask is 1 within 0.25, then falls by 1.5 per unit of distance, down to 0."""
    points = torch.tensor([0.0, -0.25, 0.25, 0.45, -0.75, 0.95], dtype=torch.float64)
    expected = torch.tensor([1, 1, 1, 0.7, 0.25, 0], dtype=torch.float64)
    close(point_mask(points, 1)[:, 0], expected)
    close(point_mask(torch.tensor([1.0], dtype=torch.float64), 3)[0], torch.tensor([0, 0, 1.0], dtype=torch.float64))


def test_training_averages_nine_masks_around_each_point():
    adapter, grid = make_ila(norm="frozen_batch").train(), (4, 6)
    adapter.jitter.fill_(0.13)
    trace = adapter(tokens_for(3, grid), grid, trace=True).trace
    for frame in range(2):
        expected = masks_of(trace["points"][:, :, frame].flatten(0, 1), grid, 0.13)
        close(trace["masks"][:, :, frame].flatten(0, 1), expected.flatten(1))


def test_alignment_equals_reference_for_any_points():
    """Points may be outside the grid: a frame with an empty mask has cosine 0."""
    grid = (3, 4)
    patches = tokens_for(4, grid, prefix=0)
    points = 3 * torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 1.5
    points[0, 0] = 5.0
    masks = torch.stack([masks_of(points[..., i : i + 2].flatten(0, 1), grid) for i in (0, 2)], 1)
    aligned, loss = align(patches, masks.flatten(2).unflatten(0, (2, 3)))
    expected, expected_loss = aligned_frames(patches, points, grid)
    close(aligned, expected)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (3, 2), (7, 8)])
def test_pooling_keeps_an_axis_of_one_cell(size):
    maps = torch.randn(2, 3, *size)
    assert torch.equal(_halve(maps), max_pool_2(maps))
    assert _halve(maps).shape[2:] == tuple(max(1, length // 2) for length in size)


# Schedule


@pytest.mark.parametrize(("epoch", "expected"), [(0, 0.2), (29, 0.2), (30, 0.1), (35, 0.2 / 64)])
def test_jitter_schedule_round_trip(make_model, tmp_path, epoch, expected):
    model = make_model("ila")
    for adapter in model.encoder.adapters():
        adapter.start_epoch(epoch)
    assert expected == pytest.approx(jitter_at(epoch))
    names = [name for name in model.trained_state() if name.endswith("ila.jitter")]
    assert len(names) == 2
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    for name in names:
        assert loaded.state_dict()[name].item() == pytest.approx(expected)
        assert name in dict(loaded.named_buffers())


def test_jitter_matters_in_training_only():
    adapter, tokens = make_ila(norm="frozen_batch"), tokens_for(3, (4, 4))
    seen = {}
    for training in (True, False):
        for epoch in (0, 30):
            adapter.train(training).start_epoch(epoch)
            seen[training, epoch] = adapter(tokens, (4, 4)).update
    assert not torch.allclose(seen[True, 0], seen[True, 30])
    assert torch.equal(seen[False, 0], seen[False, 30])


def test_jitter_is_restored_from_checkpoint(make_model, tmp_path):
    model, resumed = make_model("ila"), make_model("ila")
    for adapter in model.encoder.adapters():
        adapter.start_epoch(32)
    path = save_checkpoint(tmp_path, Checkpoint({"model": model.trained_state()}, {}, {"step": 7}), keep=1)
    load_strictly(resumed.trained_state(), load_checkpoint(path).weights["model"])
    for adapter in resumed.encoder.adapters():
        assert adapter.jitter.item() == pytest.approx(0.2 / 8)
        adapter.start_epoch(33)
        assert adapter.jitter.item() == pytest.approx(0.2 / 16)
        adapter.start_epoch(3)
        assert adapter.jitter.item() == pytest.approx(0.2)


# Multiply-adds


def flops_of(adapter, clips, grad):
    """Count multiply-adds per clip of the image side of B/32 at 8 frames, on tensors without data."""
    with torch.device("meta"):
        config = open_clip.get_model_config("ViT-B-32") | {"text_cfg": NO_TEXT}
        backbone = build_backbone(config, open_clip.CLIP(**config).state_dict(), "ViT-B-32")
        model = assemble_model(backbone, ModelConfig("ViT-B-32", "random", adapter)).eval()
        frames = torch.zeros(clips, 8, 3, 224, 224)
    with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
        model.encode_video(frames)
    return counter.get_total_flops() / 2 / clips


@pytest.mark.parametrize(
    ("adapter", "expected"), [("none", 35.3e9), ("ila", 49.9e9), ({"name": "ila", "variant": "ssv2"}, 62.8e9)], ids=str
)
def test_multiply_adds_equal_authors_code(adapter, expected):
    assert flops_of(adapter, 1, grad=True) == pytest.approx(expected, rel=0.002)


def test_folding_spares_the_wide_linear_on_patches():
    clips, patches, width, half = 8, 8 * 49, 768, 128
    unfolded, folded = flops_of("ila", clips, grad=True), flops_of("ila", clips, grad=False)
    assert unfolded - folded == 12 * width * width * (patches - (half + 1) / clips)  # the fold maps C/2 rows and a bias
    assert 1.32 < folded / flops_of("none", clips, grad=False) < 1.345


# Statistics, drop path, options


@pytest.mark.parametrize(("norm", "moves"), [("batch", True), ("frozen_batch", False)])
def test_only_batch_policy_updates_statistics(norm, moves):
    adapter, tokens = make_ila(norm=norm), tokens_for(3, (4, 4))
    start = {name: value.clone() for name, value in adapter.named_buffers() if "norm" in name or "running" in name}
    assert len([name for name in start if name.endswith("running_mean")]) == 5
    adapter.eval()(tokens, (4, 4))
    buffers = dict(adapter.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in start.items())
    adapter.train()(tokens, (4, 4))
    for name, value in start.items():
        assert torch.equal(buffers[name], value) != moves, name


@pytest.mark.parametrize("grad", [False, True])
def test_eval_batch_stats_ignore_running_statistics(grad):
    adapter, tokens, grid = make_ila(eval_batch_stats=True).eval(), tokens_for(3, (4, 4)), (4, 4)
    start = {name: value.clone() for name, value in adapter.named_buffers()}
    with torch.set_grad_enabled(grad):
        first = adapter(tokens, grid).update
        assert all(torch.equal(value, start[name]) for name, value in adapter.named_buffers())
        shake(adapter, 0.0, seed=8)
        moved = {name for name, value in adapter.named_buffers() if not torch.equal(value, start[name])}
        assert moved == {name for name in start if name.endswith("running_var")}
        assert torch.equal(adapter(tokens, grid).update, first)
        alone = adapter(tokens[:1], grid).update
    assert not torch.allclose(alone, first[:1]), "the clips of a batch must affect each other"


def test_eval_batch_stats_do_not_change_training():
    plain, adapter = make_ila().train(), make_ila(eval_batch_stats=True).train()
    tokens = tokens_for(3, (4, 4))
    assert torch.equal(adapter(tokens, (4, 4)).update, plain(tokens, (4, 4)).update)
    for (name, value), other in zip(adapter.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(value, other), name


@torch.no_grad()
def test_converted_model_with_eval_batch_stats(tmp_path):
    state = small_checkpoint("k400")
    exact = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(2, 5, 3, 24, 24, generator=generator, dtype=torch.float64)
    text = torch.randint(1, 40, (4, 9), generator=generator)
    expected = ila_forward(exact, frames, text, batch_stats=True)["logits"]
    from_ila(state, 5, eval_batch_stats=True).save_pretrained(tmp_path)
    close(from_pretrained(tmp_path).double()(frames, text=text, normalized=True).logits, expected)
    assert not torch.allclose(
        from_ila(state, 5).double()(frames, text=text, normalized=True).logits, expected, rtol=1e-3
    )


def test_group_policy_is_independent_of_batch():
    adapter, tokens = make_ila(norm="group").train(), tokens_for(3, (4, 4))
    assert not [name for name, _ in adapter.named_buffers() if "running" in name]
    assert not [module for module in adapter.modules() if isinstance(module, nn.BatchNorm2d)]
    close(adapter(tokens, (4, 4)).update[:1], adapter(tokens[:1], (4, 4)).update)


def test_drop_path_drops_updates_of_whole_clips():
    options = {"norm": "frozen_batch"}
    full, dropping = make_ila(**options).train(), make_ila(**options, drop_path=0.5).train()
    tokens = tokens_for(3, (4, 4), batch=64)
    update = dropping(tokens, (4, 4)).update
    both = full(tokens, (4, 4)).update
    with torch.no_grad():
        full.temporal_skip_fc.weight.zero_()
        full.temporal_skip_fc.bias.zero_()
    aligned = full(tokens, (4, 4)).update
    interactive = both - aligned
    kinds = torch.stack([torch.zeros_like(aligned), 2 * aligned, 2 * interactive, 2 * (aligned + interactive)])
    distance = (update - kinds).abs().amax(dim=(2, 3, 4))  # [4 kinds, 64 clips]
    assert distance.amin(dim=0).max() < 1e-9
    assert set(distance.argmin(dim=0).tolist()) == {0, 1, 2, 3}
    close(dropping.eval()(tokens, (4, 4)).update, make_ila(**options).eval()(tokens, (4, 4)).update)


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_loss_weight_scales_the_alignment_loss_alone(weight):
    tokens = tokens_for(3, (4, 4))
    plain, weighted = (make_ila(norm="group", **more)(tokens, (4, 4)) for more in ({}, {"loss_weight": weight}))
    assert torch.equal(plain.update, weighted.update)
    if weight == 0:
        assert weighted.loss is None
    else:
        close(weighted.loss, weight * plain.loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "k600"}, "ila: variant='k600' is not one of k400, ssv2"),
        ({"norm": "layer"}, "ila: norm='layer' is not one of batch, frozen_batch, group"),
        ({"norm": "group", "eval_batch_stats": True}, "eval_batch_stats=True with norm='group'"),
        ({"norm": "frozen_batch", "eval_batch_stats": True}, "eval_batch_stats=True with norm='frozen_batch'"),
        ({"hidden": 12}, "ila: hidden=12 must be a positive multiple of 8"),
        ({"hidden": 0}, "ila: hidden=0 must be a positive multiple of 8"),
        ({"drop_path": 1.5}, "drop_path"),
        ({"loss_weight": -1.0}, "ila.loss_weight=-1.0"),
    ],
)
def test_wrong_option_is_refused_by_the_config(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ILAConfig(**options)


# Recipes


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs/recipes").glob("ila_*.yaml")), ids=lambda path: path.stem
)
def test_recipe_parameter_groups_match_authors(make_model, path):
    """Names are those of the authors' checkpoints.

    The head belongs to MIT there or to no group, and is grouped with MIT.
    """
    config = parse_config(FinetuneConfig, ["--config", str(path)], "test")
    adapter = config.model.adapter | {"hidden": 16}
    model = make_model(adapter, ["a", "b"], pooling=config.model.pooling, head=config.model.head)
    optimizer = build_optimizer(model, config.optim)
    rates = {
        id(value): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for value in group["params"]
    }
    authors = {"message": (5e-4, 1e-2), "temporal": (8e-5, 1e-3), "mit": (4e-4, 3e-3)}
    seen = set()
    for name, value in model.named_parameters():
        if value.requires_grad:
            own = name.partition(".ila.")[2]
            group = authors_name(own, adapter["variant"]).partition("_")[0] if own else "mit"
            seen.add(group)
            lr, decay = authors[group]
            decay = 0.0 if name == "pooling.position" else decay
            assert rates.pop(id(value)) == (lr, decay if value.ndim > 1 else 0.0), name
    assert not rates
    assert seen == authors.keys()
    assert config.optim.warmup_ratio * config.training.epochs == pytest.approx(5)
    share = config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps
    assert 8 * share == 256
    assert config.training.max_grad_norm == float("inf")
    mean, std = ([255 * value for value in values] for values in (config.model.pixel_mean, config.model.pixel_std))
    assert mean == pytest.approx([123.675, 116.28, 103.53])
    assert std == pytest.approx([58.395, 57.12, 57.375])
    assert (config.optim.lr_scheduler_type, config.optim.min_lr) == ("timm_cosine", 8e-8)
    assert config.data.augment.erase_color == tuple(round(value) for value in mean)


def test_there_are_recipes():
    names = {path.stem for path in (REPOSITORY / "configs/recipes").glob("*.yaml")}
    towers = {"k400": ("b32_8f", "b32_16f"), "ssv2": ()}
    both = ("b16_8f", "b16_16f", "l14_8f", "l14_336_16f")
    assert names >= {f"ila_{data}_{tower}" for data, own in towers.items() for tower in (*own, *both)}


def test_model_returns_a_loss_per_block(make_model):
    output = make_model("ila", labels=["a", "b"])(random_frames())
    assert list(output.losses) == ["ila.0", "ila.1"]
    assert all(0 < loss < 2 for loss in output.losses.values())
