"""Outcome of a fine-tuning in a few plain sentences: what was reached, against what, and what to do next."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from clipvid.data.manifest import Manifest
from clipvid.evaluation.loop import Predictions
from clipvid.evaluation.metrics import answered
from clipvid.evaluation.several_labels import class_precisions
from clipvid.experiments.selection import ADAPTERS, NONE, name_without
from clipvid.files import printable

_LEARNED, _NOT_LEARNED = 0.3, 0.7  # of the loss of a guess
_GOOD = 0.95


def describe_outcome(
    figures: Mapping[str, Any], predictions: Predictions, tested: Manifest, history: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return the sentences.

    Args:
        figures: Content of `metrics.json`.
        predictions: Of the evaluated videos.
        tested: The evaluated videos.
        history: Log of the training.
    """
    if tested.is_multi_label:
        return _describe_several_labels(figures, predictions, tested, history)
    top1 = figures["top1"]
    sentences = [
        f"On {top1['count']} videos that it was not trained on, the model is right in {top1['value']:.0%} "
        f"(95% interval {top1['low']:.0%} to {top1['high']:.0%}).",
        _baselines(figures, tested),
    ]
    others = (_most_frequent_mistake(predictions, tested.class_names), _limit(figures, tested, history))
    return sentences + [sentence for sentence in others if sentence is not None]


def _describe_several_labels(
    figures: Mapping[str, Any], predictions: Predictions, tested: Manifest, history: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return the sentences for several labels per video."""
    own, names = figures["map"], tested.class_names
    shares = predictions.labels.double().mean(dim=0)
    present = shares[shares > 0]
    precisions = class_precisions(predictions.scores, predictions.labels)
    hardest, value = min(((k, own) for k, own in enumerate(precisions) if own is not None), key=lambda item: item[1])
    sentences = [
        f"On {own['count']} videos that it was not trained on, the mean average precision (mAP) over the classes is "
        f"{own['value']:.0%} (95% interval {own['low']:.0%} to {own['high']:.0%}).",
        _with_selection(f"Videos in random order would have about {float(present.mean()):.0%}", figures),
        f"The hardest class is {printable(names[hardest])!r}, with an average precision of {value:.0%}.",
    ]
    if figures["config"]["training"]["class_weights"] != "none" or own["value"] >= _GOOD:
        return sentences  # a weighted loss cannot be compared with that of a guess
    losses = [entry["binary_cross_entropy"] for entry in history if "binary_cross_entropy" in entry]
    guess = float(torch.special.entr(torch.stack([shares, 1 - shares])).sum(dim=0).mean())
    return sentences + ([_progress(losses[-1], guess)] if losses and guess > 0 else [])


def _baselines(figures: Mapping[str, Any], tested: Manifest) -> str:
    """Return the figures of simpler answers."""
    counts = Counter(sample.label for sample in tested.samples)
    share = max(counts.values()) / len(tested)
    return _with_selection(f"The most frequent class alone would be right in {share:.0%}", figures)


def _with_selection(text: str, figures: Mapping[str, Any]) -> str:
    """Return a sentence, followed by the outcome of the cross-validation if there was one."""
    selection = figures.get("selection")
    if not selection:
        return f"{text}."
    chosen, other = (ADAPTERS, NONE) if selection["chosen"] == ADAPTERS else (NONE, ADAPTERS)
    names = {ADAPTERS: f"with {selection['adapter']}", NONE: f"with {name_without(selection)}"}
    return (
        f"{text}. In cross-validation on the training videos it was {selection[chosen]['value']:.0%} {names[chosen]}, "
        f"the chosen way, and {selection[other]['value']:.0%} {names[other]}."
    )


def _most_frequent_mistake(predictions: Predictions, names: Sequence[str]) -> str | None:
    """Return the pair of classes that is confused most often, or None without mistakes."""
    readable = answered(predictions.scores)
    labels, answers = predictions.labels[readable].tolist(), predictions.scores[readable].argmax(dim=1).tolist()
    mistakes = Counter(pair for pair in zip(labels, answers, strict=True) if pair[0] != pair[1])
    if not mistakes:
        return None
    (label, answer), count = min(mistakes.items(), key=lambda item: (-item[1], item[0]))
    right, wrong = (printable(names[number]) for number in (label, answer))
    return f"Its most frequent mistake: {count} of {labels.count(label)} videos of {right!r} are taken for {wrong!r}."


def _limit(figures: Mapping[str, Any], tested: Manifest, history: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what limits the accuracy, as far as the loss in training tells."""
    losses = [entry["cross_entropy"] for entry in history if "cross_entropy" in entry]
    if not losses or figures["top1"]["value"] >= _GOOD or len(tested.classes) < 2:
        return None
    return _progress(losses[-1], math.log(len(tested.classes)))


def _progress(last: float, guess: float) -> str:
    """Return what limits the accuracy, from the last loss in training and that of a guess."""
    if last <= _LEARNED * guess:
        return (
            f"The training videos are learned (loss {last:.2f}; a guess has {guess:.2f}). More training videos, above "
            "all of the confused classes, will help more than more epochs."
        )
    if last >= _NOT_LEARNED * guess:
        return (
            f"The training videos are not learned yet (loss {last:.2f}; a guess has {guess:.2f}). Raise "
            "training.epochs or optim.lr, or train more of the model (model.tune)."
        )
    return (
        f"The training videos are learned in part (loss {last:.2f}; a guess has {guess:.2f}). Try more training.epochs "
        "first, then more videos."
    )
