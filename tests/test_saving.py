"""Model folders: content, round trips and refusals."""

import json
import shutil
import socket

import pytest
import torch
from conftest import SMALL, clip_config, random_frames, shake, write_clip
from safetensors.torch import load_file, save_file

from clipvid.backbone import load_backbone
from clipvid.data.preprocessing import Preprocessing
from clipvid.files import hash_file
from clipvid.hub.loading import from_pretrained
from clipvid.model.saving import FORMAT_VERSION

LABELS = ["ride_bike", "swim", "play the guitar"]
ILA = {"name": "ila", **SMALL["ila"]}


def edit_json(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def edit_tensors(path, change):
    """Edit weights and update the hash in the config."""
    state = load_file(path)
    change(state)
    save_file(state, path)
    edit_json(path.parent / "config.json", lambda record: record["files"].update({path.name: hash_file(path)}))


# Saved and loaded


@torch.no_grad()
@pytest.mark.parametrize("is_public", [True, False])
@pytest.mark.parametrize("tune", [["adapters", "head"], ["full", "text"]], ids=str)
def test_model_round_trip(make_model, tiny_folder, tmp_path, tune, is_public):
    model = make_model(
        ILA, pooling="mit", head={"name": "text", "prompt_layers": 1}, tune=tune, is_public=is_public, image_size=96
    )
    for module in (*model.encoder.adapters(), model.pooling, model.head):
        shake(module)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.set_labels(LABELS, "ensemble")
    model.preprocessing = Preprocessing("dense", 2, "squash")
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


def test_linear_head_round_trip(make_model, tmp_path):
    model = make_model(labels=LABELS, head="linear")
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.labels == LABELS
    assert torch.equal(loaded(random_frames()).logits, model(random_frames()).logits)


@torch.no_grad()
def test_saving_twice_into_a_folder_replaces_all(make_model, tiny_folder, tmp_path):
    make_model(ILA, LABELS).save_pretrained(tmp_path)
    model = make_model(ILA, ["one", "two"], is_public=True)
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


def test_weights_are_cast_to_the_model(make_model, tmp_path):
    make_model(ILA).save_pretrained(tmp_path)
    edit_tensors(
        tmp_path / "model.safetensors",
        lambda state: state.update({k: v.half() for k, v in state.items() if v.is_floating_point()}),
    )
    assert {value.dtype for value in from_pretrained(tmp_path).parameters()} == {torch.float32}


def test_another_backbone_is_refused(make_model, tiny_folder, tmp_path):
    make_model(ILA, is_public=True).save_pretrained(tmp_path / "saved")
    assert from_pretrained(tmp_path / "saved").adapter_configs
    write_clip(tiny_folder, clip_config(), seed=2)
    with pytest.raises(ValueError, match=r"was trained on another backbone: tiny .* SHA-256 .*, expected"):
        from_pretrained(tmp_path / "saved")


def test_fingerprint_is_of_the_backbone_before_training(make_model, tiny_folder, tmp_path):
    model = make_model(tune=["full"], is_public=True)
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
def test_foreign_config_is_refused(make_model, tmp_path, change, message):
    make_model(ILA).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", change)
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1]), "is damaged or was changed"),
        ("model.safetensors", lambda content: content[:-5], "is damaged or was changed"),
        ("config.json", lambda content: content[:-20], "is damaged: it is not JSON"),
        ("config.json", lambda content: b"[]", "contains a list, expected a JSON object"),
        ("video_preprocessor_config.json", lambda content: b"", "is damaged: it is not JSON"),
        (
            "backbone/open_clip_model.safetensors",
            lambda content: content[:-5],
            "is damaged: it is not a safetensors file",
        ),
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
def test_damaged_file_is_named(make_model, tmp_path, name, damage, message):
    make_model(ILA, LABELS).save_pretrained(tmp_path)
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises((ValueError, RuntimeError), match=message) as error:
        from_pretrained(tmp_path)
    assert path.name in str(error.value) or name.startswith("backbone")


def test_damaged_weights_without_hash_are_refused(make_model, tmp_path):
    make_model(ILA).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", lambda record: record.pop("files"))
    assert from_pretrained(tmp_path).adapter_configs
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: it is not a safetensors file"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("layers", ["all", "upper", "every_2", [0], [1, 0], [-1], [-2, -1], [0, -1]])
def test_layers_of_every_form_are_loaded_again(make_model, tmp_path, layers):
    model = make_model({**ILA, "layers": layers}).eval()
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    frames = random_frames()
    assert torch.equal(loaded.encode_video(frames), model.encode_video(frames))


def test_revision_of_a_folder_is_refused(make_model, tmp_path):
    make_model(ILA).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a local folder, which has no revisions"):
        from_pretrained(tmp_path, revision="main")


def test_backbone_of_another_machine_is_refused(make_model, tmp_path):
    make_model(ILA).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", lambda record: record["backbone"].update(embedded=False))
    with pytest.raises(ValueError, match=r"names a backbone of another machine: local-dir:"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("hf-hub:nobody/nothing", None, "hf download nobody/nothing"),
        ("hf-hub:../../etc", None, "not a name on the Hub"),
        ("ViT-B-32", "/etc/passwd", "not a tag of open_clip"),
        ("ViT-B-32", "weights.pt", "not a tag of open_clip"),
        ("ViT-B-32", None, "not a tag of open_clip"),
    ],
)
def test_backbone_that_the_user_did_not_name_is_refused(make_model, tmp_path, monkeypatch, name, pretrained, message):
    make_model(ILA).save_pretrained(tmp_path)
    change = {"embedded": False, "name": name, "pretrained": pretrained}
    edit_json(tmp_path / "config.json", lambda record: record["backbone"].update(change))
    edit_json(tmp_path / "config.json", lambda record: record["model"].update(backbone=name, pretrained=pretrained))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


def test_repository_that_was_downloaded_is_used(make_model, tmp_path, monkeypatch):
    make_model(ILA).save_pretrained(tmp_path / "m")
    change = {"embedded": False, "name": "hf-hub:somebody/clip", "pretrained": None}
    edit_json(tmp_path / "m" / "config.json", lambda record: record["backbone"].update(change))
    snapshot = tmp_path / "hub" / "models--somebody--clip" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_config.json").write_text("{}")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded = []
    monkeypatch.setattr("clipvid.hub.loading.load_backbone", lambda *args: loaded.append(args[0]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        from_pretrained(tmp_path / "m")
    assert loaded == ["hf-hub:somebody/clip"]


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
    with pytest.raises(FileNotFoundError, match="a local folder"):
        from_pretrained(source)


def test_saved_config_has_every_option(make_model, tiny_folder, tmp_path):
    tmp_path = tmp_path / "saved"
    make_model(ILA, LABELS, is_public=True).save_pretrained(tmp_path)
    record = json.loads((tmp_path / "config.json").read_text())
    assert (record["model_type"], record["format_version"]) == ("clipvid", 1)
    assert record["model"]["adapter"] == [
        {
            "name": "ila",
            "layers": "all",
            "variant": "k400",
            "hidden": 16,
            "norm": "batch",
            "eval_batch_stats": False,
            "drop_path": 0.0,
            "loss_weight": 1.0,
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
