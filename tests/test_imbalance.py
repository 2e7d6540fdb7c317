"""Rare classes: balanced order, weighted loss, precision and recall of each class, early stopping."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_training import arguments, parse, run, world  # noqa: F401

from clipvid import InputError
from clipvid.data.batches import TrainBatches
from clipvid.evaluation.metrics import class_figures
from clipvid.training.config import TrainingConfig
from clipvid.training.objectives import Classification, balanced_weights
from clipvid.training.state import TrainState

LABELS = [0] * 60 + [1] * 20 + [2] * 4


def epochs(count: int, **options) -> list[list[int]]:
    batches = TrainBatches(len(LABELS), 7, seed=3, balanced=LABELS, **options)
    return [[index for batch in batches for _, index in batch] for _ in range(count)]


def test_every_class_is_shown_equally_often() -> None:
    for shown in epochs(3):
        assert Counter(LABELS[index] for index in shown) == {0: 28, 1: 28, 2: 28}
        counts = Counter(shown)
        assert max(counts[index] for index in range(60)) == 1
        assert {counts[index] for index in range(80, 84)} == {7}


def test_every_video_of_a_frequent_class_is_shown_some_time() -> None:
    shown = {index for own in epochs(12) for index in own}
    assert shown == set(range(len(LABELS)))


def test_balanced_order_is_that_of_the_seed_on_any_number_of_processes() -> None:
    whole = TrainBatches(len(LABELS), 8, seed=1, balanced=LABELS)
    halves = [TrainBatches(len(LABELS), 4, seed=1, balanced=LABELS, world_size=2, rank=rank) for rank in (0, 1)]
    for batch, *parts in zip(whole, *halves, strict=True):
        assert batch == [key for part in parts for key in part]
    later = TrainBatches(len(LABELS), 8, seed=1, balanced=LABELS, step=4)
    again = TrainBatches(len(LABELS), 8, seed=1, balanced=LABELS)
    assert list(later) == list(again)[4:]


def test_weights_are_inverse_to_the_counts() -> None:
    weights = balanced_weights(LABELS, 4)
    assert weights == (84 / 180, 84 / 60, 84 / 12, 0.0)
    assert sum(weights[label] for label in LABELS) / len(LABELS) == pytest.approx(1)


def test_weighted_loss_equals_a_sum_over_videos() -> None:
    logits, labels, weights = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, 2, 2]), (0.5, 2.0, 1.0)
    objective = Classification(3, 0, class_weights=weights)

    output = SimpleNamespace(logits=logits, losses={})
    loss, _ = objective(lambda frames, **options: output, {"frames": torch.zeros(6), "label": labels}, 0)
    each = F.cross_entropy(logits, labels, reduction="none")
    expected = sum(weights[label] * error for label, error in zip(labels.tolist(), each, strict=True)) / 6
    torch.testing.assert_close(loss, expected)


def test_precision_and_recall_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.3, 0.7, 0], [0.6, 0.4, 0], [0.0, 0.0, 0.0]])
    figures = class_figures(scores, torch.tensor([0, 0, 1, 1, 1]))
    assert figures[0] == {"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "videos": 2}
    assert figures[1] == {"precision": 1.0, "recall": 1 / 3, "f1": 0.5, "videos": 3}  # the last video is unreadable
    assert figures[2] == {"precision": None, "recall": None, "f1": None, "videos": 0}


def test_early_stopping_needs_the_best_weights() -> None:
    with pytest.raises(InputError, match=r"early_stopping=2 needs training\.load_best_model_at_end"):
        TrainingConfig(early_stopping=2)


def test_evaluations_after_the_best_one_are_counted() -> None:
    history = [{"epoch": epoch, "val_top1": 0.5} for epoch in range(4)] + [{"epoch": 4, "loss": 1.0}]
    assert TrainState(history=history, best={"epoch": 1, "value": 0.5}).evaluations_since_best("val_top1") == 2
    assert TrainState(history=history).evaluations_since_best("val_top1") == 0


def test_a_run_that_gets_no_better_ends(world, tmp_path, capsys) -> None:  # noqa: F811
    more = ["--training.epochs=30", "--training.load_best_model_at_end=true", "--training.early_stopping=2"]
    figures = run(parse(world, tmp_path, *more, "--optim.lr=0"), tmp_path)
    history = json.loads((tmp_path / "history.json").read_text())
    assert [entry["epoch"] for entry in history if "val_top1" in entry] == [0, 1, 2]
    assert figures["selected"]["epoch"] == 0
    assert (
        "training ends after epoch 3 of 30: 2 evaluations were not better than that of epoch 1"
        in capsys.readouterr().out
    )


def test_options_of_rare_classes_train_and_are_recorded(world, tmp_path) -> None:  # noqa: F811
    run(parse(world, tmp_path, "--data.balance=true", "--training.class_weights=balanced"), tmp_path)
    config = json.loads((tmp_path / "metrics.json").read_text())["config"]
    assert (config["data"]["balance"], config["training"]["class_weights"]) == (True, "balanced")
