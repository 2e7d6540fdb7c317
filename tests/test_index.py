"""Building of an index: against windows that are read one by one, updates, kills, and damage."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import posix_only, shake_adapters
from processes import Worker
from search_world import HOP, WINDOW, build, files_of, read_one_by_one, write_videos
from test_timeline import RATES, write_video

import clipvid
from clipvid.hub.loading import from_pretrained
from clipvid.inference.search.encoding import WindowEncoder
from clipvid.inference.search.unfinished import UnfinishedVideos
from clipvid.runs.lock import locked

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
