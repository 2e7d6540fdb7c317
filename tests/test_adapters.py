"""Interface of adapters, over the registry. A new adapter is tested as soon as it has a name."""

import copy
import warnings

import pytest
import torch
from conftest import SMALL, STEADY, make_adapter, random_frames, random_tokens, shake_adapters, tokens_of, total
from torch.nn import functional as F

from clipvid.adapters import ADAPTERS
from clipvid.hub.loading import from_pretrained

NAMES = [name for name in ADAPTERS if name != "none"]
IDENTITIES = [name for name in NAMES if ADAPTERS[name].identity_at_init]
GRIDS = [(4, 4), (3, 5), (1, 5), (5, 1), (1, 1), (2, 7)]
LABELS = ["walking", "running", "jumping"]

every_adapter = pytest.mark.parametrize("name", NAMES)


def variants() -> list[tuple[str, dict]]:
    """Return every adapter with every policy of its normalization."""
    actual = []
    for name in NAMES:
        policies = ["batch", "frozen_batch", "group"] if hasattr(ADAPTERS[name].Config(), "norm") else [None]
        actual += [(name, SMALL.get(name, {}) | ({"norm": policy} if policy else {})) for policy in policies]
    return actual


every_variant = pytest.mark.parametrize(("name", "options"), variants(), ids=str)


def test_registry_contains_adapters():
    assert ADAPTERS.keys() >= {"none", "ila"}
    assert IDENTITIES
    for adapter in ADAPTERS.values():
        assert issubclass(adapter.Config, ADAPTERS["none"].Config)


# Identity, shapes


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [1, 2, 8, 32])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", IDENTITIES)
def test_fresh_adapter_changes_nothing(make_model, name, num_frames, training):
    frames = random_frames(2, num_frames)
    plain = make_model(num_frames=num_frames).train(training)(frames, text=torch.ones(2, 16, dtype=torch.long))
    output = make_model(name, num_frames=num_frames).train(training)(frames, text=torch.ones(2, 16, dtype=torch.long))
    for field in ("frame_features", "patch_tokens", "video_features", "logits"):
        assert torch.equal(getattr(output, field), getattr(plain, field)), field


@every_adapter
def test_an_adapter_that_the_head_cannot_see_is_announced(make_model, name):
    chosen = {"name": name, **SMALL.get(name, {}), "layers": [-1]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = make_model(chosen, LABELS, head="linear")
        make_model(chosen | {"layers": "all"}, LABELS, head="linear")
    shake_adapters(model)
    output = model.train()(random_frames(), patches=False)
    output.logits.logsumexp(dim=1).sum().backward()
    gradients = [value.grad for adapter in model.encoder.adapters() for value in adapter.parameters()]
    is_lost = bool(gradients) and not any(gradient.any() for gradient in gradients if gradient is not None)
    assert [f"adapter {name} has no effect" in str(each.message) for each in caught] == [True] * is_lost


@torch.no_grad()
def test_all_adapters_together_change_nothing(make_model):
    frames = random_frames()
    stacked = make_model(IDENTITIES)
    assert [list(layer.adapters) for layer in stacked.encoder.layers] == [IDENTITIES] * 2
    assert torch.equal(stacked.encode_video(frames), make_model().encode_video(frames))


@every_adapter
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_update_has_the_shape_of_any_grid_and_prefix(name, grid, prefix, training):
    adapter = make_adapter(name).train(training)
    tokens = random_tokens(grid=grid, prefix=prefix)
    before = tokens.clone()
    if adapter.needs_class_token and prefix == 0:
        with pytest.raises(ValueError, match=f"{name} reads the class token"):
            adapter(tokens, grid)
        return
    output = adapter(tokens, grid)
    assert output.update is None or output.update.shape == tokens.shape
    assert (output.context is not None) == adapter.adds_context
    assert output.context is None or (output.context.ndim, output.context.shape[:2]) == (4, tokens.shape[:2])
    inputs = tokens_of(output)
    assert inputs.dtype == tokens.dtype
    assert inputs.isfinite().all()
    assert inputs.abs().sum() > 0
    assert output.loss is None or (output.loss.shape == () and output.loss.isfinite())
    assert torch.equal(tokens, before), "the adapter edits its input"


@every_adapter
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("frames", [1, 2, 5, 8, 32])
def test_any_number_of_frames_and_a_batch_of_one(name, frames, batch):
    adapter = make_adapter(name, num_frames=4)
    tokens = random_tokens(frames, batch=batch).requires_grad_()
    output = adapter(tokens, (3, 5))
    assert tokens_of(output).shape[:2] == tokens.shape[:2]
    assert tokens_of(output).isfinite().all()
    if tokens_of(output).requires_grad:
        total(output).backward()
        assert tokens.grad.isfinite().all()


@every_adapter
@torch.no_grad()
def test_clips_of_a_batch_are_independent(name):
    adapter = make_adapter(name).eval()
    tokens = random_tokens(batch=3)
    alone = torch.cat([tokens_of(adapter(clip[None], (3, 5))) for clip in tokens])
    torch.testing.assert_close(tokens_of(adapter(tokens, (3, 5))), alone, rtol=1e-4, atol=1e-5)


@every_adapter
@torch.no_grad()
def test_frames_interact(name):
    adapter = make_adapter(name).eval()
    tokens = random_tokens(batch=1)
    changed = tokens.clone()
    changed[:, 1] = changed[:, 1].flip(-1)
    first, second = (tokens_of(adapter(stream, (3, 5))) for stream in (changed, tokens))
    difference = (first - second).abs().amax(dim=(0, 2, 3))
    assert difference[[0, 2]].max() > 1e-4


@every_adapter
def test_tokens_that_do_not_cover_the_grid_are_refused(name):
    with pytest.raises(ValueError, match="do not cover a grid of 4 x 5"):
        make_adapter(name)(random_tokens(grid=(3, 5), prefix=0), (4, 5))


# Low precision


@every_adapter
@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_autocast_stays_close_and_trains(make_model, name, training):
    adapter = {"name": name, **STEADY.get(name, {})}
    model = shake_adapters(make_model(adapter, LABELS, pooling="mit")).train(training)
    frames = random_frames()
    exact = model(frames)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(frames)
        loss = output.logits.logsumexp(-1).mean() + sum(output.losses.values())
    assert F.cosine_similarity(output.video_features.float(), exact.video_features).min() > 0.99
    assert output.losses.keys() == exact.losses.keys()
    for key, value in output.losses.items():
        torch.testing.assert_close(value.float(), exact.losses[key], rtol=0.05, atol=0.02)
    loss.backward()
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all()


@every_adapter
@torch.no_grad()
@pytest.mark.parametrize("pixels", ["floats", "uint8"])
def test_bfloat16_weights_run(make_model, name, pixels):
    model = shake_adapters(make_model(name, LABELS))
    frames = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    if pixels == "floats":
        frames = (frames / 255 - model.pixel_mean) / model.pixel_std
    expected = model(frames)
    model.bfloat16()
    output = model(frames if pixels == "uint8" else frames.bfloat16())
    assert output.logits.dtype == output.video_features.dtype == torch.bfloat16
    assert F.cosine_similarity(output.video_features.float(), expected.video_features).min() > 0.98


# Training


@every_adapter
def test_every_trainable_parameter_has_a_gradient(make_model, name):
    """DDP requires this without `find_unused_parameters`."""
    model = make_model(name, LABELS, pooling="mit").train()
    output = model(random_frames())
    (output.logits.logsumexp(-1).mean() + sum(output.losses.values())).backward()
    without = [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not without


@every_adapter
def test_one_step_moves_exactly_the_trainable_parameters(make_model, name):
    """A key's bias may stay, since softmax cancels it."""
    adapter = {"name": name, **STEADY.get(name, {})}
    head = {"name": "text", "prompt_layers": 1}
    model = shake_adapters(make_model(adapter, LABELS, pooling="mit", head=head)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainable = {key for key, value in model.named_parameters() if value.requires_grad}
    own = [*model.encoder.adapters(), model.pooling, model.head]
    own_tensors = {id(parameter) for module in own for parameter in module.parameters()}
    assert trainable == {key for key, value in model.named_parameters() if id(value) in own_tensors}
    optimizer = torch.optim.SGD([value for value in model.parameters() if value.requires_grad], lr=1.0)
    output = model(random_frames())
    loss = F.cross_entropy(output.logits, torch.tensor([0, 1])) + sum(output.losses.values())
    loss.backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == (key not in trainable), key
        without = parameter.grad is None or key.endswith(".k.bias")
        assert without or parameter.grad.abs().max() > 0, f"{key} has a zero gradient"
    optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved <= trainable
    assert all(key.endswith(".k.bias") for key in trainable - moved)


@every_variant
def test_gradient_checkpointing_changes_nothing(make_model, name, options):
    """Outputs, gradients and BatchNorm's statistics after two steps, with the second pass inside backward."""
    if hasattr(ADAPTERS[name].Config(), "drop_path"):
        options = options | {"drop_path": 0.5}
    stored = shake_adapters(make_model({"name": name, **options}, LABELS, pooling="mit")).train()
    saving = copy.deepcopy(stored)
    saving.encoder.gradient_checkpointing = True
    start = {key: value.clone() for key, value in stored.named_buffers()}
    for model in (stored, saving):
        torch.manual_seed(9)
        for seed in range(2):
            output = model(random_frames(seed=seed))
            (output.logits.logsumexp(-1).mean() + sum(output.losses.values())).backward()
            model.last = output
    assert torch.equal(saving.last.logits, stored.last.logits)
    assert saving.last.losses.keys() == stored.last.losses.keys()
    for key, loss in stored.last.losses.items():
        assert torch.equal(saving.last.losses[key], loss), key
    gradients = {key: value.grad for key, value in saving.named_parameters()}
    assert any(gradient is not None for gradient in gradients.values())
    for key, parameter in stored.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, rtol=1e-5, atol=1e-6, msg=key)
    buffers = dict(saving.named_buffers())
    for key, buffer in stored.named_buffers():
        assert torch.equal(buffers[key], buffer), key
    if options.get("norm") == "batch":
        counts = {key: int(value) for key, value in buffers.items() if key.endswith("num_batches_tracked")}
        assert set(counts.values()) == {2}
        assert not any(torch.equal(buffers[key], start[key]) for key in start if key.endswith("running_mean"))


@every_adapter
def test_gradient_checkpointing_is_for_training_only(make_model, name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("checkpointed")

    model = make_model(name, LABELS)
    model.encoder.gradient_checkpointing = True
    monkeypatch.setattr("clipvid.model.encoder.checkpoint", refuse)
    model.eval()(random_frames())
    with torch.no_grad():
        model.train()(random_frames())
    with pytest.raises(AssertionError, match="checkpointed"):
        model(model.normalise(random_frames()).requires_grad_())


@every_adapter
@pytest.mark.parametrize(
    ("backend", "training"), [pytest.param("eager", False, marks=pytest.mark.slow), ("aot_eager", True)]
)
def test_block_compiles_without_graph_breaks(make_model, name, backend, training):
    torch._dynamo.reset()
    model = shake_adapters(make_model(name)).train(training)
    layer = model.encoder.layers[0]
    eager = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    results = []
    for block in (eager, compiled):
        tokens = random_tokens(grid=(4, 4)).requires_grad_()
        with torch.set_grad_enabled(training):
            output, losses, _ = block(tokens, (4, 4))
            if training:
                (output.square().mean() + sum(losses.values())).backward()
        results.append([output, *losses.values(), *([tokens.grad] if training else [])])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


# Traces


@every_adapter
@pytest.mark.parametrize("num_frames", [1, 3])
def test_trace_is_detached_and_changes_nothing(make_model, name, num_frames):
    model = shake_adapters(make_model(name, LABELS))
    frames = random_frames(num_frames=num_frames)
    plain, traced = model(frames), model(frames, trace=True)
    assert plain.traces == {}
    assert torch.equal(plain.logits, traced.logits)
    assert traced.traces.keys() <= {f"{name}.0", f"{name}.1"}
    for trace in traced.traces.values():
        for seen in trace.values():
            assert seen.grad_fn is None
            assert not seen.requires_grad


# State


@every_variant
@torch.no_grad()
def test_state_round_trip_is_bitwise(make_model, tmp_path, name, options):
    model = shake_adapters(make_model({"name": name, **options}, LABELS))
    for adapter in model.encoder.adapters():
        adapter.start_epoch(31)
    model.train()(random_frames())  # statistics move
    model.eval().save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert torch.equal(loaded(random_frames()).logits, model(random_frames()).logits)
    assert loaded.adapter_configs == model.adapter_configs
