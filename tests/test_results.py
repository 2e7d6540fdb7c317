"""Pooled scores of several parts, their file, and ambiguous names."""

import json
import os
import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from clipvid.data.lists.samples import Sample
from clipvid.data.manifest import ClassInfo, Manifest
from clipvid.evaluation.clips import best_answers
from clipvid.evaluation.conditions import FORWARD, ZERO_SHOT, Condition
from clipvid.evaluation.loop import ViewScores
from clipvid.evaluation.results import (
    ConditionScores,
    Group,
    group_figures,
    metrics_record,
    read_conditions,
    read_predictions,
    write_predictions,
)
from clipvid.files import printable, write_json
from clipvid.inference.predictor import Timeline
from clipvid.inference.timeline import timeline_stem, write_timeline
from clipvid.inference.video_names import STDIN

WHOLE = Manifest(
    tuple(Sample(f"{i}.mp4", i % 2) for i in range(6)), (ClassInfo(0, "a", {}), ClassInfo(1, "b", {})), Path(".")
)
FOLDS = [(1, 4), (0, 5), (2, 3)]


def fold(places: tuple[int, ...], condition: Condition) -> ConditionScores:
    """Return scores of a fold whose logits identify the video: the first is its place in the whole group."""
    manifest = WHOLE.subset(list(places))
    labels = torch.tensor([sample.label for sample in manifest.samples])
    logits = torch.tensor([[[float(place), 0.0]] for place in places])
    scores = ViewScores(torch.arange(len(places)), labels, torch.ones(len(places), dtype=torch.bool), logits)
    return ConditionScores("all", condition, f"{condition} {places}", manifest, scores, places)


def answers(lacking: int | None) -> list[ConditionScores]:
    conditions = [(FORWARD, ZERO_SHOT) if number != lacking else (FORWARD,) for number in range(len(FOLDS))]
    return [fold(places, each) for places, names in zip(FOLDS, conditions, strict=True) for each in names]


@pytest.mark.parametrize("lacking", [None, 0, 1, 2])
def test_scores_match_videos_with_missing_condition(lacking):
    group = Group.of("all", answers(lacking))
    assert [sample.path for sample in group.manifest.samples] == [sample.path for sample in WHOLE.samples]
    for condition, scores in group.conditions.items():
        missing = FOLDS[lacking] if lacking is not None and condition == ZERO_SHOT else ()
        assert scores.indices.tolist() == [place for place in range(6) if place not in missing]
        assert scores.logits[:, 0, 0].tolist() == scores.indices.tolist()
    for index in range(6):
        missing = lacking is not None and index in FOLDS[lacking]
        assert bool(best_answers(group.predictions(ZERO_SHOT, "probabilities"), ["a", "b"], index)) != missing


def test_predictions_file_has_group_indices(tmp_path):
    path = tmp_path / "predictions.parquet"
    written = answers(None)
    write_predictions(path, written, "probabilities")
    for condition in ("forward", "zero-shot"):
        rows = [row for row in pq.read_table(path).to_pylist() if row["condition"] == condition]
        assert sorted(row["index"] for row in rows) == list(range(6))
        assert all(WHOLE.samples[row["index"]].path == row["path"] for row in rows)
    read = read_predictions(path)
    for each in written:
        for left, right in zip(read[each.key], each.scores, strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("condition", "name"),
    [
        (FORWARD, "forward"),
        (ZERO_SHOT, "zero-shot"),
        (Condition("reversed"), "reversed"),
        (Condition("bag"), "bag"),
        (Condition(alpha=0.0), "alpha=0"),
        (Condition(alpha=1 / 3), "alpha=0.333333"),
    ],
)
def test_conditions_are_typed_in_figures(tmp_path, condition, name):
    parts = [fold((0, 1, 2, 3, 4, 5), each) for each in dict.fromkeys((FORWARD, condition))]
    write_predictions(tmp_path / "a.parquet", parts, "probabilities")
    group = Group.of("all", parts)
    read = read_conditions(tmp_path / "a.parquet")
    assert list(read) == list(dict.fromkeys(("forward", name)))
    for column, expected in zip(read[name], group.predictions(condition, "probabilities"), strict=True):
        assert torch.equal(column, expected)
    figures = group_figures(group, "probabilities", [])
    assert ("zero_shot" in figures) == condition.zero_shot
    assert list(figures.get("controls", {})) == ([condition.control] if condition.control else [])
    assert [point["alpha"] for point in figures.get("sweep", [])] == (
        [] if condition.alpha is None else [condition.alpha]
    )


@pytest.mark.parametrize("name", ["confusion", "by_class", "zero_shot", "controls"])
def test_class_with_the_name_of_a_figure_keeps_its_accuracy(name):
    by_class = {name: 0.5} | {f"class {i}": 1.0 for i in range(200)}
    own = {"confusion": [[1]], "by_class": by_class}
    figures = own | {"zero_shot": own, "controls": {"reversed": own}}
    record = metrics_record({"groups": {"all": figures}})
    for kept in (record, record["zero_shot"], record["controls"]["reversed"]):
        assert kept["by_class"] == by_class
        assert "confusion" not in kept


@pytest.mark.parametrize("name", ["naïve", "打球", "🏀", "\N{RIGHT-TO-LEFT MARK}x", os.fsdecode(b"\xff.mp4")])
def test_json_keeps_letters_and_every_file_name(tmp_path, name):
    write_json(tmp_path / "a.json", {name: [name]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {name: [name]}
    assert (name in text) == (not any("\ud800" <= sign <= "\udfff" for sign in name))


NAMES = [
    "plain.mp4", "a$\\frac{x$.mp4", "$$", "_private", "__", "a\nb", "\x1b[31mred.mp4", "\u202eabc",
    "打球 🏀.mp4", "*?.mp4",
    os.fsdecode(b"\xff.mp4"), "x/y.mp4", "x_y.mp4", "x/y_z.mp4", "x_y/z.mp4", "/x/y.mp4", "../x/y.mp4", "stdin", STDIN,
    "d" * 250, "d" * 249 + "e", "é" * 120, "d" * 120 + "/" + "d" * 120, "<a>.mp4", "a|b", "CON:", "x_y.mp4.12345678",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_timeline_draws_names_with_any_sign(tmp_path, name):
    timeline = Timeline([0.0, 1.0], torch.tensor([[0.2, 0.8], [0.6, 0.4]]))
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        warnings.filterwarnings("ignore", "Glyph .* missing")
        files = write_timeline(tmp_path, name, timeline, [name, "other"], 1.0, 1.0, 2)
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(file.stat().st_size > 50 for file in files)  # the table of two events is short
    assert all(printable(file.name) == file.name for file in files)
    assert json.loads(files[0].read_text(encoding="utf-8"))["video"] == name


def test_no_two_videos_share_the_files_of_a_timeline():
    stems = [timeline_stem(name) for name in NAMES]
    stems.append(timeline_stem(timeline_stem("x/y.mp4")))  # a file of that very name
    assert len(set(stems)) == len(stems)
    assert max(len(stem.encode()) for stem in stems) < 120
    assert timeline_stem("plain.mp4") == timeline_stem("./plain.mp4") == "plain.mp4"
