"""`VideoCLIP`: labels, heads, pooling, what is trained, what is saved, and what is refused on the way back."""

import copy
import json
import shutil

import pytest
import torch
from conftest import SMALL, clip_config, random_frames, shake, write_clip
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from clipvid.backbone import load_backbone
from clipvid.builder import create_model
from clipvid.heads import MIT, MITConfig
from clipvid.hub import from_pretrained
from clipvid.model import ModelConfig, VideoCLIP
from clipvid.prompts import TEMPLATES, class_prompts, resolve_templates
from clipvid.saving import FORMAT_VERSION, hash_file
from clipvid.state_dicts import load_strictly

LABELS = ["ride_bike", "swim", "play the guitar"]
ILA = {"name": "ila", **SMALL["ila"]}


def edit_json(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def edit_tensors(path, change):
    """Edit weights as one who means it: the hash in the config follows."""
    state = load_file(path)
    change(state)
    save_file(state, path)
    edit_json(path.parent / "config.json", lambda record: record["files"].update({path.name: hash_file(path)}))


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
    for label, found in zip(LABELS, model.label_features, strict=True):
        features = model.encode_text([template.format(label.replace("_", " ")) for template in TEMPLATES["ensemble"]])
        direction = F.normalize(features, dim=-1).mean(dim=0)
        torch.testing.assert_close(F.normalize(found, dim=-1), F.normalize(direction, dim=-1))
        torch.testing.assert_close(found.norm(), features.norm(dim=-1).mean())


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
def test_labels_follow_a_text_tower_that_is_trained(make_model):
    """In evaluation too, where the features of the labels are kept."""
    model = make_model(labels=LABELS, tune=["text"])
    shake(model.text, 0.2)
    frames = random_frames()
    expected = model(frames, text=model.label_tokens[:, 0]).logits
    torch.testing.assert_close(model(frames).logits, expected)


def test_text_tower_in_training_gets_gradients_through_labels(make_model):
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


def test_refused_labels_leave_the_old_ones(make_model):
    model = make_model(labels=LABELS)
    features = model.label_features
    with pytest.raises(ValueError, match="templates='nonsense'"):
        model.set_labels(["a", "b"], "nonsense")
    assert model.labels == LABELS
    assert model.label_features is features


@pytest.mark.parametrize("templates", [["a video."], ["{} and {}"], [], ["{} {x}"], ["{} {0}"]])
def test_templates_without_their_one_place_are_refused(templates):
    with pytest.raises(ValueError, match="once"):
        class_prompts(["a"], resolve_templates(templates))


def test_unknown_template_set_is_refused():
    with pytest.raises(ValueError, match=r"templates='photo': expected one of none, single, ensemble"):
        resolve_templates("photo")


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_sets_are_valid(name):
    assert resolve_templates(list(TEMPLATES[name])) == resolve_templates(name) == TEMPLATES[name]
    assert len(set(TEMPLATES[name])) == len(TEMPLATES[name])


def test_class_names_lose_underscores_and_keep_braces():
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
def test_linear_head_drops_out_in_training_only(make_model):
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
    with pytest.raises(ValueError, match=r"give labels=\[\.\.\.\] or head=\{name: linear, num_classes: K\}"):
        make_model(head="linear")


@torch.no_grad()
def test_mit_runs_other_frame_counts_with_resampled_positions():
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
        | {"position": torch.tensor([0.8333333, 3.5, 6.1666667])[:, None].expand(3, 32)}  # centres of three thirds
    )
    torch.testing.assert_close(pool(features[:, :3]), other(features[:, :3]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_mit_sees_the_order_of_frames_and_mean_does_not(make_model):
    frames = random_frames(1, 3)
    for pooling, ordered in (("mit", True), ("mean", False)):
        model = make_model(pooling=pooling)
        shake(model.pooling, 0.5)
        same = torch.allclose(model.encode_video(frames), model.encode_video(frames.flip(1)), atol=1e-4)
        assert same != ordered


@torch.no_grad()
def test_video_specific_prompts_move_text_by_the_video(make_model):
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
def test_other_frame_counts_run_through_the_whole_model(make_model):
    model = make_model(ILA, LABELS, pooling="mit", num_frames=4)
    for num_frames in (1, 4, 9):
        assert model(random_frames(1, num_frames)).logits.isfinite().all()


# Config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tune": ["adapters", "everything"]}, r"unknown tune 'everything'; known: adapters, head"),
        ({"num_frames": 0}, "num_frames=0: a clip has at least one frame"),
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
        ({"head": "cosine"}, "unknown head 'cosine'; known: text, linear"),
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


@pytest.mark.parametrize(("wrong", "near"), [("num_frame", "num_frames"), ("pool", "pooling"), ("label", "labels")])
def test_misspelt_model_option_is_refused_with_the_near_one(wrong, near):
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
def test_tune_chooses_what_is_trained(make_model, tune):
    model = make_model(ILA, pooling="mit", tune=tune)
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    names = {name for name, _ in model.named_parameters()}
    assert trained == {name for name in names if any(EXPECTED_TUNED[part](name) for part in tune)}
    for part in tune:
        assert any(EXPECTED_TUNED[part](name) for name in trained)


@pytest.mark.parametrize("fetchable", [True, False])
@pytest.mark.parametrize("tune", [["adapters"], ["adapters", "layernorm"], ["full"], ["text"]], ids=str)
def test_saved_weights_hold_what_was_trained_only(make_model, tiny_folder, tmp_path, tune, fetchable):
    """Adapters, pooling and head in any case; what else is tuned only where the backbone is not written beside it."""
    model = make_model(ILA, LABELS, pooling="mit", tune=tune, fetchable=fetchable)
    model.save_pretrained(tmp_path)
    saved = set(load_file(tmp_path / "model.safetensors"))
    parameters = {name for name, _ in model.named_parameters()}
    parts = ["adapters", "head", *(tune if fetchable else [])]
    assert saved & parameters == {name for name in parameters if any(EXPECTED_TUNED[part](name) for part in parts)}
    assert all(".adapters.ila." in name for name in saved - parameters)
    assert (tmp_path / "backbone").is_dir() != fetchable


@torch.no_grad()
@pytest.mark.parametrize("fetchable", [True, False])
@pytest.mark.parametrize("tune", [["adapters", "head"], *([part] for part in EXPECTED_TUNED)], ids=str)
def test_trained_state_carries_all_that_training_moves(make_model, tiny_folder, tune, fetchable):
    """What a run is resumed from, on any backbone."""
    trained, fresh = (make_model(ILA, pooling="mit", tune=tune, fetchable=fetchable) for _ in range(2))
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


# Saved and loaded


@torch.no_grad()
@pytest.mark.parametrize("fetchable", [True, False])
@pytest.mark.parametrize("tune", [["adapters", "head"], ["full", "text"]], ids=str)
def test_model_comes_back_as_it_was(make_model, tiny_folder, tmp_path, tune, fetchable):
    model = make_model(
        ILA, pooling="mit", head={"name": "text", "prompt_layers": 1}, tune=tune, fetchable=fetchable, image_size=96
    )
    for module in (*model.encoder.adapters(), model.pooling, model.head):
        shake(module)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.set_labels(LABELS, "ensemble")
    model.preprocessing = {"sampling": {"name": "uniform"}, "resize": 100}
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    frames = random_frames(size=96)
    output, expected = loaded(frames), model(frames)
    assert torch.equal(output.logits, expected.logits)
    assert {key: float(value) for key, value in output.losses.items()} == {
        key: float(value) for key, value in expected.losses.items()
    }
    for attribute in ("labels", "templates", "preprocessing"):
        assert getattr(loaded, attribute) == getattr(model, attribute)
    assert (loaded.image_size, loaded.num_frames, loaded.config.tune) == (96, 3, tune)
    for attribute in ("pixel_mean", "pixel_std"):
        assert torch.equal(getattr(loaded, attribute), getattr(model, attribute))
    names = [{name for name, value in one.named_parameters() if value.requires_grad} for one in (model, loaded)]
    assert names[0] == names[1]


@torch.no_grad()
def test_loaded_model_saves_again(make_model, tmp_path):
    model = make_model(ILA, LABELS)
    model.save_pretrained(tmp_path / "first")
    from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    assert torch.equal(from_pretrained(tmp_path / "second")(random_frames()).logits, model(random_frames()).logits)


@torch.no_grad()
def test_embedded_backbone_needs_nothing_else(make_model, tmp_path):
    folder = write_clip(tmp_path / "clip", clip_config(text={"vocab_size": 50}), seed=5)
    model = make_model(ILA, folder=folder)
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(folder)
    moved = (tmp_path / "saved").rename(tmp_path / "moved")
    assert torch.equal(from_pretrained(moved).encode_video(random_frames()), model.encode_video(random_frames()))


def test_linear_head_comes_back_with_its_classes(make_model, tmp_path):
    model = make_model(labels=LABELS, head="linear")
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.labels == LABELS
    assert torch.equal(loaded(random_frames()).logits, model(random_frames()).logits)


@torch.no_grad()
def test_saving_twice_into_a_folder_replaces_all(make_model, tiny_folder, tmp_path):
    make_model(ILA, LABELS).save_pretrained(tmp_path)
    model = make_model(ILA, ["one", "two"], fetchable=True)
    shake(model.encoder.layers[1].adapters)
    model.save_pretrained(tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(random_frames()).logits, model(random_frames()).logits)
    assert not (tmp_path / "backbone").exists()


def test_linear_head_with_a_text_tower_to_tune_is_refused(make_model):
    with pytest.raises(ValueError, match=r"a linear head does not use the text tower; leave it frozen"):
        make_model(labels=LABELS, head="linear", tune=["head", "text"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("head.video_prompts.alpha"), "missing head.video_prompts.alpha"),
        (lambda state: state.update({"head.other": torch.zeros(1)}), "unexpected head.other"),
        (
            lambda state: state.update({"head.video_prompts.alpha": torch.zeros(31)}),
            r"head.video_prompts.alpha is \(31,\), expected \(32,\)",
        ),
        (lambda state: [state.pop(name) for name in list(state)], r"do not fit the model's config: .* and \d+ more"),
    ],
    ids=["missing", "unexpected", "wrong shape", "all missing"],
)
def test_weights_that_do_not_fit_are_refused_by_name(make_model, tmp_path, change, message):
    make_model(ILA, head={"name": "text", "prompt_layers": 1}).save_pretrained(tmp_path)
    edit_tensors(tmp_path / "model.safetensors", change)
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


def test_weights_of_other_type_are_taken_in_the_models(make_model, tmp_path):
    make_model(ILA).save_pretrained(tmp_path)
    edit_tensors(
        tmp_path / "model.safetensors",
        lambda state: state.update({k: v.half() for k, v in state.items() if v.is_floating_point()}),
    )
    assert {value.dtype for value in from_pretrained(tmp_path).parameters()} == {torch.float32}


def test_another_backbone_is_refused_by_its_fingerprint(make_model, tiny_folder, tmp_path):
    make_model(ILA, fetchable=True).save_pretrained(tmp_path / "saved")
    assert from_pretrained(tmp_path / "saved").adapter_configs
    write_clip(tiny_folder, clip_config(), seed=2)
    with pytest.raises(ValueError, match=r"was trained on another backbone: tiny .* SHA-256 .*, expected"):
        from_pretrained(tmp_path / "saved")


def test_fingerprint_is_of_the_backbone_before_training(make_model, tiny_folder, tmp_path):
    model = make_model(tune=["full"], fetchable=True)
    with torch.no_grad():
        model.encoder.tower.visual.proj.add_(1)
    model.save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())["backbone"]
    assert record["sha256"] == load_backbone(record["name"]).fingerprint()
    assert not record["embedded"]
    assert torch.equal(from_pretrained(tmp_path).encode_video(random_frames()), model.encode_video(random_frames()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(model_type="vivit"), "is not the config of a clipvid model"),
        (lambda record: record.pop("model_type"), "is not the config of a clipvid model"),
        (
            lambda record: record.update(format_version=FORMAT_VERSION + 1),
            f"has format {FORMAT_VERSION + 1}, this clipvid reads up to {FORMAT_VERSION}: upgrade clipvid",
        ),
        (lambda record: record["model"].update(fps=3), "has no option 'fps'"),
        (lambda record: record["model"].update(adapter="ilb"), "unknown adapter 'ilb'"),
        (lambda record: record.pop("format_version"), "format_version"),
        (lambda record: record.pop("backbone"), "backbone"),
        (lambda record: record["backbone"].pop("sha256"), r"is incomplete: it lacks backbone\.sha256"),
    ],
    ids=["foreign", "no type", "future", "unknown field", "unknown adapter", "no version", "no backbone", "no hash"],
)
def test_config_that_is_not_ours_is_refused(make_model, tmp_path, change, message):
    make_model(ILA).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", change)
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1]), "is damaged or was changed"),
        ("model.safetensors", lambda content: content[:-5], "is damaged or was changed"),
        ("config.json", lambda content: content[:-20], "is damaged: it is no JSON"),
        ("config.json", lambda content: b"[]", "holds a list, expected a JSON object"),
        ("video_preprocessor_config.json", lambda content: b"", "is damaged: it is no JSON"),
        ("backbone/open_clip_model.safetensors", lambda content: content[:-5], "could not be loaded"),
        (
            "backbone/open_clip_model.safetensors",
            lambda content: content[:-1] + bytes([content[-1] ^ 1]),
            "was trained on another backbone",
        ),
    ],
    ids=[
        "bit of weights",
        "truncated weights",
        "truncated config",
        "list",
        "empty",
        "truncated backbone",
        "bit of backbone",
    ],
)
def test_damaged_file_is_told_by_name(make_model, tmp_path, name, damage, message):
    make_model(ILA, LABELS).save_pretrained(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises((ValueError, RuntimeError), match=message) as error:
        from_pretrained(tmp_path)
    assert path.name in str(error.value) or name.startswith("backbone")


def test_weights_without_a_hash_are_told_when_damaged(make_model, tmp_path):
    make_model(ILA).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", lambda record: record.pop("files"))
    assert from_pretrained(tmp_path).adapter_configs
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: it is no safetensors file"):
        from_pretrained(tmp_path)


def test_revision_of_a_folder_is_refused(make_model, tmp_path):
    make_model(ILA).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a folder here, which has no revisions"):
        from_pretrained(tmp_path, revision="main")


def test_backbone_of_another_machine_is_refused(make_model, tmp_path):
    make_model(ILA).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", lambda record: record["backbone"].update(embedded=False))
    with pytest.raises(ValueError, match=r"names a backbone of another machine: local-dir:"):
        from_pretrained(tmp_path)


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no model: it has no config\.json"):
        from_pretrained(tmp_path)


def test_folder_without_weights_is_refused(make_model, tmp_path):
    make_model(ILA).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=r"model\.safetensors"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("source", ["nobody/nothing", "./no/such/folder"])
def test_neither_folder_nor_repository_is_refused(source):
    with pytest.raises(FileNotFoundError, match="is no folder here, and no"):
        from_pretrained(source)


def test_saved_config_is_complete_and_writes_every_option_out(make_model, tiny_folder, tmp_path):
    tmp_path = tmp_path / "saved"
    make_model(ILA, LABELS, fetchable=True).save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert (record["model_type"], record["format_version"]) == ("clipvid", FORMAT_VERSION)
    assert record["model"]["adapter"] == [
        {
            "name": "ila",
            "layers": "all",
            "variant": "k400",
            "hidden": 16,
            "norm": "batch",
            "eval_batch_stats": False,
            "drop_path": 0.0,
        }
    ]
    assert (record["labels"], record["templates"]) == (LABELS, ["{}"])
    pixels = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert pixels == {
        "num_frames": 3,
        "image_size": 64,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.25],
    }
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "video_preprocessor_config.json",
    }


# Copies


@torch.no_grad()
def test_deep_copy_is_independent(make_model, tmp_path):
    model = make_model(ILA, LABELS, fetchable=False)
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
        return VideoCLIP(backbone, ModelConfig(adapter=ILA, pooling="mit")).state_dict()

    first, again, other = build(0), build(0), build(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pooling.position"], other["pooling.position"])
