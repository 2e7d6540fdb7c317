"""Authors' checkpoints converted to models: equal to the shared fixtures and to the slow reference."""

import json
import math

import pytest
import torch
from reference_ila import ila_forward, jitter_at
from torch import nn

from clipvid.convert import from_ila
from clipvid.hub.loading import from_pretrained, load_model

VARIANTS = ["k400", "ssv2"]


def small_checkpoint(variant, frames=5, width=128, hidden=64, layers=2, grid=3, patch=8, embed=64, seed=0):
    """Return a random state dict with the authors' names, of other sizes than the fixtures."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def add(name, *shape, around=0.0):
        fan = math.prod(shape[1:]) if len(shape) > 1 else 100
        state[name] = around + torch.randn(shape, generator=generator) / fan**0.5

    def affine(name, size):
        add(f"{name}.weight", size, around=1.0)
        add(f"{name}.bias", size)

    def linear(name, inputs, outputs, *kernel):
        add(f"{name}.weight", outputs, inputs, *kernel)
        add(f"{name}.bias", outputs)

    def batch_norm(name, size):
        affine(name, size)
        add(f"{name}.running_mean", size)
        state[f"{name}.running_var"] = 0.5 + torch.rand(size, generator=generator)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def clip_block(name, size):
        affine(f"{name}.ln_1", size)
        affine(f"{name}.ln_2", size)
        add(f"{name}.attn.in_proj_weight", 3 * size, size)
        add(f"{name}.attn.in_proj_bias", 3 * size)
        linear(f"{name}.attn.out_proj", size, size)
        linear(f"{name}.mlp.c_fc", size, 4 * size)
        linear(f"{name}.mlp.c_proj", 4 * size, size)

    add("visual.conv1.weight", width, 3, patch, patch)
    add("visual.class_embedding", width)
    add("visual.positional_embedding", grid * grid + 1, width)
    affine("visual.ln_pre", width)
    affine("visual.ln_post", width)
    add("visual.proj", width, embed)
    half = hidden // 2
    for layer in range(layers):
        block = f"visual.transformer.resblocks.{layer}"
        clip_block(block, width)
        linear(f"{block}.message_fc", width, width)
        affine(f"{block}.message_ln", width)
        linear(f"{block}.temporal_skip_align_fc", width, width)
        linear(f"{block}.temporal_skip_fc", width, width)
        interactive, points = f"{block}.message_attn.interactive_block", f"{block}.message_attn.prediction_block"
        if variant == "k400":
            linear(f"{interactive}.0.depthwise_conv.0", 1, 2 * width, 3, 3)
            batch_norm(f"{interactive}.0.depthwise_conv.1", 2 * width)
            linear(f"{interactive}.0.pointwise_conv.0", 2 * width, hidden, 1, 1)
            batch_norm(f"{interactive}.0.pointwise_conv.1", hidden)
            second = 1
        else:
            linear(f"{interactive}.0", 2 * width, hidden, 3, 3)
            batch_norm(f"{interactive}.1", hidden)
            second = 3
        linear(f"{interactive}.{second}", hidden, hidden, 3, 3)
        batch_norm(f"{interactive}.{second + 1}", hidden)
        linear(f"{points}.0", hidden, half, 3, 3)
        batch_norm(f"{points}.1", half)
        linear(f"{points}.4", half, half, 3, 3)
        batch_norm(f"{points}.5", half)
        linear(f"{points}.10", half // 2, half // 2, 1)
        linear(f"{points}.12", half // 4, 4, 1)
        linear(f"{block}.message_attn.conv", half, half, 3, 1, 1)
        linear(f"{block}.message_attn.fc", half, width)
    add("mit.positional_embedding", 1, frames, embed)
    clip_block("mit.resblocks.0", embed)
    if variant == "ssv2":
        affine("mit.classify_head.0", embed)
        linear("mit.classify_head.2", embed, 10)
        return state
    add("token_embedding.weight", 40, 64)
    add("positional_embedding", 9, 64)
    clip_block("transformer.resblocks.0", 64)
    affine("ln_final", 64)
    add("text_projection", 64, embed)
    state["logit_scale"] = torch.tensor(2.5)
    affine("prompts_visual_ln", width)
    add("prompts_visual_proj", width, embed)
    affine("prompts_generator.norm", embed)
    add("prompts_generator.alpha", embed)
    for layer in range(3):
        decoder = f"prompts_generator.decoder.{layer}"
        affine(f"{decoder}.norm1", embed)
        affine(f"{decoder}.norm3", embed)
        for part in "qkv":
            add(f"{decoder}.cross_attn.{part}_proj.weight", embed, embed)
        linear(f"{decoder}.cross_attn.proj", embed, embed)
        linear(f"{decoder}.mlp.0", embed, 4 * embed)
        linear(f"{decoder}.mlp.3", 4 * embed, embed)
    return state


def train_without_dropout(model):
    """Set training mode, for jitter and batch statistics, without dropout."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    return model


def outputs_of(model, frames, text):
    """Return the model's outputs under the fixtures' names."""
    output = model(frames, text=text, normalized=True)
    outputs = {
        "logits": output.logits,
        "video_features": output.video_features,
        "frame_features": output.frame_features.flatten(0, 1),
        "patch_tokens": output.patch_tokens.flatten(0, 1),
        "alignment_losses": torch.stack(list(output.losses.values())),
    }
    if text is not None:
        outputs["text_features"] = model.encode_text(text)
    return outputs


def assert_close(name, actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, msg=lambda text: f"{name}: {text}")


# The same numbers


@torch.no_grad()
@pytest.mark.parametrize("mode", ["eval", "jitter"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_converted_model_equals_shared_fixture(shared_fixture, variant, mode):
    tensors = shared_fixture(f"ila_{variant}_tiny")
    start = "checkpoint."
    state = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
    frames = tensors["in.frames"]
    model = from_ila(state, frames.shape[1], "frozen_batch")
    assert not model.training
    if mode == "jitter":
        train_without_dropout(model)
    outputs = outputs_of(model, frames, tensors["in.text_tokens"] if variant == "k400" else None)
    expected = {name.split(".")[-1]: value for name, value in tensors.items() if name.startswith(f"out.{mode}.")}
    expected |= {name.split(".")[-1]: value for name, value in tensors.items() if name == "out.text_features"}
    assert expected.keys() >= {"logits", "frame_features", "patch_tokens", "alignment_losses"}
    for name, value in expected.items():
        assert_close(name, outputs[name], value, 1e-4)


@pytest.mark.parametrize(
    ("mode", "norm", "epoch"),
    [("eval", "batch", 0), ("eval", "frozen_batch", 0), ("train", "frozen_batch", 32), ("train", "batch", 0)],
)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_converted_model_equals_reference_in_float64(variant, mode, norm, epoch):
    state = small_checkpoint(variant)
    exact = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
    model = from_ila(state, 5, norm).double()
    if mode == "train":
        train_without_dropout(model)
    for adapter in model.encoder.adapters():
        adapter.start_epoch(epoch)
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(2, 5, 3, 24, 24, generator=generator, dtype=torch.float64)
    text = torch.randint(1, 40, (4, 9), generator=generator) if variant == "k400" else None
    jitter = jitter_at(epoch) if mode == "train" else None
    expected = ila_forward(exact, frames, text, jitter=jitter, batch_stats=mode == "train" and norm == "batch")
    expected["alignment_losses"] = torch.stack(expected["alignment_losses"])
    outputs = outputs_of(model, frames, text)
    for name, value in expected.items():
        if value is not None:
            assert_close(name, outputs[name], value, 1e-8)


def bytes_and_authors_pixels(*shape):
    """Return uint8 frames, and floats normalized by the statistics in the authors' code."""
    frames = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return frames, (frames.double() - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes_give_the_authors_results(tmp_path, variant):
    """The reference network gets pixels normalized by the authors, the loaded folder gets uint8 frames."""
    state = small_checkpoint(variant)
    from_ila(state, 5).save_pretrained(tmp_path)
    model = from_pretrained(tmp_path)
    frames, pixels = bytes_and_authors_pixels(2, 5, 3, 24, 24)
    text = torch.randint(1, 40, (4, 9)) if variant == "k400" else None
    exact = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
    expected = ila_forward(exact, pixels, text)
    output = model(frames, text=text)
    for name in ("logits", "frame_features"):
        assert_close(name, getattr(output, name).double().flatten(0, -2), expected[name].flatten(0, -2), 1e-4)
    record = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert record["image_mean"] == pytest.approx([123.675 / 255, 116.28 / 255, 103.53 / 255])


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_bytes_give_the_results_of_normalized_floats_on_shared_fixture(shared_fixture, variant):
    """With floats, the converted model equals the authors' network; see the test of the fixtures' outputs."""
    tensors = shared_fixture(f"ila_{variant}_tiny")
    state = {
        name.removeprefix("checkpoint."): value for name, value in tensors.items() if name.startswith("checkpoint.")
    }
    model = from_ila(state, tensors["in.frames"].shape[1], "frozen_batch")
    frames, pixels = bytes_and_authors_pixels(*tensors["in.frames"].shape)
    text = tensors["in.text_tokens"] if variant == "k400" else None
    expected = outputs_of(model, pixels.float(), text)
    output = model(frames, text=text)
    assert_close("logits", output.logits, expected["logits"], 1e-5)
    exact = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
    reference = ila_forward(exact, pixels, text)
    assert_close("reference", output.logits.double(), reference["logits"], 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_converted_model_round_trip(tmp_path, variant):
    model = from_ila(small_checkpoint(variant), 5)
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    frames = torch.randn(2, 5, 3, 24, 24)
    text = torch.randint(1, 40, (4, 9)) if variant == "k400" else None
    first, second = (one(frames, text=text, normalized=True).logits for one in (loaded, model))
    assert torch.equal(first, second)


def test_released_form_with_extra_entries_and_half_precision():
    state = small_checkpoint("k400")
    released = {"model": {name: value.half() for name, value in state.items()}, "epoch": 30, "optimizer": {}}
    model = from_ila(released, 5)
    assert model.head.video_prompts.alpha.dtype == torch.float32
    expected = state["visual.transformer.resblocks.1.message_fc.weight"].half().float()
    assert torch.equal(model.encoder.layers[1].adapters["ila"].message_fc.weight, expected)


def test_sizes_and_policy_are_read_from_the_checkpoint():
    model = from_ila(small_checkpoint("k400"), 5, "frozen_batch")
    config = model.adapter_configs["ila"]
    assert (config.variant, config.hidden, config.norm) == ("k400", 64, "frozen_batch")
    assert (model.num_frames, model.image_size, model.backbone.num_heads) == (5, 24, 2)
    assert len(model.head.video_prompts.layers) == 3
    assert from_ila(small_checkpoint("ssv2"), 5).adapter_configs["ila"].variant == "ssv2"


def test_conversion_leaves_the_given_state_alone():
    state = small_checkpoint("k400")
    copies = {name: value.clone() for name, value in state.items()}
    model = from_ila(state, 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert state.keys() == copies.keys()
    assert all(torch.equal(value, copies[name]) for name, value in state.items())


def test_converted_model_is_ready_to_train():
    model = from_ila(small_checkpoint("k400"), 5)
    trained = {name.split(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"encoder", "pooling", "head"}
    assert all(".adapters." in name for name, value in model.encoder.named_parameters() if value.requires_grad)
    assert all(adapter.jitter == pytest.approx(0.2) for adapter in model.encoder.adapters())


def test_converted_linear_head_accepts_class_names(tmp_path):
    from_ila(small_checkpoint("ssv2"), 5).save_pretrained(tmp_path)
    names = [f"class {number}" for number in range(from_pretrained(tmp_path).head.linear.out_features)]
    assert load_model(str(tmp_path), labels=names).labels == names
    with pytest.raises(ValueError, match=f"{len(names) - 1} labels for a linear head with {len(names)} classes"):
        load_model(str(tmp_path), labels=names[1:])


def test_model_without_text_tower_refuses_text(tmp_path):
    model = from_ila(small_checkpoint("ssv2"), 5)
    model.save_pretrained(tmp_path)
    for one in (model, from_pretrained(tmp_path)):
        with pytest.raises(RuntimeError, match="this model has no text tower"):
            one.encode_text(["a cat"])


# Errors


@pytest.mark.parametrize("frames", [4, 8])
def test_wrong_frame_count_is_refused(frames):
    with pytest.raises(ValueError, match=f"num_frames={frames}, but the checkpoint was trained with 5"):
        from_ila(small_checkpoint("k400"), frames)


@pytest.mark.parametrize(
    "state",
    [{}, {"model": {}}, {"state_dict": small_checkpoint("ssv2")}, {"visual.proj": torch.zeros(2, 2)}],
    ids=["empty", "empty model", "other key", "plain CLIP"],
)
def test_foreign_state_dict_is_refused(state):
    with pytest.raises(ValueError, match="not an ILA checkpoint: no tensor visual"):
        from_ila(state, 5)


@pytest.mark.parametrize(
    "name",
    [
        "visual.transformer.resblocks.0.message_attn.gate.weight",
        "visual.transformer.resblocks.1.attn.extra",
        "visual.extra",
        "transformer.extra",
        "mit.extra.weight",
        "prompts_generator.decoder.0.norm2.weight",
        "completely.foreign",
    ],
)
def test_tensor_without_a_place_is_refused_by_name(name):
    """The error has the checkpoint's name or the new one, so the last part is compared."""
    with pytest.raises(ValueError, match=name.split(".")[-2 if name.endswith("weight") else -1]):
        from_ila(small_checkpoint("k400") | {name: torch.zeros(3)}, 5)


@pytest.mark.parametrize(
    "name",
    [
        "visual.transformer.resblocks.1.message_attn.prediction_block.5.running_mean",
        "visual.transformer.resblocks.1.ln_2.weight",
        "visual.proj",
        "mit.positional_embedding",
        "prompts_generator.alpha",
        "ln_final.bias",
    ],
)
def test_missing_tensor_is_refused_by_name(name):
    state = small_checkpoint("k400")
    del state[name]
    renamed = {
        "visual.transformer.resblocks.1.message_attn.prediction_block.5.running_mean": "norm2.running_mean",
        "prompts_generator.alpha": "video_prompts.alpha",
    }
    with pytest.raises(ValueError, match=renamed.get(name, name)):
        from_ila(state, 5)


def test_tensor_of_a_wrong_shape_is_refused_by_name():
    state = small_checkpoint("k400")
    state["visual.transformer.resblocks.1.message_fc.weight"] = torch.zeros(128, 64)
    with pytest.raises(ValueError, match=r"layers\.1\.adapters\.ila\.message_fc\.weight is \(128, 64\), expected"):
        from_ila(state, 5)


def test_unknown_norm_policy_is_refused():
    with pytest.raises(ValueError, match="norm='sync': expected 'batch', 'frozen_batch' or 'group'"):
        from_ila(small_checkpoint("k400"), 5, "sync")
