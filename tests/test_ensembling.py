"""Weight-space ensembles: their ends are the zero-shot and the fine-tuned model, to the bit."""

import pytest
import torch
from conftest import SMALL, random_frames, shake

from clipvid.adapters import ADAPTERS
from clipvid.evaluation.weight_space import WeightSpace, model_key, zero_shot_model
from clipvid.hub.loading import from_pretrained

LABELS = ["walking", "running", "jumping"]


def trained(make_model, adapter, **fields):
    """A model whose trained weights have all moved."""
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


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name not in ("none", "shift")])
def test_the_ends_are_zero_shot_and_fine_tuned(make_model, tmp_path, name: str) -> None:
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
def test_the_ends_where_the_towers_were_trained(make_model, tune: list[str]) -> None:
    model = trained(make_model, "ila", tune=tune)
    fine_tuned, zero_shot = answers(model), answers(make_model("none", labels=LABELS))
    space = WeightSpace(model)
    assert torch.equal(answers(space.at(0)), zero_shot)
    assert torch.equal(answers(space.at(1)), fine_tuned)


def test_the_ends_with_lora_in_the_text_tower(make_model) -> None:
    model = trained(make_model, "ila", tune=["adapters", {"name": "lora", "rank": 2, "towers": ["image", "text"]}])
    fine_tuned, zero_shot = answers(model), answers(make_model("none", labels=LABELS))
    space = WeightSpace(model)
    torch.testing.assert_close(answers(space.at(0)), zero_shot, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(fine_tuned, zero_shot, rtol=1e-3)
    assert torch.equal(answers(space.at(1)), fine_tuned)


def test_between_the_ends_the_tower_s_weights_are_their_mean(make_model) -> None:
    model, plain = trained(make_model, "none", tune=["full"]), make_model("none", labels=LABELS)
    end = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found, start = WeightSpace(model).at(0.25).state_dict(), plain.state_dict()
    assert sum(not torch.equal(start[name], end[name]) for name in end) > 10
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, 0.75 * start[name] + 0.25 * end[name])


def test_a_saved_model_has_the_zero_shot_model_that_it_stands_on(make_model, tmp_path) -> None:
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
        ("ila", {"head": {"name": "text", "prompt_layers": 1}}, "video-specific prompts"),
    ],
)
def test_what_has_no_zero_shot_state_is_refused(make_model, adapter: str, fields: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        WeightSpace(make_model(adapter, labels=LABELS, **fields))


def test_alpha_outside_of_its_line_is_refused(make_model) -> None:
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        WeightSpace(trained(make_model, {"name": "ila", **SMALL["ila"]})).at(1.5)
