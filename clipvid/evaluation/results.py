"""Scores of an evaluation by group and condition, their figures, and `predictions.parquet`.

Shapes: V videos, C views, K classes.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from clipvid import InputError
from clipvid.data.lists.samples import Sample
from clipvid.data.manifest import ClassInfo, Manifest
from clipvid.evaluation.conditions import FORWARD, Condition
from clipvid.evaluation.loop import Average, Predictions, ViewScores
from clipvid.evaluation.metrics import proportion, top1_hits, top_k
from clipvid.evaluation.summary import main_figure, summarize, summarize_thoroughly
from clipvid.files import replacing

MOST_CLASSES = 100  # limit for confusion matrices in metrics.json
PREDICTIONS = "predictions.parquet"
_UNITS = b"clipvid"


@dataclass(frozen=True)
class ConditionScores:
    """Scores of one model on one manifest under one condition.

    Attributes:
        key: Hash of everything that the scores depend on.
        scores: Scores with indices into `manifest`.
        places: Index of each video of `manifest` in the manifest of the whole group, or None if that is `manifest`.
        ranks_only: See `ViewScores.averaged`.
    """

    group: str
    condition: Condition
    key: str
    manifest: Manifest
    scores: ViewScores
    places: tuple[int, ...] | None = None
    ranks_only: bool = False

    @property
    def group_places(self) -> Tensor:
        """Index of each video of `manifest` in the manifest of the whole group: int64 [V]."""
        return torch.arange(len(self.manifest)) if self.places is None else torch.tensor(self.places)


def write_predictions(path: Path, condition_scores: Sequence[ConditionScores], average: Average) -> None:
    """Write a row per video and condition.

    The columns are group, condition, index, path, label, class, readable, scores [K] and view_logits [C][K].
    """
    units = [{"group": each.group, "condition": str(each.condition), "key": each.key} for each in condition_scores]
    tables = [_table(each, average) for each in condition_scores]
    schema = tables[0].schema.with_metadata({_UNITS: json.dumps(units).encode()})
    with replacing(path) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(len(table), 1))


def read_predictions(path: Path) -> dict[str, ViewScores]:
    """Read the scores of each key in a file of `write_predictions`, or an empty dict if missing or damaged."""
    try:
        file = pq.ParquetFile(path)
        units = json.loads(file.schema_arrow.metadata[_UNITS])
        return {unit["key"]: _scores(file.read_row_group(number)) for number, unit in enumerate(units)}
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return {}


def read_conditions(path: Path) -> dict[str, Predictions]:
    """Read the predictions of each condition in a file of `write_predictions` with one group."""
    table = pq.read_table(path, columns=["condition", "index", "label", "scores"])
    predictions = {}
    for condition in table["condition"].unique().to_pylist():
        own = table.filter(pc.equal(table["condition"], condition)).sort_by("index")
        columns = (own[name].to_pylist() for name in ("index", "label", "scores"))
        predictions[condition] = Predictions(*map(torch.tensor, columns))
    return predictions


def _table(part: ConditionScores, average: Average) -> pa.Table:
    scores, manifest = part.scores, part.manifest
    samples = [manifest.samples[index] for index in scores.indices.tolist()]
    count, views, classes = scores.logits.shape
    return pa.table(
        {
            "group": pa.array([part.group] * count, pa.string()),
            "condition": pa.array([str(part.condition)] * count, pa.string()),
            "index": part.group_places[scores.indices].numpy(),
            "path": pa.array([sample.path for sample in samples], pa.string()),
            "label": scores.labels.numpy()
            if scores.labels.ndim == 1
            else _lists(scores.labels.flatten(), count, classes),
            "class": pa.array([manifest.label_text(sample) for sample in samples], pa.string()),
            "readable": scores.readable.numpy(),
            "scores": _lists(scores.averaged(average, part.ranks_only).scores.flatten(), count, classes),
            "view_logits": pa.ListArray.from_arrays(
                _offsets(count, views), _lists(scores.logits.flatten(), count * views, classes)
            ),
        }
    )


def _lists(values: Tensor, count: int, length: int) -> pa.ListArray:
    return pa.ListArray.from_arrays(_offsets(count, length), pa.array(values.numpy()))


def _offsets(count: int, length: int) -> pa.Array:
    return pa.array(np.arange(count + 1, dtype=np.int32) * length)


def _scores(table: pa.Table) -> ViewScores:
    def column(name: str) -> Tensor:
        return torch.from_numpy(table[name].to_numpy().copy())

    flat = table["view_logits"].combine_chunks().flatten().flatten().to_numpy()
    classes = len(table["scores"][0])
    logits = torch.from_numpy(flat.copy()).view(len(table), -1, classes)
    if pa.types.is_list(table["label"].type):
        flat_labels = table["label"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        labels = torch.from_numpy(flat_labels.copy()).view(len(table), classes)
    else:
        labels = column("label")
    # The file has indices into the whole group. A unit has every video of its manifest, in order.
    return ViewScores(torch.arange(len(table)), labels, column("readable"), logits)


@dataclass(frozen=True)
class Group:
    """Scores of all parts of a group, by condition. A condition may lack the videos of some parts.

    `ranks_only` has the conditions of `ConditionScores.ranks_only`.
    """

    name: str
    manifest: Manifest
    conditions: dict[Condition, ViewScores]
    ranks_only: frozenset[Condition] = frozenset()

    @classmethod
    def of(cls, name: str, condition_scores: Sequence[ConditionScores]) -> Group:
        """Join the scores of one group. The videos are in the order of the manifest of the whole group."""
        by_condition: dict[Condition, list[ConditionScores]] = {}
        for each in condition_scores:
            by_condition.setdefault(each.condition, []).append(each)
        samples: dict[int, Sample] = {}
        for each in condition_scores:
            samples |= dict(zip(each.group_places.tolist(), each.manifest.samples, strict=True))
        places = sorted(samples)
        first = condition_scores[0].manifest
        manifest = Manifest(tuple(samples[place] for place in places), first.classes, first.root)
        order = torch.tensor(places)
        scores = {condition: _renumbered(parts, order) for condition, parts in by_condition.items()}
        return cls(name, manifest, scores, frozenset(each.condition for each in condition_scores if each.ranks_only))

    def predictions(self, condition: Condition, average: Average) -> Predictions:
        """Return one prediction per video."""
        return self.conditions[condition].averaged(average, condition in self.ranks_only)

    def unreadable(self) -> list[str]:
        """Return the paths of the videos that could not be read."""
        forward = self.conditions[FORWARD]
        return [self.manifest.samples[index].path for index in forward.indices[~forward.readable].tolist()]


def _renumbered(parts: Sequence[ConditionScores], places: Tensor) -> ViewScores:
    """Join scores, with indices into the videos at `places`, int64 [V] ascending, of the whole group."""
    moved = [part.scores._replace(indices=part.group_places[part.scores.indices]) for part in parts]
    joined = ViewScores.joined(moved)
    return joined._replace(indices=torch.searchsorted(places, joined.indices))


def group_figures(group: Group, average: Average, trained_on: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a group, see `summarize_thoroughly`.

    Optional entries are `zero_shot` (in the same form), `controls` by name (`summarize`) and `by_view` (top-1 or mAP of
    each view alone). `sweep` is top-1 by alpha, and `overlap` is about the classes of the model's training.

    Raises:
        InputError: Scores have NaN or infinity. The message names the videos.
    """
    classes = group.manifest.classes
    for condition, scores in group.conditions.items():
        _check_finite(group, condition, scores)
    forward = group.predictions(FORWARD, average)
    ranks_only = FORWARD in group.ranks_only
    figures = summarize_thoroughly(forward, classes, ranks_only)
    if group.conditions[FORWARD].logits.shape[1] > 1:
        views = group.conditions[FORWARD].views(ranks_only)
        figures["by_view"] = [main_figure(summarize(view, classes, ranks_only))[1] for view in views]
    for condition in group.conditions:
        predictions = group.predictions(condition, average)
        if condition.zero_shot:
            figures["zero_shot"] = summarize_thoroughly(predictions, classes, condition in group.ranks_only)
        elif condition.alpha is not None:
            top1 = top_k(predictions.scores, predictions.labels, 1)
            figures.setdefault("sweep", []).append({"alpha": condition.alpha, "top1": top1})
        elif condition.control is not None:
            figures.setdefault("controls", {})[condition.control] = summarize(predictions, classes, ranks_only)
    return figures | _overlap(forward, classes, trained_on)


def _overlap(forward: Predictions, classes: Sequence[ClassInfo], trained_on: Sequence[str]) -> dict[str, Any]:
    """Return `overlap`: classes of the training, and top-1 on the videos of the other classes.

    Empty for a model trained on exactly these classes, or on none.
    """
    names = [info.name for info in classes]
    shared = overlap(trained_on, names)
    if not trained_on or len(shared) == len(names) == len(trained_on):
        return {}
    counts = {"trained_on": len(trained_on), "asked": len(names), "shared": shared}
    if forward.labels.ndim == 2:
        return {"overlap": counts}
    unseen = torch.tensor([name not in shared for name in names])[forward.labels]
    hits = int((top1_hits(forward.scores, forward.labels) & unseen).sum())
    return {"overlap": counts | ({"unseen_top1": proportion(hits, int(unseen.sum()))} if unseen.any() else {})}


def _check_finite(group: Group, condition: Condition, scores: ViewScores) -> None:
    broken = ~torch.isfinite(scores.logits).flatten(1).all(dim=1) & scores.readable
    if broken.any():
        paths = [group.manifest.samples[index].path for index in scores.indices[broken].tolist()]
        raise InputError(
            f"the model's scores ({condition}) have NaN or infinity for {len(paths)} of {len(scores.indices)} videos, "
            f"such as {paths[:3]}: its weights are damaged, or mixed_precision overflows (try `no` or `bf16`)"
        )


def metrics_record(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the content of metrics.json: the figures of a single group at the top level, without large confusions."""
    groups = {name: _without_large(figures) for name, figures in metrics["groups"].items()}
    others = {name: value for name, value in metrics.items() if name != "groups"}
    return (next(iter(groups.values())) if len(groups) == 1 else {"groups": groups}) | others


def _without_large(figures: dict[str, Any]) -> dict[str, Any]:
    if len(figures["by_class"]) <= MOST_CLASSES:
        return figures
    kept = _without_confusion(figures)
    if "zero_shot" in kept:
        kept["zero_shot"] = _without_confusion(kept["zero_shot"])
    if "controls" in kept:
        kept["controls"] = {name: _without_confusion(own) for name, own in kept["controls"].items()}
    return kept


def _without_confusion(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures without their matrix, at the top level only, since names of classes are keys below."""
    return {name: own for name, own in figures.items() if name != "confusion"}


def overlap(trained_on: Sequence[str], asked: Sequence[str]) -> list[str]:
    """Return names of `asked` that a model was trained on, ignoring case, spaces, underscores and CamelCase."""
    trained = {_plain(name) for name in trained_on}
    return [name for name in asked if _plain(name) in trained]


def _plain(name: str) -> str:
    """Return the letters with their marks, digits and symbols, without spaces, dashes and other punctuation."""
    return "".join(sign for sign in name.lower() if unicodedata.category(sign)[0] in "LMNS")
