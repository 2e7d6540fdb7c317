"""Weight-space ensembles: bitwise equal to the zero-shot and the fine-tuned model at their ends."""

import shutil

import pytest
import torch
from conftest import SMALL, clip_config, fresh_backbone, random_frames, shake, write_clip

from clipvid.adapters import ADAPTERS
from clipvid.backbone import Backbone
from clipvid.evaluation import weight_space
from clipvid.evaluation.weight_space import WeightSpace, model_key, zero_shot_model
from clipvid.hub.loading import from_pretrained

LABELS = ["walking", "running", "jumping"]


def trained(make_model, adapter, **fields):
    """Build a model with noise added to all trained weights."""
    model = make_model(adapter, labels=LABELS, **fields)
    for seed, parameter in enumerate(parameter for parameter in model.parameters() if parameter.requires_grad):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    for module in model.encoder.adapters():
        shake(module, 0.05)
    model.requires_grad_(False)
    model.set_labels(LABELS)
    return model


def answers(model):
    with torch.no_grad():
        return model(random_frames()).logits


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "none" and ADAPTERS[name].identity_at_init])
def test_alpha_ends_are_zero_shot_and_fine_tuned(make_model, tmp_path, name: str) -> None:
    model = trained(make_model, name)
    fine_tuned, key = answers(model), model_key(model)
    zero_shot = answers(make_model("none", labels=LABELS))
    space = WeightSpace(model)
    assert torch.equal(answers(space.at(0)), zero_shot)
    assert not torch.equal(zero_shot, fine_tuned)
    between = answers(space.at(0.5))
    assert not torch.equal(between, zero_shot)
    assert not torch.equal(between, fine_tuned)
    assert torch.equal(answers(space.at(1)), fine_tuned)
    assert model_key(model) == key


@pytest.mark.parametrize(
    "tune", [["full"], ["text"], ["layernorm", "adapters"], ["full", "text", "adapters"], ["lora"]]
)
def test_alpha_ends_with_trained_towers(make_model, tune: list[str]) -> None:
    model = trained(make_model, "ila", tune=tune)
    fine_tuned, zero_shot = answers(model), answers(make_model("none", labels=LABELS))
    space = WeightSpace(model)
    assert torch.equal(answers(space.at(0)), zero_shot)
    assert torch.equal(answers(space.at(1)), fine_tuned)


def test_alpha_ends_with_lora_in_text_tower(make_model) -> None:
    model = trained(make_model, "ila", tune=["adapters", {"name": "lora", "rank": 2, "towers": ["image", "text"]}])
    fine_tuned, zero_shot = answers(model), answers(make_model("none", labels=LABELS))
    space = WeightSpace(model)
    torch.testing.assert_close(answers(space.at(0)), zero_shot, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(fine_tuned, zero_shot, rtol=1e-3)
    assert torch.equal(answers(space.at(1)), fine_tuned)


def test_half_alpha_averages_tower_weights(make_model) -> None:
    model, plain = trained(make_model, "none", tune=["full"]), make_model("none", labels=LABELS)
    end = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    actual, start = WeightSpace(model).at(0.25).state_dict(), plain.state_dict()
    assert sum(not torch.equal(start[name], end[name]) for name in end) > 10
    for name, tensor in actual.items():
        torch.testing.assert_close(tensor, 0.75 * start[name] + 0.25 * end[name])


def test_saved_model_gives_its_zero_shot_model(make_model, tmp_path) -> None:
    trained(make_model, "ila").save_pretrained(tmp_path)
    plain = zero_shot_model(from_pretrained(tmp_path))
    assert torch.equal(answers(plain), answers(make_model("none", labels=LABELS)))


@pytest.mark.parametrize(
    ("adapter", "fields", "problem"),
    [
        ("none", {"head": "linear"}, "linear head"),
        ("ila", {"pooling": "mit"}, "MIT pooling"),
        ("ila", {"tune": ["adapters", "coop"]}, "context tokens"),
        ("shift", {}, "`shift`"),
        ("xclip", {}, "`xclip`"),
        ("ila", {"head": {"name": "text", "prompt_layers": 1}}, "video-specific prompts"),
    ],
)
def test_model_without_zero_shot_state_is_refused(make_model, adapter: str, fields: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        WeightSpace(make_model(adapter, labels=LABELS, **fields))


def test_alpha_out_of_range_is_refused(make_model) -> None:
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        WeightSpace(trained(make_model, {"name": "ila", **SMALL["ila"]})).at(1.5)


def test_zero_shot_of_random_weights(make_model, monkeypatch) -> None:
    """In memory if the model keeps it frozen. Refused if it was trained, since the name draws other weights."""

    def draw(*_: object, **__: object) -> Backbone:
        backbone = fresh_backbone(f"local-dir:{make_model().backbone.name.removeprefix('local-dir:')}")
        shake(backbone.vision, 0.1, seed=7)
        return backbone

    monkeypatch.setattr(weight_space, "load_backbone", draw)
    frozen = trained(make_model, "ila")
    assert torch.equal(answers(zero_shot_model(frozen)), answers(make_model("none", labels=LABELS)))
    with pytest.raises(ValueError, match=r"cannot be loaded again: local-dir:.*SHA-256"):
        zero_shot_model(trained(make_model, "ila", tune=["adapters", "layernorm"]))


@pytest.mark.parametrize("tune", [["full"], ["adapters", "lora"], ["adapters", "head"]], ids=str)
@pytest.mark.parametrize("merged", [False, True])
def test_saved_model_finds_its_base_clip(make_model, tmp_path, tune, merged) -> None:
    model = trained(make_model, "ila", tune=tune)
    if merged and "lora" in tune:
        model.merge_lora()
    model.save_pretrained(tmp_path)
    plain = zero_shot_model(from_pretrained(tmp_path))
    assert torch.equal(answers(plain), answers(make_model("none", labels=LABELS)))


def test_zero_shot_refuses_changed_weights_file(make_model, clip_folder, tmp_path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    model = trained(make_model, "ila", tune=["full"], folder=folder)
    write_clip(folder, clip_config(), seed=3)
    with pytest.raises(ValueError, match=r"cannot be loaded again.*files may have changed"):
        zero_shot_model(model)
    with pytest.raises(ValueError, match="cannot be loaded again"):
        WeightSpace(model)
