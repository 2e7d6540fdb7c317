"""Need of motion: verdict, pairs that differ in order, intervals and curves, on features whose content is set."""

from __future__ import annotations

import pytest
import torch

from clipvid.inspection.motion import MotionResult, Resamples, measure_motion
from clipvid.inspection.motion_report import advise, pair_sentences, verdict
from clipvid.inspection.signatures import ClipFacts
from clipvid.inspection.tasks import ProbeTask
from clipvid.inspection.time import BAG, ORDERED, REVERSED, SINGLE, cosines, other_order

FACTS = [ClipFacts(24, 8.0, 3.0, False, 64, 64, (0.0, 0.0, 0.0, 0.0), 5.0, 100.0)]


def synthetic_task(kind: str, per_class: int = 20, noise: float = 0.3) -> ProbeTask:
    """Return clips of three classes. The first two differ in `kind`: `order`, `frames`, `one frame` or nothing."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(per_class)
    features = noise * torch.randn(3 * per_class, 8, 16, generator=rng)
    first, second = labels == 0, labels == 1
    features[labels == 2, :, 0] += 2.0 * (kind != "unclear")
    if kind == "order":
        trend = torch.linspace(-1, 1, 8)
        features[first, :, 1] += trend
        features[second, :, 1] -= trend
    elif kind == "frames":  # seen in all frames but the one that a single-frame probe looks at
        features[first, :4, 1] += 2.0
        features[first, 5:, 1] += 2.0
    elif kind == "one frame":
        features[first, :, 1] += 2.0
    groups = torch.arange(3 * per_class) // 2
    return ProbeTask(list(range(3 * per_class)), features, labels, groups % 5, groups, 3, "group")


@pytest.mark.parametrize("kind", ["order", "frames", "one frame", "unclear"])
def test_verdict_names_what_the_classes_need(kind: str) -> None:
    task = synthetic_task(kind)
    result = measure_motion(task, seed=0)
    assert result.need == kind
    phrase = {
        "order": "needs the order", "frames": "but not their order", "one frame": "does not need motion",
        "unclear": "cannot say",
    }  # fmt: skip
    assert phrase[kind] in verdict(result)
    advice = " ".join(advise(result, FACTS))
    assert ("adapter, such as" in advice) == (kind == "order")
    assert ("Mean pooling may be enough" in advice) == (kind in ("frames", "one frame"))


def test_pair_that_differs_in_order_is_named_and_no_other() -> None:
    result = measure_motion(synthetic_task("order"), seed=0)
    assert [(pair.first, pair.second) for pair in result.pairs] == [(0, 1)]
    assert pair_sentences(result, ["open", "close", "wait"])[0].startswith("'open' and 'close' differ only in order")
    assert result.accuracy[f"{ORDERED}, {REVERSED}"].value < result.accuracy[BAG].value + 0.05
    assert result.classes[ORDERED][2] == 1.0
    assert measure_motion(synthetic_task("one frame"), seed=0).pairs == []


def test_reversal_changes_the_sign_of_odd_cosines() -> None:
    features = torch.randn(5, 8, 6, generator=torch.Generator().manual_seed(0))
    forward, backward = cosines(features, 4), cosines(other_order(features, REVERSED), 4)
    torch.testing.assert_close(backward, forward * torch.tensor([1.0, -1.0, 1.0, -1.0])[None, :, None])
    torch.testing.assert_close(forward[:, 0], features.mean(dim=1))


def test_intervals_resample_groups() -> None:
    values = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    whole = Resamples(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 0).share(values)
    single = Resamples(torch.arange(8), 0).share(values)
    assert (whole.value, whole.low, whole.high) == (0.5, 0.0, 1.0)
    assert 0.0 < single.low < 0.5 < single.high < 1.0


def test_learning_curve_ends_at_the_accuracy_of_all_clips() -> None:
    result: MotionResult = measure_motion(synthetic_task("order"), seed=0)
    assert result.clips[1.0] == result.accuracy[ORDERED]
    assert list(result.frames) == [1, 2, 4, 8]
    assert result.frames[8].value == result.accuracy[ORDERED].value
    assert result.frames[1].value <= result.accuracy[SINGLE].value + 0.1
