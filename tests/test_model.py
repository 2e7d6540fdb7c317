"""`VideoCLIP`: refusals, trained parts, copies."""

import copy

import pytest
import torch
from conftest import SMALL, clip_config, random_frames, shake, write_clip
from safetensors.torch import load_file

from clipvid.backbone import load_backbone
from clipvid.backbone.state_dicts import load_strictly
from clipvid.hub.loading import from_pretrained
from clipvid.model.config import ModelConfig
from clipvid.model.factory import assemble_model, create_model
from clipvid.model.pooling import MIT
from clipvid.model.prompts import TEMPLATES

LABELS = ["ride_bike", "swim", "play the guitar"]
ILA = {"name": "ila", **SMALL["ila"]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tune": ["adapters", "everything"]}, r"unknown tune 'everything'; known: adapters, head"),
        ({"num_frames": 0}, "num_frames=0 must be at least 1"),
    ],
)
def test_wrong_field_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "max"}, "unknown pooling 'max'; known: mean, mit"),
        ({"pooling": {"name": "mit", "layer": 2}}, r"pooling 'mit' has no option 'layer' \(did you mean 'layers'\?\)"),
        ({"head": "softmax"}, "unknown head 'softmax'; known: text, linear"),
        ({"head": {"name": "text", "classes": 3}}, "head 'text' has no option 'classes'; its options: prompt_layers"),
    ],
)
def test_unknown_choice_is_refused(make_model, fields, message):
    with pytest.raises(ValueError, match=message):
        make_model(**fields)


def test_create_model_takes_all_it_offers(clip_folder):
    name = f"local-dir:{clip_folder}"
    options = {"hidden": 16, "norm": "group", "pooling": "mit", "labels": LABELS, "templates": "single"}
    model = create_model(name, adapter="ila", num_frames=5, tune=["head"], **options)
    assert (model.labels, model.templates) == (LABELS, TEMPLATES["single"])
    assert (model.adapter_configs["ila"].hidden, model.adapter_configs["ila"].norm) == (16, "group")
    assert (model.num_frames, model.config.tune) == (5, ["head"])
    assert isinstance(model.pooling, MIT)
    assert create_model(name, adapter={"name": "ila", "hidden": 16}, norm="group").adapter_configs.keys() == {"ila"}


def test_models_of_code_and_of_configs_have_the_same_default_adapter(clip_folder):
    name = f"local-dir:{clip_folder}"
    assert create_model(name).config == ModelConfig(backbone=name)
    with pytest.raises(ValueError, match=r"adapter: expected a name .*, got None"):
        create_model(name, adapter=None)
    assert create_model(name, tokens="all").adapter_configs["temporal_conv"].layers == [-2, -1]


@pytest.mark.parametrize(("wrong", "near"), [("num_frame", "num_frames"), ("pool", "pooling"), ("label", "labels")])
def test_misspelled_model_option_suggests_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"'{wrong}'.*did you mean '{near}'"):
        create_model("no such tower", adapter="none", **{wrong: 3})


@pytest.mark.parametrize(
    "shape", [(2, 3, 64, 64), (1, 2, 64, 64, 3), (1, 2, 3, 32, 32)], ids=["no clips", "channels last", "wrong size"]
)
def test_frames_of_another_shape_are_refused(make_model, shape):
    with pytest.raises(ValueError, match=r"expected .*3, 64, 64"):
        make_model(labels=LABELS)(torch.zeros(shape))


# What is trained


EXPECTED_TUNED = {
    "adapters": lambda name: ".adapters." in name,
    "head": lambda name: name.startswith(("pooling.", "head.")),
    "layernorm": lambda name: (
        any(part in name for part in (".ln_1.", ".ln_2.", ".ln_pre.", ".ln_post."))
        and name.startswith("encoder.")
        and ".adapters." not in name
    ),
    "full": lambda name: name.startswith("encoder.") and ".adapters." not in name,
    "text": lambda name: name.startswith("text."),
    "partial": lambda name: name.startswith(
        ("encoder.layers.1.block.", "encoder.tower.visual.ln_post.", "encoder.tower.visual.proj")
    ),
    "lora": lambda name: ".lora_" in name,
    "coop": lambda name: name.startswith("context."),
}


@pytest.mark.parametrize(
    "tune",
    [[], *([part] for part in EXPECTED_TUNED), ["adapters", "layernorm", "text"], ["lora", "partial", "coop", "head"]],
    ids=str,
)
def test_tune_selects_trained_parts(make_model, tune):
    model = make_model(ILA, pooling="mit", tune=tune)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    names = {name for name, _ in model.named_parameters()}
    assert trained == {name for name in names if any(EXPECTED_TUNED[part](name) for part in tune)}
    for part in tune:
        assert any(EXPECTED_TUNED[part](name) for name in trained)


@pytest.mark.parametrize("is_public", [True, False])
@pytest.mark.parametrize("tune", [["adapters"], ["adapters", "layernorm"], ["full"], ["text"]], ids=str)
def test_saved_weights_are_the_trained_ones(make_model, tiny_folder, tmp_path, tune, is_public):
    """Adapters, pooling and head are always saved, other trained parts only if the backbone is not saved."""
    model = make_model(ILA, LABELS, pooling="mit", tune=tune, is_public=is_public)
    model.save_pretrained(tmp_path)
    saved = set(load_file(tmp_path / "model.safetensors"))
    parameters = {name for name, _ in model.named_parameters()}
    parts = ["adapters", "head", *(tune if is_public else [])]
    assert saved & parameters == {name for name in parameters if any(EXPECTED_TUNED[part](name) for part in parts)}
    assert all(".adapters.ila." in name for name in saved - parameters)
    assert (tmp_path / "backbone").is_dir() != is_public


@torch.no_grad()
@pytest.mark.parametrize("is_public", [True, False])
@pytest.mark.parametrize("tune", [["adapters", "head"], *([part] for part in EXPECTED_TUNED)], ids=str)
def test_trained_state_contains_all_trained_tensors(make_model, tiny_folder, tune, is_public):
    """A run resumes from this state, on any backbone."""
    trained, fresh = (make_model(ILA, pooling="mit", tune=tune, is_public=is_public) for _ in range(2))
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn_like(parameter))
    load_strictly(fresh.trained_state(), {name: value.clone() for name, value in trained.trained_state().items()})
    for name, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_fixed_position_embedding_stays_fixed(make_model, tmp_path):
    folder = write_clip(tmp_path / "fixed", clip_config({"pos_embed_type": "sin_cos_2d"}))
    model = make_model(folder=folder, tune=["full"])
    assert not model.encoder.tower.visual.positional_embedding.requires_grad
    assert model.encoder.tower.visual.conv1.weight.requires_grad


# Copies


@torch.no_grad()
def test_deep_copy_is_independent(make_model, tmp_path):
    model = make_model(ILA, LABELS, is_public=False)
    frames = random_frames()
    before = model(frames).logits
    other = copy.deepcopy(model)
    assert torch.equal(other(frames).logits, before)
    shake(other)
    other.set_labels(["one", "two"])
    assert torch.equal(model(frames).logits, before)
    assert model.labels == LABELS
    other.save_pretrained(tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(frames).logits, other(frames).logits)


def test_models_of_one_config_start_alike(clip_folder):
    def build(seed):
        torch.manual_seed(seed)
        backbone = load_backbone(f"local-dir:{clip_folder}")
        return assemble_model(backbone, ModelConfig(adapter=ILA, pooling="mit")).state_dict()

    first, again, other = build(0), build(0), build(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pooling.position"], other["pooling.position"])


@pytest.mark.parametrize("adapter", ["none", "ila", "gta", "st_adapter"])
@pytest.mark.parametrize("head", ["linear", "class_token", "text"])
def test_logits_are_the_same_without_patches(make_model, adapter, head):
    frames = random_frames()
    model = make_model(adapter, ["left", "right"], head=head, tune=["full"])
    shake(model)
    gradients, outputs = [], []
    for patches in (True, False):
        model.zero_grad()
        outputs.append(model(frames, patches=patches))
        outputs[-1].logits.logsumexp(dim=1).sum().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        )
    whole, short = outputs
    torch.testing.assert_close(short.logits, whole.logits)
    torch.testing.assert_close(short.frame_features, whole.frame_features)
    torch.testing.assert_close(*reversed(gradients))
    assert whole.patch_tokens.shape[2] > 0
    assert short.patch_tokens.shape[2] == (whole.patch_tokens.shape[2] if head == "class_token" else 0)


@torch.no_grad()
def test_patches_that_the_head_pools_are_computed(make_model, tmp_path):
    model = make_model(folder=write_clip(tmp_path, clip_config({"pool_type": "avg"})))
    frames = random_frames()
    assert torch.equal(
        model(frames, torch.ones(2, 16, dtype=torch.long), patches=False).patch_tokens,
        model(frames, torch.ones(2, 16, dtype=torch.long)).patch_tokens,
    )
