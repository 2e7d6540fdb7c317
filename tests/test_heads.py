"""Heads of `VideoCLIP`: labels and templates, text and linear heads, video-specific prompts, pooling over time."""

import pytest
import torch
from conftest import SMALL, clip_config, random_frames, shake, write_clip
from torch.nn import functional as F

from clipvid.hub.loading import from_pretrained
from clipvid.model.pooling import MIT, MITConfig
from clipvid.model.prompts import TEMPLATES, class_prompts, resolve_templates

LABELS = ["ride_bike", "swim", "play the guitar"]
ILA = {"name": "ila", **SMALL["ila"]}


# Labels and templates


@torch.no_grad()
def test_one_template_gives_the_raw_text_features(make_model):
    model = make_model()
    model.set_labels(LABELS, ["a video of {}."])
    expected = model.encode_text(["a video of ride bike.", "a video of swim.", "a video of play the guitar."])
    torch.testing.assert_close(model.label_features, expected)
    model.set_labels(LABELS)
    torch.testing.assert_close(model.label_features, model.encode_text(["ride bike", "swim", "play the guitar"]))


@torch.no_grad()
def test_templates_are_ensembled_by_direction(make_model):
    model = make_model()
    model.set_labels(LABELS, "ensemble")
    for label, actual in zip(LABELS, model.label_features, strict=True):
        features = model.encode_text([template.format(label.replace("_", " ")) for template in TEMPLATES["ensemble"]])
        direction = F.normalize(features, dim=-1).mean(dim=0)
        torch.testing.assert_close(F.normalize(actual, dim=-1), F.normalize(direction, dim=-1))
        torch.testing.assert_close(actual.norm(), features.norm(dim=-1).mean())


@torch.no_grad()
def test_logits_are_scaled_cosines(make_model):
    model = make_model(labels=LABELS)
    output = model(random_frames())
    cosines = F.normalize(output.video_features, dim=-1) @ F.normalize(model.label_features, dim=-1).T
    torch.testing.assert_close(output.logits, model.text.clip.logit_scale.exp() * cosines)
    torch.testing.assert_close(output.video_features, output.frame_features.mean(dim=1))
    assert output.logits.std() > 1e-3


@torch.no_grad()
def test_logit_bias_is_added(make_model, tmp_path):
    folder = write_clip(tmp_path / "sigmoid", clip_config(init_logit_bias=-3.0))
    model = make_model(labels=LABELS, folder=folder)
    logits = model(random_frames()).logits
    with torch.no_grad():
        bias = model.text.clip.logit_bias.clone()
        model.text.clip.logit_bias.zero_()
    assert bias < -2
    torch.testing.assert_close(model(random_frames()).logits + bias, logits)


@torch.no_grad()
def test_text_overrides_labels(make_model):
    model = make_model(labels=LABELS)
    frames, others = random_frames(), ["a cat", "a dog"]
    tokens = model.text.tokenize(others)
    overridden = model(frames, text=tokens).logits
    assert overridden.shape == (2, 2)
    assert model.labels == LABELS
    model.set_labels(others)
    assert torch.equal(model(frames).logits, overridden)


@torch.no_grad()
def test_labels_follow_a_trained_text_tower(make_model):
    """This includes evaluation, where the features of the labels are cached."""
    model = make_model(labels=LABELS, tune=["text"])
    shake(model.text, 0.2)
    frames = random_frames()
    expected = model(frames, text=model.label_tokens[:, 0]).logits
    torch.testing.assert_close(model(frames).logits, expected)


def test_text_tower_gets_gradients_through_labels(make_model):
    model = make_model(labels=LABELS, tune=["text"]).train()
    model(random_frames()).logits.logsumexp(-1).mean().backward()
    without = [name for name, value in model.text.named_parameters() if value.grad is None]
    assert not without
    assert all(value.grad is None for value in model.encoder.parameters())


def test_no_labels_and_no_text_is_refused(make_model):
    with pytest.raises(RuntimeError, match=r"call set_labels\(\[\.\.\.\]\) or pass text="):
        make_model()(random_frames())


def test_empty_labels_are_refused(make_model):
    with pytest.raises(ValueError, match="at least one class name"):
        make_model().set_labels([])


def test_one_string_as_labels_is_refused(make_model):
    with pytest.raises((TypeError, ValueError), match="list"):
        make_model().set_labels("swim")


def test_refused_labels_keep_the_old_ones(make_model):
    model = make_model(labels=LABELS)
    features = model.label_features
    with pytest.raises(ValueError, match="templates='nonsense'"):
        model.set_labels(["a", "b"], "nonsense")
    assert model.labels == LABELS
    assert model.label_features is features


@pytest.mark.parametrize("templates", [["a video."], ["{} and {}"], [], ["{} {x}"], ["{} {0}"]])
def test_templates_need_one_placeholder(templates):
    with pytest.raises(ValueError, match="once"):
        class_prompts(["a"], resolve_templates(templates))


def test_unknown_template_set_is_refused():
    with pytest.raises(ValueError, match=r"templates='photo': expected one of none, single, ensemble"):
        resolve_templates("photo")


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_sets_are_valid(name):
    assert resolve_templates(list(TEMPLATES[name])) == resolve_templates(name) == TEMPLATES[name]
    assert len(set(TEMPLATES[name])) == len(TEMPLATES[name])


def test_class_names_in_templates():
    assert class_prompts([" ride_a_bike", "{odd}"], ["{}", "a {}."]) == [
        ["ride a bike", "a ride a bike."],
        ["{odd}", "a {odd}."],
    ]


# Heads and pooling


@torch.no_grad()
def test_linear_head_gives_a_logit_per_label(make_model):
    model = make_model(labels=LABELS, head="linear")
    output = model(random_frames())
    head = model.head
    normed = F.layer_norm(F.normalize(output.video_features, dim=-1), (32,), head.norm.weight, head.norm.bias)
    torch.testing.assert_close(output.logits, normed @ head.linear.weight.T + head.linear.bias)
    assert output.logits.shape == (2, 3)


@torch.no_grad()
def test_linear_head_dropout_in_training_only(make_model):
    model, frames = make_model(labels=LABELS, head={"name": "linear", "dropout": 0.5}), random_frames()
    assert torch.equal(model(frames).logits, model(frames).logits)
    model.train()
    assert not torch.equal(model(frames).logits, model(frames).logits)


def test_linear_head_with_its_own_number_of_classes(make_model):
    model = make_model(head={"name": "linear", "num_classes": 5})
    assert model(random_frames()).logits.shape == (2, 5)
    with pytest.raises(ValueError, match="3 labels for a linear head with 5 classes"):
        model.set_labels(LABELS)


def test_linear_head_without_classes_is_refused(make_model):
    with pytest.raises(ValueError, match=r"pass labels=\[\.\.\.\] or head=\{name: linear, num_classes: K\}"):
        make_model(head="linear")


@torch.no_grad()
def test_mit_resamples_positions():
    torch.manual_seed(0)
    pool = MIT(MITConfig(layers=2), 32, num_frames=8).eval()
    shake(pool)
    features = torch.randn(2, 8, 32)
    pool.position.copy_(pool.position[:1].expand(8, 32))  # one position for all, which resampling keeps
    other = MIT(MITConfig(layers=2), 32, num_frames=3).eval()
    other.load_state_dict(pool.state_dict() | {"position": pool.position[:3]})
    torch.testing.assert_close(pool(features[:, :3]), other(features[:, :3]))
    pool.position.copy_(torch.arange(8.0)[:, None].expand(8, 32))
    other.load_state_dict(
        {name: value for name, value in pool.state_dict().items() if name != "position"}
        | {"position": torch.tensor([0.8333333, 3.5, 6.1666667])[:, None].expand(3, 32)}  # centers of three thirds
    )
    torch.testing.assert_close(pool(features[:, :3]), other(features[:, :3]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_mit_depends_on_frame_order(make_model):
    frames = random_frames(1, 3)
    for pooling, ordered in (("mit", True), ("mean", False)):
        model = make_model(pooling=pooling)
        shake(model.pooling, 0.5)
        same = torch.allclose(model.encode_video(frames), model.encode_video(frames.flip(1)), atol=1e-4)
        assert same != ordered


@torch.no_grad()
def test_video_specific_prompts_depend_on_the_video(make_model):
    model = make_model(labels=LABELS, head={"name": "text", "prompt_layers": 2})
    frames = random_frames()
    output, prompts = model(frames), model.head.video_prompts
    assert torch.equal(prompts.alpha, torch.full((32,), 0.1))
    text = prompts(model.label_features, output.patch_tokens)
    assert text.shape == (2, 3, 32)
    assert not torch.allclose(text[0], text[1], atol=1e-4)
    cosines = torch.einsum("be,bke->bk", F.normalize(output.video_features, dim=-1), F.normalize(text, dim=-1))
    torch.testing.assert_close(output.logits, model.text.logit_scale * cosines)
    prompts.alpha.zero_()
    torch.testing.assert_close(model(frames).logits, make_model(labels=LABELS)(frames).logits)


@torch.no_grad()
def test_frozen_prompts_are_used_and_not_trained(make_model, tmp_path):
    labels = ["walking", "running"]
    head = {"name": "text", "prompt_layers": 1, "train_prompts": False}
    model = make_model(labels=labels, pooling="mit", head=head)
    assert not any(value.requires_grad for value in model.head.parameters())
    assert all(value.requires_grad for value in model.pooling.parameters())
    plain = make_model(labels=labels, pooling="mit")
    plain.pooling.load_state_dict(model.pooling.state_dict())
    frames = random_frames()
    logits = model(frames).logits
    assert (logits - plain(frames).logits).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert torch.equal(loaded(frames).logits, logits)
    assert not any(value.requires_grad for value in loaded.head.parameters())


@torch.no_grad()
def test_model_runs_other_frame_counts(make_model):
    model = make_model(ILA, LABELS, pooling="mit", num_frames=4)
    for num_frames in (1, 4, 9):
        assert model(random_frames(1, num_frames)).logits.isfinite().all()


# Config
