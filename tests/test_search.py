"""Search in an index: against a slow search, queries, approximate search, the commands and their page."""

import html
import json
import os
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import posix_only, shake_adapters
from processes import Worker, all_end_well
from search_world import build, read_one_by_one, write_videos

import clipvid
from clipvid import commands
from clipvid.data.reader import VideoError
from clipvid.hub.loading import from_pretrained
from clipvid.inference.search import building
from clipvid.inference.search.nearest import best_apart

LABELS = ["walking", "running"]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def videos(original, tmp_path) -> Path:
    return shutil.copytree(original, tmp_path / "videos")


@pytest.fixture(scope="module")
def model(make_model) -> clipvid.VideoCLIP:
    return shake_adapters(make_model("ila", LABELS, num_frames=4))


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def index(model, original, tmp_path_factory) -> clipvid.Index:
    return build(original, model, tmp_path_factory.mktemp("index") / "index")


def slow_search(index: clipvid.Index, directions: list[torch.Tensor], top_k: int) -> list[tuple[str, float, float]]:
    """Return the best moments by comparing every window with every better one, without those that fit a later text."""
    features = [torch.from_numpy(np.array(row)).float() for row in index.features]
    products = [[float(feature @ direction) for direction in directions] for feature in features]
    fitting = [row for row, (own, *others) in enumerate(products) if own > max(others, default=-2)]
    chosen: list[int] = []
    for row in sorted(fitting, key=lambda row: (-products[row][0], row)):
        start, end = index.times[row]
        clear = [
            index.owners[row] != index.owners[other] or end <= index.times[other][0] or index.times[other][1] <= start
            for other in chosen
        ]
        if all(clear):
            chosen.append(row)
    names = [str(Path(index.settings.folder, index.videos[index.owners[row]])) for row in chosen[:top_k]]
    return [(name, *index.times[row].tolist()) for name, row in zip(names, chosen[:top_k], strict=True)]


def text_feature(model, text: str) -> torch.Tensor:
    with torch.no_grad():
        return F.normalize(model.encode_text([text]), dim=-1)[0]


@pytest.mark.parametrize("top_k", [1, 3, 1000])
def test_search_equals_a_slow_search(model, index, original, top_k):
    example = F.normalize(read_one_by_one(model, original / "short.mp4")[1].half().float().mean(dim=0), dim=-1)
    direction = (text_feature(model, "a dog runs") + example) / 2
    moments = index.search(model, "a dog runs", (), [original / "short.mp4"], top_k)
    expected = slow_search(index, [direction], top_k)
    assert [(moment.video, moment.start, moment.end) for moment in moments] == expected
    assert [moment.score for moment in moments] == sorted((moment.score for moment in moments), reverse=True)


@pytest.mark.parametrize("top_k", [1, 3, 1000])
def test_windows_that_fit_what_is_avoided_better_are_left_out(model, index, top_k):
    direction, features = text_feature(model, "a dog runs"), torch.from_numpy(np.array(index.features)).float()
    avoid = [direction + features[0] - features[-1], direction + features[5] - features[-1]]
    moments = index.nearest(direction, top_k, False, avoid)
    expected = slow_search(index, [direction, *avoid], top_k)
    assert [(moment.video, moment.start, moment.end) for moment in moments] == expected
    assert 0 < len(slow_search(index, [direction, *avoid], 1000)) < len(slow_search(index, [direction], 1000))


def test_score_is_the_cosine_and_an_example_finds_itself(model, index, original):
    (moment,) = index.search(model, like=[original / "short.mp4"], top_k=1)
    assert (moment.video, moment.start) == (str(original / "short.mp4"), 0.0)
    assert moment.score == pytest.approx(1, abs=2e-3)
    (best,) = index.nearest(text_feature(model, "left"), 1)
    (same,) = index.search(model, "left", top_k=1)
    assert (best.video, best.start) == (same.video, same.start)
    assert best.score == pytest.approx(same.score, abs=1e-6)
    assert index.search(model, "left", "left") == []


def test_best_windows_apart_equal_those_of_a_slow_choice():
    generator = np.random.default_rng(0)
    for count in (1, 2, 5, 50):
        scores = generator.integers(0, 12, 400).astype(np.float32)  # many are equal
        owners = np.sort(generator.integers(0, 6, 400))
        starts = generator.integers(0, 60, 400) / 2
        times = np.stack([starts, starts + 2], axis=1)
        chosen: list[int] = []
        for row in np.lexsort((np.arange(400), -scores)).tolist():
            overlaps = [owners[row] == owners[other] and abs(starts[row] - starts[other]) < 2 for other in chosen]
            if not any(overlaps):
                chosen.append(row)
        assert best_apart(scores, owners, times, count) == chosen[:count]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({}, "the query is empty"),
        ({"text": ""}, "expected at least one word"),
        ({"text": "a dog", "exclude": " \n"}, "expected at least one word"),
        ({"text": "dog " * 100_000}, "has a text of 400000 letters"),
        ({"text": "a dog", "top_k": 0}, "top_k=0: expected at least 1"),
        ({"like": [7]}, "a video is of type int"),
    ],
)
def test_unusable_queries_are_refused(model, index, query, message):
    with pytest.raises(clipvid.InputError, match=message):
        index.search(model, **query)


def test_long_query_is_cut_with_a_warning(model, index):
    with pytest.warns(UserWarning, match="longer than the 16 tokens"):
        assert index.search(model, "dog " * 100)


def test_unreadable_example_is_an_error(model, index, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        index.search(model, like=[tmp_path / "broken.mp4"])


# Approximate search


def test_approximate_search_needs_usearch_and_a_graph(model, index, original, monkeypatch):
    with monkeypatch.context() as patched:
        for name in ("usearch", "usearch.index"):
            patched.setitem(sys.modules, name, None)
        with pytest.raises(clipvid.InputError, match=r"pip install 'clipvid\[search\]'"):
            index.search(model, "a dog", approximate=True)
        with pytest.raises(clipvid.InputError, match=r"pip install 'clipvid\[search\]'"):
            build(original, model, index.folder, graph=True)
    pytest.importorskip("usearch")
    with pytest.raises(clipvid.InputError, match="has no graph"):
        index.search(model, "a dog", approximate=True)


def test_approximate_search_of_few_windows_is_exact(model, original, tmp_path):
    pytest.importorskip("usearch")
    index = build(original, model, tmp_path / "index", graph=True)
    for top_k in (1, 4, 100):
        expected, actual = (index.search(model, "a dog", "a cat", (), top_k, kind) for kind in (False, True))
        assert [(moment.video, moment.start) for moment in actual] == [(each.video, each.start) for each in expected]
        assert [moment.score for moment in actual] == pytest.approx([moment.score for moment in expected], abs=1e-6)
    graph = next(index.folder.glob("graph-*"))
    graph.write_bytes(graph.read_bytes()[:50])
    with pytest.raises(clipvid.InputError, match="graph"):
        index.search(model, "a dog", approximate=True)


# Command line

ODD = "a <b>&amp;\n\x1b[31m'\"x%#?.mp4"


@posix_only
def test_commands_with_odd_names_broken_videos_and_a_page(saved, videos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (videos / "short.mp4").rename(videos / ODD)
    (videos / "broken\n.mp4").write_bytes(b"no video")
    with pytest.raises(SystemExit, match="1"):
        commands.run("index", [str(videos), "--model", str(saved), "--window", "1", "--hop", "0.4"])
    shown = capsys.readouterr()
    assert shown.out.endswith("windows of 4 videos -> outputs/index\n")
    assert next(line for line in shown.err.splitlines() if "broken" in line).startswith("clipvid index: ")
    assert "\x1b" not in shown.err
    query = ["outputs/index", "a dog", "--not", "a cat", "--like", str(videos / ODD), "--top_k", "50"]
    commands.run("search", [*query, "--json", "--html", "pages/page.html"])
    lines = capsys.readouterr().out.splitlines()
    moments = [json.loads(line) for line in lines]
    assert str(videos / ODD) in {moment["video"] for moment in moments}
    assert moments[0].keys() == {"video", "start", "end", "score"}
    page = Path("pages/page.html").read_text()
    assert "<b>&amp;" not in page.replace("&lt;b&gt;", "")
    assert "\x1b" not in page
    addresses = [html.unescape(part.split('"')[0]) for part in page.split('href="')[1:]]
    links = [address for address in addresses if address != "data:,"]
    assert len(links) == len(moments)
    for link, moment in zip(links, moments, strict=True):
        path, _, fragment = link.partition("#")
        assert Path("pages", unquote(path)).resolve() == Path(moment["video"]).resolve()
        assert fragment == f"t={moment['start']:.2f},{moment['end']:.2f}"
    assert page.count("data:image/jpeg;base64,") == len(moments)
    commands.run("search", query)
    table = capsys.readouterr().out
    assert "score" in table
    assert "\x1b[31m" not in table


def test_page_of_videos_that_have_gone_says_so(saved, videos, tmp_path, capsys):
    model = from_pretrained(saved)
    index = build(videos, model, tmp_path / "index", source=None)
    (videos / "short.mp4").unlink()
    model_option = ["--model", str(saved)]
    words = [str(index.folder), "a dog", "--html", str(tmp_path / "page.html"), "--top_k", "100"]
    with pytest.raises(SystemExit, match="1"):
        commands.run("search", words)
    assert "made by a model in memory; name its folder by --model" in capsys.readouterr().err
    commands.run("search", [*words, *model_option])
    assert (tmp_path / "page.html").read_text().count("not readable any more") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", "a dog"], "nothing is not a folder that exists"),
        (["."], "the query is empty"),
        ([".", "a dog"], "is not an index"),
    ],
)
def test_search_refuses_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        commands.run("search", words)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def run_both(folder: Path, saved: Path) -> None:
    os.chdir(folder)
    commands.run("index", ["videos", "--model", str(saved), "--num_workers", "2"])
    commands.run("search", ["outputs/index", "a dog", "--json", "--top_k", "2"])


def test_commands_run_in_a_process(saved, videos, tmp_path):
    worker = Worker(tmp_path / "log", {}, run_both, tmp_path, saved)
    all_end_well([worker])
    last = worker.said.splitlines()[-2:]
    assert all(Path(json.loads(line)["video"]).is_file() for line in last)
    assert building.INDEX in os.listdir(tmp_path / "outputs" / "index")
