"""Videos on a web server and on file systems of fsspec, with a bounded cache on disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from conftest import REPOSITORY, shake_adapters
from hub_server import Hub, Repository
from test_predict import run
from video_server import video_server

from clipvid import InputError
from clipvid.data.reader import VideoError
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.hub.loading import from_pretrained
from clipvid.inference.opening import is_remote
from clipvid.inference.predictor import Predictor
from clipvid.inference.video_names import expand_names

LABELS = ["walking", "running", "jumping"]
WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=20, image_size=48,
    train_per_class=2, val_per_class=1, test_per_class=0,
)  # fmt: skip


@pytest.fixture
def server():
    with video_server() as server:
        yield server


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CLIPVID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "videos"


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    return sorted(build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False).rglob("*.mp4"))


@pytest.fixture(scope="module")
def saved(make_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    shake_adapters(make_model("ila", LABELS)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def predictor(saved) -> Predictor:
    return Predictor(from_pretrained(saved))


def kept(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_web_videos_in_worker_processes(saved, server, cache, videos):
    for number, video in enumerate(videos):
        server.files[f"/{number}.mp4"] = video.read_bytes(), f'"{number}"'
    addresses = [f"{server.url}/{number}.mp4" for number in range(len(videos))]
    args = ["--model", str(saved), "--batch_size", "1"]
    code, lines, err = run(*args, *addresses[:2], f"{server.url}/absent.mp4", *addresses[2:])
    assert code == 1
    assert f"{server.url}/absent.mp4: it cannot be downloaded (HTTP Error 404: Not Found)" in err
    local = run(*args, *map(str, videos))[1]
    assert [line["video"] for line in lines] == addresses
    assert [line["predictions"] for line in lines] == [line["predictions"] for line in local]
    assert len(kept(cache)) == len(videos)


def test_web_video_is_downloaded_again_if_it_has_changed(predictor, server, cache, videos):
    address = f"{server.url}/a.mp4"
    server.files["/a.mp4"] = videos[0].read_bytes(), '"1"'
    assert predictor(address) == predictor(videos[0])
    server.files["/a.mp4"] = b"#" * len(videos[0].read_bytes()), '"1"'
    assert predictor(address) == predictor(videos[0])  # the copy
    server.files["/a.mp4"] = videos[1].read_bytes(), '"2"'
    assert predictor(address) == predictor(videos[1])
    server.files["/a.mp4"] = videos[2].read_bytes(), None
    assert predictor(address) == predictor(videos[2])
    assert len(kept(cache)) == 2  # nothing is kept of a file without a mark of its version


def test_cut_download_is_an_error_and_leaves_no_file(predictor, server, cache, videos):
    server.files["/a.mp4"], server.cut = (videos[0].read_bytes(), '"1"'), True
    with pytest.raises(VideoError, match=r"/a\.mp4: it cannot be downloaded \(the connection ended after"):
        predictor(f"{server.url}/a.mp4")
    assert not kept(cache)


def test_damaged_web_video_is_named_by_its_address(predictor, server, cache):
    server.files["/a.mp4"] = b"\0no video", '"1"'
    with pytest.raises(VideoError, match=rf"^{server.url}/a\.mp4: not a readable video"):
        predictor(f"{server.url}/a.mp4")


@pytest.mark.parametrize("share", [0.5, 1 / 40, 0])
def test_cache_is_bounded(predictor, server, cache, videos, monkeypatch, share):
    """A share of 0.5 of the limit is too large for a file to be kept at all."""
    sizes = [len(video.read_bytes()) for video in videos]
    limit = max(sizes) / share if share else 0
    monkeypatch.setenv("CLIPVID_VIDEO_CACHE_GIB", str(limit / 2**30))
    for number in range(60):
        server.files[f"/{number}.mp4"] = videos[number % len(videos)].read_bytes(), f'"{number}"'
        assert predictor(f"{server.url}/{number}.mp4") == predictor(videos[number % len(videos)])
        assert sum(path.stat().st_size for path in kept(cache)) <= limit
    assert bool(kept(cache)) == (0 < share < 1 / 32)


@pytest.mark.parametrize("value", ["-1", "much", "nan", "inf"])
def test_limit_that_is_not_a_size_is_refused(predictor, server, monkeypatch, value):
    monkeypatch.setenv("CLIPVID_VIDEO_CACHE_GIB", value)
    with pytest.raises(InputError, match=f"CLIPVID_VIDEO_CACHE_GIB='{value}': expected a number of GiB"):
        predictor(f"{server.url}/a.mp4")


def test_folder_and_pattern_on_a_file_system(saved, cache, videos):
    system = fsspec.filesystem("memory")
    for number, video in enumerate(videos[:3]):
        system.pipe(f"/set/deep/{number}.mp4", video.read_bytes())
    system.pipe("/set/notes.txt", b"text")
    system.pipe("/set/.hidden/a.mp4", b"")
    names = [f"memory:///set/deep/{number}.mp4" for number in range(3)]
    listed = list(expand_names(["memory://set"]))
    assert [name.replace("memory:///", "memory://") for name in listed] == [
        name.replace("memory:///", "memory://") for name in names
    ]
    assert list(expand_names(["memory://set/deep/*.mp4"])) == listed
    code, lines, err = run("--model", str(saved), "--num_workers", "0", "--batch_size", "1", "memory://set")
    assert (code, err) == (0, "")
    local = run("--model", str(saved), "--num_workers", "0", "--batch_size", "1", *map(str, videos[:3]))[1]
    assert [line["predictions"] for line in lines] == [line["predictions"] for line in local]
    system.rm("/set", recursive=True)


@pytest.mark.slow
def test_repository_of_the_hub(saved, cache, videos, tmp_path):
    hub = Hub()
    hub.repositories["user/videos"] = Repository(private=False)
    contents = {f"{number}.mp4": video.read_bytes() for number, video in enumerate(videos[:3])}
    hub.repositories["user/videos"].add("main", contents | {"notes.txt": b"text"})
    args = ["--model", str(saved), "--batch_size", "1"]
    command = [sys.executable, "-m", "clipvid", "predict", *args, "hf://user/videos"]
    places = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY)}
    environment = os.environ | places | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["video"] for line in lines] == [f"hf://user/videos/{name}" for name in contents]
    local = run(*args, *map(str, videos[:3]))[1]
    for line, other in zip(lines, local, strict=True):
        scores, expected = ({each["label"]: each["score"] for each in one["predictions"]} for one in (line, other))
        assert scores == pytest.approx(expected, abs=1e-6)  # the number of threads may differ
    assert len(kept(cache)) == 3
    assert sum("/resolve/" in request for request in hub.requests) == 3
    hub.shutdown()


@pytest.mark.parametrize("address", ["memory://nowhere/a.mp4", "nothing://a.mp4"])
def test_address_that_cannot_be_read_is_an_error(predictor, cache, address):
    with pytest.raises(VideoError, match=f"^{address}: it cannot be downloaded"):
        predictor(address)
    assert list(expand_names([address])) == [address]


@pytest.mark.parametrize(
    ("source", "expected"),
    [("s3://b/a.mp4", True), ("https://h/a", True), ("file:///a", False), ("C://a.mp4", False), ("a.mp4", False)],
)
def test_addresses_are_recognized(source, expected):
    assert is_remote(source) is expected
