"""Metrics against scikit-learn and explicit formulas."""

import math
import statistics

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.calibration import calibration_curve as reference_curve
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss, recall_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from clipvid.evaluation.metrics import (
    MOST_CONFUSED,
    attribute_accuracy,
    bootstrap_intervals,
    calibration_curve,
    class_accuracy,
    classification_metrics,
    harmonic_mean,
    mean_and_spread,
    pair_accuracy,
    proportion,
    top_k,
)


@pytest.fixture
def scored() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (200,), generator=generator)
    logits = torch.randn(200, 7, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, 7)
    return logits.softmax(dim=1).double(), labels


def test_classification_metrics_agree_with_scikit_learn(scored) -> None:
    scores, labels = scored
    figures = classification_metrics(scores, labels)
    assert figures["top1"]["value"] == pytest.approx(top_k_accuracy_score(labels, scores, k=1))
    assert figures["top5"]["value"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert figures["mean_class"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert figures["nll"] == pytest.approx(log_loss(labels, scores))
    assert figures["confusion"] == confusion_matrix(labels, scores.argmax(1)).tolist()


def test_calibration_error_is_the_weighted_gap_per_bin(scored) -> None:
    scores, labels = scored
    confidence, guess = scores.max(dim=1)
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            gap = (guess[inside] == labels[inside]).double().mean() - confidence[inside].mean()
            expected += float(inside.double().mean() * gap.abs())
    assert classification_metrics(scores, labels)["ece"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("hits", "total"), [(0, 5), (5, 5), (7, 30), (54, 60)])
def test_intervals_are_wilson_s(hits: int, total: int) -> None:
    z, share = 1.959963984540054, hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    figure = proportion(hits, total)
    assert (figure["value"], figure["count"]) == (share, total)
    assert figure["low"] == pytest.approx(middle - half, abs=1e-9)
    assert figure["high"] == pytest.approx(middle + half, abs=1e-9)


def test_pairs_compare_a_class_with_its_partner_only() -> None:
    scores = torch.tensor([[0.3, 0.1, 0.6], [0.4, 0.3, 0.3], [0.2, 0.2, 0.6], [0.5, 0.5, 0.0]])
    labels = torch.tensor([0, 1, 2, 0])
    figure = pair_accuracy(scores, labels, [1, 0, -1])
    assert (figure["value"], figure["count"]) == (1 / 3, 3)


def test_attributes_add_up_the_scores_of_their_classes() -> None:
    scores = torch.tensor([[0.3, 0.3, 0.4, 0.0], [0.1, 0.2, 0.3, 0.4]])
    figure = attribute_accuracy(scores, torch.tensor([0, 1]), ["ball", "ball", "box", "box"])
    assert figure["value"] == 0.5


def test_few_classes_one_class_and_none() -> None:
    assert top_k(torch.ones(3, 2), torch.tensor([0, 1, 1]), 5)["value"] == 1.0
    assert classification_metrics(torch.ones(3, 1), torch.zeros(3, dtype=torch.long))["top1"]["value"] == 1.0
    with pytest.raises(ValueError, match="empty"):
        proportion(0, 0)


def test_nan_scores_are_refused() -> None:
    scores = torch.tensor([[0.5, 0.5], [float("nan"), 0.5]])
    with pytest.raises(ValueError, match=r"\[1\]"):
        classification_metrics(scores, torch.tensor([0, 1]))


def test_unreadable_video_counts_as_wrong() -> None:
    labels = torch.tensor([0, 1, 0])
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.0, 0.0]])
    figures = classification_metrics(scores, labels)
    read = classification_metrics(scores[:2], labels[:2])
    assert (figures["unreadable"], read["unreadable"]) == (1, 0)
    assert figures["top1"]["value"] == figures["top5"]["value"] == pytest.approx(2 / 3)
    assert figures["mean_class"] == 0.75
    assert pair_accuracy(scores, labels, [1, 0])["value"] == pytest.approx(2 / 3)
    assert attribute_accuracy(scores, labels, ["ball", "box"])["value"] == pytest.approx(2 / 3)
    assert {key: figures[key] for key in ("nll", "ece", "confusion")} == {
        key: read[key] for key in ("nll", "ece", "confusion")
    }
    nothing = classification_metrics(torch.zeros(3, 2), labels)
    assert (nothing["top1"]["value"], nothing["nll"], nothing["ece"], nothing["mean_class"]) == (0.0, None, None, 0.0)


def test_full_confidence_is_in_the_last_bin() -> None:
    sure, nearly = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.94, 0.06]])
    scores = torch.cat([sure.expand(50, 2), nearly.expand(50, 2)])
    labels = torch.tensor([0] * 40 + [1] * 10 + [0] * 50)
    curve, actual = calibration_curve(scores, labels), classification_metrics(scores, labels)["ece"]
    assert curve["count"] == [100]
    assert actual == pytest.approx(abs(curve["accuracy"][0] - curve["confidence"][0])) == pytest.approx(0.07)


def test_calibration_agrees_with_scikit_learn_and_torchmetrics(scored) -> None:
    scores, labels = scored
    curve = calibration_curve(scores, labels)
    confidence, guess = scores.max(dim=1)
    accuracy, mean_confidence = reference_curve(guess == labels, confidence, n_bins=15)
    assert curve["accuracy"] == pytest.approx(accuracy.tolist())
    assert curve["confidence"] == pytest.approx(mean_confidence.tolist())
    assert sum(curve["count"]) == len(labels)
    gaps = [c * abs(a - b) for c, a, b in zip(curve["count"], curve["accuracy"], curve["confidence"], strict=True)]
    expected = multiclass_calibration_error(scores, labels, 7, n_bins=15)
    assert sum(gaps) / len(labels) == pytest.approx(float(expected), abs=1e-6)


def test_class_accuracy_equals_scikit_learn_recall(scored) -> None:
    scores, labels = scored
    assert class_accuracy(scores, labels) == pytest.approx(recall_score(labels, scores.argmax(1), average=None))
    few = labels < 6
    assert class_accuracy(scores[few], labels[few])[6] is None


def test_bootstrap_intervals_are_reproducible(scored) -> None:
    scores, labels = scored
    actual = bootstrap_intervals(scores, labels)
    losses = -scores.gather(1, labels[:, None]).log()[:, 0]
    half = norm.ppf(0.975) * float(losses.std()) / math.sqrt(len(losses))
    low, high = actual["nll"]
    assert low == pytest.approx(float(losses.mean()) - half, abs=0.15 * half)
    assert high == pytest.approx(float(losses.mean()) + half, abs=0.15 * half)
    figures = classification_metrics(scores, labels)
    assert actual["mean_class"][0] < figures["mean_class"] < actual["mean_class"][1]
    assert actual == bootstrap_intervals(scores, labels)
    assert bootstrap_intervals(scores[:1], labels[:1]) == {}


def test_bootstrap_intervals_equal_slow_reference(scored) -> None:
    scores, labels = (each[:40].clone() for each in scored)
    scores[[3, 17]] = 0  # unreadable videos
    rng, drawn = np.random.default_rng(0), []
    for _ in range(100):
        rows = torch.from_numpy(rng.integers(40, size=40))
        figures = classification_metrics(scores[rows], labels[rows])
        drawn.append([figures[name] for name in ("mean_class", "nll", "ece")])
    expected = np.nanpercentile(drawn, (2.5, 97.5), axis=0).T
    actual = bootstrap_intervals(scores, labels, resamples=100)
    assert np.array(list(actual.values())) == pytest.approx(expected, rel=1e-6)


def test_a_thousand_classes() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(1000, (300,), generator=generator)
    logits = torch.randn(300, 1000, generator=generator) + 4 * torch.nn.functional.one_hot(labels, 1000)
    scores = logits.softmax(dim=1)
    figures = classification_metrics(scores, labels)
    assert figures["top1"]["value"] == pytest.approx(float(multiclass_accuracy(scores, labels, 1000, "micro")))
    top5 = multiclass_accuracy(scores, labels, 1000, "micro", top_k=5)
    assert figures["top5"]["value"] == pytest.approx(float(top5))
    assert figures["mean_class"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert figures["nll"] == pytest.approx(log_loss(labels, scores.double(), labels=range(1000)), rel=1e-4)


def test_means_over_seeds_and_harmonic_mean() -> None:
    values = [0.25, 0.5, 0.75]
    actual = mean_and_spread(values)
    assert actual["mean"] == pytest.approx(statistics.mean(values))
    assert actual["std"] == pytest.approx(statistics.stdev(values))
    assert mean_and_spread([0.5])["std"] is None
    assert harmonic_mean(0.8, 0.4) == pytest.approx(statistics.harmonic_mean([0.8, 0.4]))
    assert harmonic_mean(0.0, 0.4) == 0.0


def test_confusion_of_many_classes_is_omitted():
    classes = MOST_CONFUSED + 1
    labels = torch.tensor([0, classes - 1, 5])
    scores = torch.nn.functional.one_hot(torch.tensor([0, classes - 1, 6]), classes).float()
    figures = classification_metrics(scores, labels)
    assert "confusion" not in figures
    assert figures["top1"]["value"] == pytest.approx(2 / 3)
    assert "confusion" in classification_metrics(scores[:, :7], labels.clamp(max=6))
