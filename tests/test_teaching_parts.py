"""Parts of teaching: the choice of clips, the linear head, comparisons, and the list of labels."""

import csv
import math

import pytest
import torch
from conftest import random_frames, shake, shake_adapters

import clipvid
from clipvid.app.choosing import most_informative, sure_clip, uncertainty
from clipvid.app.judging import Accuracy, Comparison, quick_probabilities, train_head
from clipvid.app.label_list import LabelList, check_class_name
from clipvid.data.manifest import load_manifest
from clipvid.inspection.probes import fit_probe
from clipvid.model.linear_head import linear_head_inputs, with_linear_head

NAMES = ["a", "b", "c"]


def blobs(sizes: list[int], seed: int, noise: float = 2.0) -> tuple[torch.Tensor, list[str]]:
    """Return features with three lumps for each class, far from the origin as those of CLIP."""
    generator = torch.Generator().manual_seed(seed)
    rows, labels = [], []
    for place, size in enumerate(sizes):
        lumps = torch.randn(1, 64, generator=generator) + 0.7 * torch.randn(3, 64, generator=generator)
        numbers = torch.arange(size) % 3
        rows.append(lumps[numbers] + noise * torch.randn(size, 64, generator=generator))
        labels += [f"class {place}"] * size
    return torch.cat(rows) + 3, labels


def accuracy_of_others(features: torch.Tensor, labels: list[str], chosen: list[int]) -> float:
    """Return the accuracy on the clips without labels of a head that is trained on the chosen ones."""
    names = sorted(set(labels))
    targets = torch.tensor([names.index(label) for label in labels])
    inputs, others = linear_head_inputs(features), torch.ones(len(labels), dtype=torch.bool)
    others[chosen] = False
    probe = fit_probe(inputs[chosen], targets[chosen], len(names), 0.1)
    return float((probe(inputs[others]).argmax(dim=1) == targets[others]).float().mean())


def choose(features: torch.Tensor, labels: list[str], count: int) -> list[int]:
    """Return clips as a teacher would choose them who knows the labels."""
    chosen: list[int] = []
    for _ in range(count):
        is_labeled = torch.zeros(len(labels), dtype=torch.bool)
        is_labeled[chosen] = True
        quick = quick_probabilities(features, torch.tensor(chosen, dtype=torch.long), [labels[i] for i in chosen])
        doubt = None if quick is None else uncertainty(quick[1])
        chosen.append(most_informative(features, is_labeled, ~is_labeled, doubt))
    return chosen


@pytest.mark.parametrize("sizes", [[60] * 8, [200, 150, 100, 50, 25, 15, 10, 8]], ids=["even", "uneven"])
def test_chosen_clips_teach_more_than_random_ones(sizes):
    gains = []
    for seed in range(5):
        features, labels = blobs(sizes, seed)
        chosen = choose(features, labels, 24)
        assert len(set(chosen)) == 24
        draws = [torch.randperm(len(labels), generator=torch.Generator().manual_seed(10 * seed + i)) for i in range(5)]
        by_chance = [accuracy_of_others(features, labels, draw[:24].tolist()) for draw in draws]
        gains.append(accuracy_of_others(features, labels, chosen) - sum(by_chance) / len(by_chance))
    assert min(gains) > 0
    assert sum(gains) / len(gains) > 0.05


def test_first_clips_cover_the_lumps_and_avoid_outliers():
    generator = torch.Generator().manual_seed(0)
    lumps = 5 * torch.randn(6, 32, generator=generator)
    outliers = 20 * torch.randn(4, 32, generator=generator)
    features = torch.cat([lumps.repeat_interleave(20, 0) + torch.randn(120, 32, generator=generator), outliers])
    is_labeled, chosen = torch.zeros(124, dtype=torch.bool), []
    for _ in range(6):
        chosen.append(most_informative(features, is_labeled, ~is_labeled))
        is_labeled[chosen] = True
    assert sorted(place // 20 for place in chosen) == [0, 1, 2, 3, 4, 5]


def test_choice_equals_a_slow_reference_and_keeps_to_open_clips():
    features, _ = blobs([12, 9], 3)
    is_labeled = torch.zeros(21, dtype=torch.bool)
    is_labeled[[2, 15]] = True
    is_open = ~is_labeled
    is_open[[0, 20]] = False
    doubt = torch.rand(21, generator=torch.Generator().manual_seed(1))
    centered = features - features.mean(dim=0)

    def distance(a: int, b: int) -> float:
        return 1 - float(torch.cosine_similarity(centered[a], centered[b], dim=0))

    def worth(candidate: int) -> float:
        others = [i for i in range(21) if not is_labeled[i]]
        gains = (max(min(distance(i, 2), distance(i, 15)) - distance(i, candidate), 0) * doubt[i] for i in others)
        return float(doubt[candidate] * sum(gains))

    expected = max((i for i in range(21) if is_open[i]), key=worth)
    assert most_informative(features, is_labeled, is_open, doubt) == expected
    assert most_informative(features, is_labeled, torch.zeros(21, dtype=torch.bool), doubt) is None


def test_many_clips_are_compared_in_part(monkeypatch):
    monkeypatch.setattr("clipvid.app.choosing.MOST_CANDIDATES", 5)
    monkeypatch.setattr("clipvid.app.choosing.MOST_OTHERS", 7)
    features, _ = blobs([40], 0)
    none = torch.zeros(40, dtype=torch.bool)
    chosen = {most_informative(features, none, ~none, None, seed) for seed in range(20)}
    assert len(chosen) > 5
    assert most_informative(features, none, ~none, None, 3) == most_informative(features, none, ~none, None, 3)


def test_sure_clips_are_drawn_from_the_sure_half():
    doubt = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.0, 0.7])
    is_open = torch.tensor([True, True, True, True, False, True])
    drawn = {sure_clip(doubt, is_open, seed) for seed in range(30)}
    assert drawn == {1, 3}
    assert sure_clip(doubt, torch.zeros(6, dtype=torch.bool), 0) is None


def test_uncertainty_is_one_minus_the_margin():
    assert uncertainty(torch.tensor([[0.7, 0.1, 0.2], [0.4, 0.2, 0.4]])).tolist() == pytest.approx([0.5, 1.0])


# Head


def test_held_out_accuracy_of_labels_without_meaning_is_chance():
    features, _ = blobs([240], 5)
    labels = [NAMES[i % 2] for i in torch.randperm(240, generator=torch.Generator().manual_seed(6)).tolist()]
    head = train_head(features, labels, NAMES)
    accuracy = Accuracy.of(head.guesses, labels)
    assert accuracy.low < 0.5 < accuracy.high
    assert head.labels == ["a", "b"]
    assert Accuracy.of(head.answers(features), labels).value > accuracy.value


def test_too_few_labels_are_refused():
    features, _ = blobs([6], 0)
    for labels in (["a"] * 6, ["a", "a", "b"], ["a", "b", "c"]):
        with pytest.raises(clipvid.InputError, match="label two clips of two classes"):
            train_head(features[: len(labels)], labels, NAMES)
    assert train_head(features[:5], ["a", "b", "b", "a", "c"], NAMES).labels == NAMES


LORA = {"name": "lora", "rank": 4, "alpha": 8}
MODELS = {
    "text": {},
    "ila": {"adapter": "ila"},
    "prompts": {"head": {"name": "text", "prompt_layers": 1}},
    "class token": {"head": "class_token"},
    "linear": {"head": "linear"},
    "several labels": {"head": "linear", "multi_label": True},
    "mit": {"pooling": {"name": "mit", "layers": 1}},
    "lora": {"tune": ["head", LORA]},
    "lora in both towers": {"tune": [LORA | {"towers": ["image", "text"]}]},
    "coop": {"tune": ["coop"]},
    "text tower": {"tune": ["text"]},
    "last block": {"tune": ["partial", "head"]},
}


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_saved_model_with_a_new_head_gives_the_answers_of_the_head(make_model, tmp_path, fields):
    model = shake_adapters(make_model(labels=["x", "y", "z"], **fields))
    if "tune" in fields:
        shake(torch.nn.ParameterList(parameter for parameter in model.parameters() if parameter.requires_grad), 0.02)
        model.refresh_labels()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frames = random_frames(4)
    with torch.no_grad():
        features, logits = model.encode_video(frames), model(frames).logits
    head = train_head(features, ["a", "b", "a", "b"], NAMES)
    with_linear_head(model, head.weight, head.bias, head.labels).save_pretrained(tmp_path / "model")
    loaded = clipvid.from_pretrained(tmp_path / "model")
    assert (loaded.labels, loaded.config.parts.head.name, loaded.config.multi_label) == (["a", "b"], "linear", None)
    with torch.no_grad():
        expected = linear_head_inputs(features) @ head.weight.T + head.bias
        torch.testing.assert_close(loaded(frames).logits, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(frames).logits, logits, atol=0, rtol=0)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.labels == ["x", "y", "z"]


# Comparison


def test_comparison_counts_wins_and_tests_signs():
    labels = ["a"] * 10 + ["b"] * 10
    new, other = ["a"] * 20, ["b"] * 10 + ["a"] * 5 + ["b"] * 5
    result = Comparison.of(new, other, labels)
    assert (result.new.hits, result.other.hits, result.won, result.lost) == (10, 5, 10, 5)
    assert result.is_better
    assert result.may_be_chance  # 10 of 15: p is 0.15
    chance = sum(math.comb(15, won) for won in range(10, 16)) / 2**15
    assert chance == pytest.approx(0.15, abs=0.005)
    assert not Comparison.of(["a"] * 5, ["b"] * 5, ["a"] * 5).may_be_chance  # 5 of 5: p is 0.03
    assert not Comparison.of(new, new, labels).is_better
    assert not Comparison.of(other, new, labels).is_better


# List of labels


def test_labels_are_on_disk_after_every_change_and_read_as_training_data(tmp_path):
    (tmp_path / "more").mkdir()
    clips = ["b.mp4", 'more/it\'s a "clip", <script>.mp4', "a.mp4"]
    for clip in clips:
        (tmp_path / clip).write_bytes(b"video")
    path = tmp_path / "out" / "labels.csv"
    labels = LabelList(path)
    names = ['"quoted", <b>', "plain", "a b"]
    for number, (clip, name) in enumerate(zip(clips, names, strict=True), 1):
        labels.set(clip, name)
        assert len(LabelList(path)) == number
    labels.set("a.mp4", "plain")
    assert LabelList(path).copy() == labels.copy() == dict(zip(clips, ['"quoted", <b>', "plain", "plain"], strict=True))
    manifest = load_manifest(tmp_path, str(path), None)
    assert [(each.path, manifest.class_names[each.label]) for each in manifest.samples] == list(labels.copy().items())
    assert [file.name for file in path.parent.iterdir()] == ["labels.csv"]
    for clip in clips:
        labels.set(clip, None)
    assert not path.exists()


def test_failed_write_keeps_the_labels(tmp_path, monkeypatch):
    labels = LabelList(tmp_path / "labels.csv")
    labels.set("a.mp4", "x")

    def fail(*args) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("clipvid.app.label_list.write_text", fail)
        with pytest.raises(OSError, match="space"):
            labels.set("b.mp4", "y")
    assert labels.copy() == LabelList(labels.path).copy() == {"a.mp4": "x"}


def test_lists_that_would_lose_columns_are_refused(tmp_path):
    path = tmp_path / "labels.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "group"), ("a.mp4", "x", "1")])
    with pytest.raises(clipvid.InputError, match="'group'"):
        LabelList(path)
    path.write_text("path,label\na.mp4,12\n")
    with pytest.raises(clipvid.InputError, match="'12' is not a class name"):
        LabelList(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "not a class name"), (" - ", "not a class name"), ("7", "numbers as ids"), ("a\nb", "line ends"),
     ("\u202eabc", "control"), ("a" * 301, "301 letters")],
    ids=["empty", "dash", "number", "lines", "direction", "long"],
)  # fmt: skip
def test_class_names_that_no_list_can_have_are_refused(text, message):
    with pytest.raises(clipvid.InputError, match=message):
        check_class_name(text)
    assert check_class_name("  <b>ünïcode</b> {{x}} ") == "<b>ünïcode</b> {{x}}"
