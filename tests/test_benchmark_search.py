"""`clipvid benchmark search`: recall against a world whose answers are known, refusals, and the tables."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clipvid import InputError
from clipvid.benchmarks import search
from clipvid.benchmarks.search import (
    GraphFigures,
    ModelFigures,
    QueryTime,
    SearchBenchmark,
    measure_queries,
    render_tables,
)
from clipvid.commands.benchmark import main
from clipvid.data.synthetic.world import WorldConfig, world_classes
from clipvid.inference.search.index import Moment

WORLD = {"objects": ["ball"], "motions": ["horizontal"], "num_frames": 8, "image_size": 48}
WORLD |= {"train_per_class": 0, "val_per_class": 0, "test_per_class": 2}
LABELS = [label.name for label in world_classes(WorldConfig(objects=("ball",), motions=("horizontal",)))]


def test_every_figure_is_measured(make_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(search, "_LONG", 50)
    make_model("none", LABELS, num_frames=2).save_pretrained(tmp_path / "model")
    config = {"models": [str(tmp_path / "model")], "world": WORLD, "window": 1.0, "sizes": [250], "width": 8}
    (tmp_path / "in.json").write_text(json.dumps(config | {"repeats": 2, "threads": 1}))
    main(["search", "--config", str(tmp_path / "in.json"), f"--output_dir={tmp_path / 'run'}"])
    model, query = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert model["recall"] == model["reverse"] == [1.0, 1.0]  # all 4 clips are among the first 10
    assert all(0 <= share <= 1 for share in model["excluding"])
    assert sum(model["excluding"]) > 0
    assert len(model["indexing"]) == len(model["decoding"]) == len(query["seconds"]) == 2
    assert min(*model["indexing"], *model["decoding"], *query["seconds"]) > 0
    assert not list((tmp_path / "run").glob("random/*"))


def test_model_of_other_classes_is_refused(make_model, tmp_path) -> None:
    make_model("none", ["walking"], num_frames=2).save_pretrained(tmp_path / "model")
    config = SearchBenchmark(models=[str(tmp_path / "model")], output_dir=str(tmp_path))
    with pytest.raises(InputError, match="1 classes that are not the 40 of the world"):
        search.measure_model(str(tmp_path / "model"), config)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sizes": [0]}, "sizes"), ({"template": "a ball"}, "template"), ({"repeats": 0}, "repeats=0")],
)
def test_options_out_of_range_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        SearchBenchmark(**options)


def test_search_among_random_windows_is_exact(tmp_path, monkeypatch) -> None:
    answers = []
    nearest = search.Index.nearest

    def recorded(index, direction, top_k, approximate):
        moments = nearest(index, direction, top_k, approximate)
        scores = torch.from_numpy(index.features.astype("float32")) @ direction
        answers.append((moments[0].score, float(scores.max())))
        return moments

    monkeypatch.setattr(search.Index, "nearest", recorded)
    config = SearchBenchmark(output_dir=str(tmp_path), width=16, repeats=2)
    assert len(measure_queries(330, config).seconds) == 2
    assert [score for score, _ in answers] == pytest.approx([best for _, best in answers], abs=1e-6)
    features = torch.cat([torch.from_numpy(part).float() for part in search._random_features(20_000, 16)])
    assert torch.allclose(features.norm(dim=1), torch.ones(20_000), atol=2e-3)
    assert F.cosine_similarity(features[0], features[-1], dim=0).abs() < 0.99


def test_graph_is_measured_beside_exact_search(tmp_path) -> None:
    pytest.importorskip("usearch", reason="needs usearch: pip install 'clipvid[search]'")
    options = ["--models=[]", "--sizes=[2050]", "--graph=true", "--width=64", "--repeats=3"]
    main(["search", *options, f"--output_dir={tmp_path}"])
    (query,) = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    graph = query["graph"]
    assert len(query["seconds"]) == len(graph["seconds"]) == len(graph["recall"]) == 3
    assert min(graph["building"], *graph["seconds"]) > 0
    assert min(graph["recall"]) >= 0.8
    table = (tmp_path / "table.md").read_text()
    assert "| approximate query among 2,050 windows, recall@10 " in table
    assert "| graph of 2,050 windows | " in table
    assert "recall@10, --not" not in table
    assert not list(tmp_path.glob("random/*"))


def test_missing_usearch_is_named_before_anything_is_measured(monkeypatch) -> None:
    for name in ("usearch", "usearch.index"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"pip install 'clipvid\[search\]'"):
        SearchBenchmark(graph=True)


def test_clips_are_counted_by_class() -> None:
    left, right = world_classes(WorldConfig(objects=("ball",), motions=("horizontal",)))
    names = [f"{left.name.replace(' ', '_')}/0.mp4"] * 3 + [f"{right.name.replace(' ', '_')}/0.mp4"]
    moments = [Moment(str(Path("test") / name), 0.0, 1.0, 0.5) for name in names]
    assert (search._count(moments, left), search._count(moments, right)) == (3, 1)


def test_tables_have_means_medians_and_ratios() -> None:
    rows = [
        ModelFigures("ila", [1.0, 0.8], [1.0, 1.0], [0.0, 0.2], ["a", "b"], [2.0, 9.0, 3.0], [1.0, 1.0, 1.5]),
        QueryTime(1_000_000, [0.2, 0.4, 0.3], GraphFigures(812.4, [0.01, 0.03, 0.02], [1.0, 0.9, 0.8])),
    ]
    table = render_tables(rows, SearchBenchmark())
    assert "| ila | 0.90 (" in table
    assert "| indexing 3 minutes of video, ila | 3.00 | 3.0 |" in table
    assert "| query among 1,000,000 windows | 0.300 | - |" in table
    assert "| approximate query among 1,000,000 windows, recall@10 0.90 | 0.020 | - |" in table
    assert "| graph of 1,000,000 windows | 812 | - |" in table
