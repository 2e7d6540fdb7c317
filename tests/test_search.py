"""Index and search: against windows that are read one by one, updates, kills, other models, damage and odd names."""

import hashlib
import html
import json
import os
import shutil
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import posix_only, shake_adapters
from processes import Worker, all_end_well
from test_timeline import RATES, write_video

import clipvid
from clipvid import commands
from clipvid.data.reader import VideoError, open_video
from clipvid.hub.loading import from_pretrained
from clipvid.inference.clips import ClipReader
from clipvid.inference.search import building
from clipvid.inference.search.encoding import WindowEncoder
from clipvid.inference.search.nearest import best_apart
from clipvid.inference.search.unfinished import UnfinishedVideos
from clipvid.runs.lock import locked

WINDOW, HOP = 1.0, 0.4
LABELS = ["walking", "running"]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    for name, times in RATES.items():
        write_video(folder / ("more" if name == "gap" else "") / f"{name}.mp4", times)
    return folder


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


def build(folder: Path, model, output: Path, num_workers: int = 0, **options) -> clipvid.Index:
    return clipvid.build_index(folder, model, output, WINDOW, HOP, num_workers, **options)


def files_of(folder: Path) -> dict[str, str]:
    """Return the hash of every file in a folder by its name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_one_by_one(model, path: Path) -> tuple[list[tuple[float, float]], torch.Tensor]:
    """Return times and features of the windows of a video, each read and encoded alone."""
    reader = ClipReader.create(model.num_frames, model.image_size, model.preprocessing)
    with open_video(path) as video:
        last = max(video.duration - WINDOW, 0)
        starts = [*np.arange(0, last - 1e-6, max(HOP, video.duration / len(video))), last]
        times, features = [], []
        for start in starts:
            part = video.frames_between(start, start + WINDOW)
            clip = reader.read(video, start=part.start, stop=part.stop)
            with torch.no_grad():
                features.append(F.normalize(model.encode_video(clip), dim=-1)[0])
            times.append((start, min(start + WINDOW, video.duration)))
    return times, torch.stack(features)


@pytest.mark.parametrize("adapter", ["ila", "none"])
def test_index_equals_windows_read_one_by_one(make_model, original, tmp_path, adapter):
    model = shake_adapters(make_model(adapter, num_frames=4))
    index = build(original, model, tmp_path / "index")
    assert index.videos == ["constant.mp4", "more/gap.mp4", "short.mp4", "varying.mp4"]
    expected = [read_one_by_one(model, original / name) for name in index.videos]
    assert np.allclose(index.times, np.concatenate([times for times, _ in expected]))
    assert index.features.dtype == np.float16
    assert isinstance(index.features, np.memmap)
    features = torch.cat([features for _, features in expected])
    assert torch.allclose(torch.from_numpy(np.array(index.features)).float(), features, atol=1e-3)
    assert features.std(dim=0).max() > 0.01
    assert index.owners.tolist() == [number for number, (times, _) in enumerate(expected) for _ in times]


def slow_search(index: clipvid.Index, direction: torch.Tensor, top_k: int) -> list[tuple[str, float, float]]:
    """Return the best moments by comparing every window with every better one."""
    scores = [float(torch.from_numpy(np.array(row)).float() @ direction) for row in index.features]
    chosen: list[int] = []
    for row in sorted(range(len(scores)), key=lambda row: (-scores[row], row)):
        start, end = index.times[row]
        clear = [
            index.owners[row] != index.owners[other] or end <= index.times[other][0] or index.times[other][1] <= start
            for other in chosen
        ]
        if all(clear):
            chosen.append(row)
    names = [str(Path(index.settings.folder, index.videos[index.owners[row]])) for row in chosen[:top_k]]
    return [(name, *index.times[row].tolist()) for name, row in zip(names, chosen, strict=False)]


def text_feature(model, text: str) -> torch.Tensor:
    with torch.no_grad():
        return F.normalize(model.encode_text([text]), dim=-1)[0]


@pytest.mark.parametrize("top_k", [1, 3, 1000])
def test_search_equals_a_slow_search(model, index, original, top_k):
    example = F.normalize(read_one_by_one(model, original / "short.mp4")[1].mean(dim=0), dim=-1)
    example = F.normalize(example.half().float(), dim=-1)
    direction = (text_feature(model, "a dog runs") + example) / 2 - text_feature(model, "a cat")
    moments = index.search(model, "a dog runs", "a cat", [original / "short.mp4"], top_k)
    expected = slow_search(index, direction, top_k)
    assert [(moment.video, moment.start, moment.end) for moment in moments] == expected
    assert [moment.score for moment in moments] == sorted((moment.score for moment in moments), reverse=True)
    assert len(moments) == min(top_k, len(expected))


def test_score_is_the_cosine_and_an_example_finds_itself(model, index, original):
    (moment,) = index.search(model, like=[original / "short.mp4"], top_k=1)
    assert (moment.video, moment.start) == (str(original / "short.mp4"), 0.0)
    assert moment.score == pytest.approx(1, abs=2e-3)
    first, second = text_feature(model, "left"), text_feature(model, "right")
    (best,) = index.nearest(first - second, 1)
    (same,) = index.search(model, "left", "right", top_k=1)
    assert (best.video, best.start) == (same.video, same.start)
    assert best.score == pytest.approx(same.score, abs=1e-6)


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


# Updates


def test_worker_processes_do_not_change_the_index(model, index, original, tmp_path):
    build(original, model, tmp_path / "index", num_workers=2)
    assert files_of(tmp_path / "index") == files_of(index.folder)


def test_updated_index_equals_a_new_one_and_encodes_only_new_and_changed_videos(model, videos, tmp_path, monkeypatch):
    encoded = []
    encode = WindowEncoder.encode

    def counted(encoder, sources, num_workers=0):
        encoded.extend(Path(source).name for source in sources)
        return encode(encoder, sources, num_workers)

    monkeypatch.setattr(WindowEncoder, "encode", counted)
    write_video(videos / "a_first.mp4", RATES["short"])
    write_video(videos / "gone.mp4", RATES["short"])
    (videos / "a_first.mp4").rename(tmp_path / "a_first.mp4")
    build(videos, model, tmp_path / "updated")
    (videos / "gone.mp4").unlink()
    (tmp_path / "a_first.mp4").rename(videos / "a_first.mp4")
    write_video(videos / "more" / "gap.mp4", RATES["varying"])
    encoded.clear()
    updated = build(videos, model, tmp_path / "updated")
    assert encoded == ["a_first.mp4", "gap.mp4"]
    assert updated.videos == ["a_first.mp4", "constant.mp4", "more/gap.mp4", "short.mp4", "varying.mp4"]
    new = build(videos, model, tmp_path / "new")
    assert files_of(updated.folder) == files_of(new.folder)
    encoded.clear()
    before = files_of(updated.folder), (updated.folder / "index.json").stat().st_mtime_ns
    again = build(videos, model, updated.folder)
    assert (encoded, len(again)) == ([], len(new))
    assert (files_of(updated.folder), (updated.folder / "index.json").stat().st_mtime_ns) == before


def test_open_index_survives_an_update(model, videos, tmp_path):
    opened = build(videos, model, tmp_path / "index")
    before = opened.search(model, "a dog")
    (videos / "constant.mp4").unlink()
    assert "constant.mp4" not in build(videos, model, tmp_path / "index").videos
    if os.name != "nt":
        assert opened.search(model, "a dog") == before


def stop_after_two(folder: Path, saved: Path, output: Path) -> None:
    """Build an index, and wait after two videos have been stored."""
    write = UnfinishedVideos.write
    done = []

    def counted(store, state, features):
        write(store, state, features)
        done.append(state.name)
        if len(done) == 2:
            output.with_name("ready").touch()
            time.sleep(120)

    UnfinishedVideos.write = counted
    build(folder, from_pretrained(saved), output)


@posix_only
def test_killed_build_continues_and_equals_one_that_was_not_killed(saved, videos, tmp_path, monkeypatch):
    worker = Worker(tmp_path / "log", {}, stop_after_two, videos, saved, tmp_path / "killed")
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists():
        assert worker.process.is_alive(), worker.said
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(clipvid.RunError, match="is in use by process"):
        build(videos, from_pretrained(saved), tmp_path / "killed")
    worker.signal("SIGKILL")
    worker.ended()
    with pytest.raises(clipvid.InputError, match="is not an index: it has no index"):
        clipvid.Index(tmp_path / "killed")
    encoded = []
    encode = WindowEncoder.encode

    def counted(encoder, sources, num_workers=0):
        encoded.extend(sources)
        return encode(encoder, sources, num_workers)

    monkeypatch.setattr(WindowEncoder, "encode", counted)
    build(videos, from_pretrained(saved), tmp_path / "killed")
    assert len(encoded) == 2
    build(videos, from_pretrained(saved), tmp_path / "whole")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_results_of_an_interrupted_build_with_other_settings_are_not_used(model, videos, tmp_path, monkeypatch):
    def interrupted(store, state, features):
        UnfinishedVideos.__dict__["plain"](store, state, features)
        raise KeyboardInterrupt

    monkeypatch.setattr(UnfinishedVideos, "plain", UnfinishedVideos.write, raising=False)
    with monkeypatch.context() as patched:
        patched.setattr(UnfinishedVideos, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            clipvid.build_index(videos, model, tmp_path / "index", 0.5, HOP, 0)
    assert list((tmp_path / "index" / "encoded").glob("*.npz"))
    build(videos, model, tmp_path / "index")
    build(videos, model, tmp_path / "new")
    assert files_of(tmp_path / "index") == files_of(tmp_path / "new")


def test_file_that_changes_while_it_is_read_is_reported(model, videos, tmp_path, monkeypatch):
    encode = WindowEncoder.encode

    def changing(encoder, sources, num_workers=0):
        for number, features in encode(encoder, sources, num_workers):
            if sources[number].endswith("short.mp4"):
                os.utime(sources[number], ns=(1, 1))
            yield number, features

    monkeypatch.setattr(WindowEncoder, "encode", changing)
    reported = []
    index = build(videos, model, tmp_path / "index", on_error=reported.append)
    assert [error.reason for error in reported] == ["the file changed while it was read; run the command again"]
    assert "short.mp4" not in index.videos


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0.5}, r"other settings \(window\)"),
        ({"hop": 0.5}, r"other settings \(hop\)"),
        ({"window": 0}, "expected seconds above 0"),
        ({"window": -1}, "expected seconds above 0"),
        ({"hop": float("nan")}, "expected seconds above 0"),
        ({"window": float("inf")}, "expected seconds above 0"),
        ({"num_workers": -1}, "num_workers=-1: expected at least 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(model, index, original, options, message):
    before = files_of(index.folder)
    with pytest.raises(clipvid.InputError, match=message):
        clipvid.build_index(original, model, index.folder, **{"window": WINDOW, "hop": HOP, "num_workers": 0} | options)
    assert files_of(index.folder) == before


def test_huge_window_is_one_window_for_each_video(model, original, tmp_path):
    index = clipvid.build_index(original, model, tmp_path / "index", 1e300, 1e-300, 0)
    assert len(index) == len(index.videos) == 4
    assert index.times[:, 0].tolist() == [0.0] * 4


def test_hop_shorter_than_a_frame_gives_about_a_window_for_each_frame(model, videos, tmp_path):
    for name in ("constant.mp4", "varying.mp4", "more/gap.mp4"):
        (videos / name).unlink()
    assert len(clipvid.build_index(videos, model, tmp_path / "index", 1e-9, 1e-9, 0)) == len(RATES["short"]) + 1


def test_another_model_is_refused(make_model, model, index, original):
    other = make_model("ila", LABELS, num_frames=4)
    with pytest.raises(clipvid.InputError, match="with other weights or settings"):
        index.search(other, "a dog")
    with pytest.raises(clipvid.InputError, match=r"other settings \(model\)"):
        build(original, other, index.folder)
    fewer = make_model("ila", LABELS, num_frames=3)
    with pytest.raises(clipvid.InputError, match=r"other settings \(model, num_frames\)"):
        build(original, fewer, index.folder)


def test_model_is_recognized_after_it_was_saved_and_with_other_labels(saved, index):
    model = from_pretrained(saved)
    model.set_labels(["something else"])
    assert index.search(model, "a dog", top_k=2) == index.search(from_pretrained(saved), "a dog", top_k=2)


@pytest.mark.parametrize("head", ["linear", "class_token"])
def test_head_without_text_is_refused(make_model, index, original, tmp_path, head):
    model = make_model("none", LABELS, head=head)
    with pytest.raises(clipvid.InputError, match=f"the head '{head}', which uses no text"):
        build(original, model, tmp_path / "index")
    with pytest.raises(clipvid.InputError, match="uses no text"):
        index.search(model, "a dog")
    assert not (tmp_path / "index").exists()


def damage_json(folder: Path, change) -> None:
    content = json.loads((folder / "index.json").read_text())
    change(content)
    (folder / "index.json").write_text(json.dumps(content))


def cut_features(folder: Path) -> None:
    path = next(folder.glob("features-*"))
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE = {
    "no record": (lambda folder: (folder / "index.json").unlink(), "is not an index"),
    "no JSON": (lambda folder: (folder / "index.json").write_text("{"), "index.json is damaged"),
    "a list": (lambda folder: (folder / "index.json").write_text("[]"), "index.json is damaged"),
    "deep": (lambda folder: (folder / "index.json").write_text("[" * 100_000), "index.json is damaged"),
    "other format": (lambda folder: damage_json(folder, lambda each: each.update(format=9)), "has the format 9"),
    "more keys": (lambda folder: damage_json(folder, lambda each: each.update(x=1)), "index.json is damaged"),
    "wrong type": (lambda folder: damage_json(folder, lambda each: each["settings"].update(hop="1")), "hop='1'"),
    "path above": (lambda folder: damage_json(folder, lambda each: each["videos"][0].update(name="../x.mp4")), "x.mp4"),
    "absolute": (lambda folder: damage_json(folder, lambda each: each["videos"][0].update(name="/x.mp4")), "x.mp4"),
    "other file": (lambda folder: damage_json(folder, lambda each: each["features"].update(name="../a.npy")), "a.npy"),
    "windows": (lambda folder: damage_json(folder, lambda each: each["videos"][0].update(windows=99)), "is damaged"),
    "no array": (lambda folder: next(folder.glob("features-*")).unlink(), "is damaged"),
    "cut array": (cut_features, "is damaged"),
    "no array file": (lambda folder: next(folder.glob("times-*")).write_bytes(b"x"), "is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_index_is_refused_in_one_line(index, tmp_path, kind):
    damage, message = DAMAGE[kind]
    folder = shutil.copytree(index.folder, tmp_path / "index")
    damage(folder)
    with pytest.raises(clipvid.InputError, match=message) as error:
        clipvid.Index(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def change_a_feature(folder: Path, value: float) -> None:
    path = next(folder.glob("features-*"))
    features = np.load(path, mmap_mode="r+")
    features[3, 5] = value
    features.flush()


def test_features_that_are_not_finite_are_refused_by_search(model, index, tmp_path):
    folder = shutil.copytree(index.folder, tmp_path / "index")
    change_a_feature(folder, np.nan)
    with pytest.raises(clipvid.InputError, match="features that are not finite"):
        clipvid.Index(folder).search(model, "a dog")


def test_changed_feature_is_refused_by_an_update(model, index, original, tmp_path):
    folder = shutil.copytree(index.folder, tmp_path / "index")
    change_a_feature(folder, 0.25)
    with pytest.raises(clipvid.InputError, match="SHA-256 differs"):
        build(original, model, folder)


@pytest.mark.parametrize("kind", ["file", "foreign", "locked", "same name"])
def test_output_that_is_not_an_index_is_refused_and_kept(model, original, tmp_path, kind):
    output, error, message = tmp_path / "index", clipvid.InputError, "is not an index and contains"
    if kind == "file":
        output.write_text("mine")
        message = "is a file"
    elif kind == "locked":
        error, message = clipvid.RunError, "is in use"
    else:
        (output / "encoded").mkdir(parents=True)
        (output / ("encoded/mine.npz" if kind == "same name" else "mine.txt")).write_text("mine")
    before = files_of(tmp_path)
    if kind == "locked":
        with locked(output), pytest.raises(error, match=message):
            build(original, model, output)
    else:
        with pytest.raises(error, match=message):
            build(original, model, output)
    assert files_of(tmp_path) == before
    if kind == "file":
        with pytest.raises(clipvid.InputError, match="is a file; expected the folder of an index"):
            clipvid.Index(output)


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


def test_model_without_finite_features_is_reported(make_model, videos, tmp_path):
    model = make_model("none", LABELS)
    with torch.no_grad():
        model.encoder.tower.ends()[0][0].fill_(float("nan"))
    reported = []
    with pytest.raises(clipvid.RunError, match="no video in"):
        build(videos, model, tmp_path / "index", on_error=reported.append)
    assert {error.reason for error in reported} == {"the model returned features that are not finite"}


def test_folder_without_videos_is_refused(model, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "empty", "has no video; expected files"), (tmp_path / "no", "is not a folder")):
        with pytest.raises(clipvid.InputError, match=message):
            build(folder, model, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_broken_videos_are_reported_and_left_out(model, videos, tmp_path):
    (videos / "broken.mp4").write_bytes(b"no video")
    (videos / "gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    with pytest.warns(UserWarning, match=r"not in the index: .*broken\.mp4"):
        index = build(videos, model, tmp_path / "index")
    (videos / "broken.mp4").unlink()
    build(videos, model, tmp_path / "new")
    assert files_of(index.folder) == files_of(tmp_path / "new")
    (videos / "short.mp4").write_bytes(b"no video any more")
    assert "short.mp4" not in build(videos, model, index.folder, on_error=lambda error: None).videos


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
