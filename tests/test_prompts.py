"""Texts of classes: template sets, files, descriptions, and classes with the same text."""

import json

import pytest
import torch
import torch.nn.functional as F

from clipvid.evaluation.weight_space import check_texts_differ, set_descriptions
from clipvid.model.prompts import TEMPLATES, class_prompts, read_descriptions, resolve_templates


def test_template_sets_match_clip() -> None:
    assert (len(TEMPLATES["kinetics"]), len(TEMPLATES["ucf101"])) == (28, 48)
    assert "a photo of a person practicing {}." in TEMPLATES["kinetics"]
    assert "a demonstration of the person {}." in TEMPLATES["ucf101"]
    assert all(
        len(set(texts)) == len(texts) and resolve_templates(list(texts)) == texts for texts in TEMPLATES.values()
    )


def test_templates_from_a_file(tmp_path) -> None:
    path = tmp_path / "templates.txt"
    path.write_text("a film of {}.\n\n  {} on tape\n")
    assert resolve_templates(str(path)) == ("a film of {}.", "{} on tape")
    path.write_text("a film of nothing\n")
    with pytest.raises(ValueError, match="a film of nothing"):
        resolve_templates(str(path))
    with pytest.raises(ValueError, match=r"templates='no\.txt'.*a text file"):
        resolve_templates("no.txt")


def test_class_names_become_words() -> None:
    prompts = class_prompts(["ApplyEyeMakeup", "brush_hair", "TaiChi", "tying bow tie"], ["{}"])
    assert prompts == [["Apply Eye Makeup"], ["brush hair"], ["Tai Chi"], ["tying bow tie"]]


def test_descriptions_are_ensembled_in_feature_space(make_model, tmp_path) -> None:
    model, path = make_model(labels=["jumping", "walking"]), tmp_path / "descriptions.json"
    texts = {"walking": ["one foot after the other", "slow steps", "a stroll"], "jumping": "both feet off the ground"}
    path.write_text(json.dumps(texts))
    set_descriptions(model, ["jumping", "walking"], str(path))
    features = model.encode_text(texts["walking"])
    expected = F.normalize(F.normalize(features, dim=-1).mean(dim=0), dim=-1)
    torch.testing.assert_close(F.normalize(model.label_features[1], dim=-1), expected)
    torch.testing.assert_close(model.label_features[0], model.encode_text([texts["jumping"]])[0])
    assert model.labels == ["jumping", "walking"]
    frames = torch.zeros(1, 3, 3, 64, 64, dtype=torch.uint8)
    assert model(frames).logits.shape == (1, 2)


def test_single_description_equals_class_name(make_model, tmp_path) -> None:
    path = tmp_path / "descriptions.json"
    path.write_text(json.dumps({"a": "first text", "b": ["second text"], "unused": "x"}))
    described, named = make_model(labels=["a", "b"]), make_model(labels=["first text", "second text"])
    described.set_labels(["a", "b"], "ensemble")
    named.set_labels(["first text", "second text"], "ensemble")
    set_descriptions(described, ["a", "b"], str(path))
    assert torch.equal(described.label_features, named.label_features)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"a": "text"}', r"for 1 classes: \['b'\]"),
        ('{"a": [], "b": [3]}', r"for 2 classes: \['a', 'b'\]"),
        ('["a"]', "expected a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_incomplete_descriptions_are_refused(tmp_path, content: str, problem: str) -> None:
    path = tmp_path / "descriptions.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=problem):
        read_descriptions(path, ["a", "b"])


def test_classes_of_the_same_text_are_refused(make_model) -> None:
    model = make_model(labels=["long jump", "walking", "Long_Jump"])
    with pytest.raises(ValueError, match=r"1 pairs.*\('long jump', 'Long_Jump'\)"):
        check_texts_differ(model)
    names = [f"class {number}" for number in range(1100)]
    model = make_model(labels=names)
    check_texts_differ(model)
    model.labels = names[:1000] + [f"Class_{number}" for number in range(100)]
    model.set_labels(model.labels)
    with pytest.raises(ValueError, match=r"100 pairs.*\('class 0', 'Class_0'\), \('class 1', 'Class_1'\)"):
        check_texts_differ(model)
