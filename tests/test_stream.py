"""Predictions for many videos: worker processes, order, broken videos, continued files, several processes."""

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import REPOSITORY, shake_adapters
from PIL import Image
from processes import Worker, together
from test_predict import run
from transformers import pipeline

import clipvid
from clipvid import commands
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.hub.loading import from_pretrained
from clipvid.inference.predictor import Predictor

LABELS = ["walking", "running", "jumping"]
WORLD = WorldConfig(
    objects=("ball", "star"), motions=("horizontal",), num_frames=20, image_size=48,
    train_per_class=2, val_per_class=1, test_per_class=0,
)  # fmt: skip
ROUNDING = 1e-6


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[str]:
    return sorted(map(str, build_world(WORLD, tmp_path_factory.mktemp("world"), progress=False).rglob("*.mp4")))


@pytest.fixture(scope="module")
def saved(make_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    shake_adapters(make_model("ila", LABELS)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def predictor(saved) -> Predictor:
    return Predictor(from_pretrained(saved))


def scores_of(line: dict) -> dict[str, float]:
    return {item["label"]: item["score"] for item in line["predictions"]}


def same_lines(lines: list[dict], expected: list[dict]) -> None:
    assert [line["video"] for line in lines] == [line["video"] for line in expected]
    for line, other in zip(lines, expected, strict=True):
        assert scores_of(line) == pytest.approx(scores_of(other), abs=ROUNDING)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Predictor.stream


@pytest.mark.parametrize(("views", "batch_size", "workers"), [(1, 1, 0), (1, 4, 2), (2, 3, 2), (3, 2, 0)])
def test_stream_equals_single_videos_in_order(saved, videos, tmp_path, views, batch_size, workers):
    predictor = Predictor(from_pretrained(saved), views)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    frames = np.random.default_rng(0).integers(0, 256, (5, 40, 50, 3), np.uint8)
    content = Path(videos[3]).read_bytes()
    sources = [*videos[:3], str(broken), content, frames, broken, io.BytesIO(content)]
    results = list(predictor.stream(iter(sources), 2, batch_size, workers))
    assert [item.source is source for item, source in zip(results, sources, strict=True)] == [True] * len(sources)
    for item in results:
        if isinstance(item.source, str | Path) and Path(item.source) == broken:
            assert (item.predictions, item.scores) == ([], None)
            assert str(item.error).startswith(f"{broken}: not a readable video")
        else:
            assert item.error is None
            assert torch.allclose(item.scores, predictor.scores(item.source), atol=ROUNDING)
            assert [each["label"] for each in item.predictions] == [
                each["label"] for each in predictor(item.source, top_k=2)
            ]


def test_stream_of_single_clips_is_bit_equal(predictor, videos):
    for item in predictor.stream(videos[:3], batch_size=1, num_workers=0):
        assert torch.equal(item.scores, predictor.scores(item.source))


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_reads_a_bounded_number_ahead(predictor, workers):
    pulled = 0

    def endless():
        nonlocal pulled
        while True:
            pulled += 1
            yield np.full((4, 8, 8, 3), pulled % 256, np.uint8)

    for count, item in enumerate(itertools.islice(predictor.stream(endless(), 1, 2, workers), 20), 1):
        assert item.error is None
        assert pulled - count <= 2 * (2 * workers + 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_stream_refuses_objects_that_are_not_videos(predictor, videos, workers):
    stream = predictor.stream([videos[0], 7], num_workers=workers)
    with pytest.raises(clipvid.InputError, match=r"^a video is of type int; expected a path"):
        list(stream)


@pytest.mark.parametrize("option", ["top_k", "batch_size", "num_workers"])
def test_stream_refuses_options_out_of_range(predictor, videos, option):
    with pytest.raises(clipvid.InputError, match=f"{option}=-1: expected at least"):
        list(predictor.stream(videos, **{option: -1}))


def test_stream_warns_of_each_varying_rate(predictor, tmp_path):
    frames = [np.full((8, 8, 3), level, np.uint8) for level in range(0, 200, 10)]
    path = tmp_path / "rates.webp"
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others, duration=[50] * 10 + [200] * 10)
    with pytest.warns(UserWarning, match=r"rates\.webp: its frame rate varies") as warned:
        list(predictor.stream([path, path], num_workers=1))
    assert sum("varies" in str(each.message) for each in warned) == 2


@pytest.mark.slow
def test_stream_memory_is_flat_over_ten_thousand_videos(predictor):
    def sources():
        yield from (np.full((4, 16, 16, 3), number % 256, np.uint8) for number in range(10_000))

    process, sizes = psutil.Process(), []
    for number, _ in enumerate(predictor.stream(sources(), num_workers=1)):
        if number in (1000, 9999):
            sizes.append(process.memory_info().rss)
    assert sizes[1] - sizes[0] < 20 << 20


SPAWNED = """
import multiprocessing, sys
import clipvid

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    predictor = clipvid.Predictor(clipvid.from_pretrained(sys.argv[1]))
    for item in predictor.stream(sys.argv[2:], num_workers=2):
        print(item.source, item.predictions[0]["label"])
"""


@pytest.mark.slow
def test_stream_runs_with_spawned_workers(saved, predictor, videos, tmp_path):
    (tmp_path / "spawned.py").write_text(SPAWNED)
    command = [sys.executable, str(tmp_path / "spawned.py"), str(saved), *videos[:3]]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"{video} {predictor(video)[0]['label']}" for video in videos[:3]]


def test_pipeline_batches_clips(saved, videos):
    classify = pipeline("video-classification", model=str(saved), device="cpu")
    sizes = []
    classify.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values_videos"])), with_kwargs=True
    )
    classify(videos[:5], batch_size=2)
    assert sizes == [2, 2, 1]


# clipvid predict --output


def predict(args: list[str]) -> None:
    commands.run("predict", args)


def wait_for_lines(path: Path, count: int, worker: Worker) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, worker.said
        assert worker.process.is_alive(), worker.said
        time.sleep(0.005)


def test_killed_run_continues_its_file(saved, videos, tmp_path):
    folder, out = tmp_path / "videos", tmp_path / "out" / "lines.jsonl"
    folder.mkdir()
    for number in range(60):
        shutil.copy(videos[number % len(videos)], folder / f"{number:02d}.mp4")
    args = ["--model", str(saved), "--batch_size", "1", "--num_workers", "1", str(folder)]
    expected = run(*args)[1]
    worker = Worker(tmp_path / "log", {}, predict, [*args, "--output", str(out)])
    wait_for_lines(out, 5, worker)
    worker.signal("SIGKILL")
    worker.process.join()
    done = read(out)
    assert 5 <= len(done) < 60
    with out.open("a") as file:
        file.write('{"video": "cut')
    for line in done:  # would fail if they were read again
        Path(line["video"]).write_bytes(b"no video")
    code, lines, err = run(*args, "--output", str(out))
    said = [line for line in err.splitlines() if not line.endswith(" left")]  # progress, on a busy machine
    assert (code, lines, said) == (0, [], [])
    same_lines(read(out), expected)


def test_failed_videos_are_tried_again_and_lines_are_in_order(saved, videos, tmp_path):
    names = [tmp_path / f"{number}.mp4" for number in range(4)]
    for name, video in zip(names, videos[: len(names)], strict=True):
        shutil.copy(video, name)
    names[1].write_bytes(b"no video")
    out = tmp_path / "lines.jsonl"
    args = ["--model", str(saved), str(tmp_path), "--output", str(out)]
    code, _, err = run(*args)
    assert (code, len(err.splitlines())) == (1, 1)
    assert [line["video"] for line in read(out)] == [str(names[0]), *map(str, names[2:])]
    shutil.copy(videos[1], names[1])
    assert run(*args)[0] == 0
    assert [line["video"] for line in read(out)] == list(map(str, names))


def test_file_of_other_settings_is_refused(saved, videos, tmp_path):
    out = tmp_path / "lines.jsonl"
    args = ["--model", str(saved), videos[0], "--output", str(out)]
    assert run(*args)[0] == 0
    content = out.read_bytes()
    code, _, err = run(*args, "--views", "2")
    assert code == 1
    assert f"--output {out} has predictions with other settings (views)" in err
    (tmp_path / "lines.jsonl.settings.json").unlink()
    assert "is missing or damaged" in run(*args)[2]
    assert out.read_bytes() == content
    other = tmp_path / "other.jsonl"
    shutil.copy(out.with_name("lines.jsonl"), other)
    assert run("--model", str(saved), videos[0], "--output", str(tmp_path / "new.jsonl"))[0] == 0
    (tmp_path / "new.jsonl").write_text("a line\n")
    code, _, err = run("--model", str(saved), videos[0], "--output", str(tmp_path / "new.jsonl"))
    assert (code, "a line is not a prediction" in err) == (1, True)


@pytest.mark.parametrize("to_file", [True, False])
def test_two_processes_share_the_videos(saved, videos, tmp_path, to_file):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    out = tmp_path / "lines.jsonl"
    args = ["--model", str(saved), "--num_workers", "1", *videos[:3], str(broken), *videos[3:]]
    code, expected, _ = run(*args)
    workers = together(2, tmp_path, predict, [*args, *(["--output", str(out)] if to_file else [])])
    assert [worker.ended() for worker in workers] == [code, code] == [1, 1]
    said = [worker.said for worker in workers]
    assert sum(text.count("broken.mp4: not a readable video") for text in said) == 1
    lines = read(out) if to_file else [json.loads(line) for line in said[0].splitlines() if line.startswith("{")]
    same_lines(lines, expected)
    assert '{"video"' not in said[1]
    assert not list(tmp_path.glob("*.part-*"))


def test_parts_of_a_killed_run_continue_on_one_process(saved, videos, tmp_path):
    out = tmp_path / "lines.jsonl"
    args = ["--model", str(saved), *videos]
    expected = run(*args)[1]
    assert run(*args, "--output", str(out))[0] == 0
    lines = out.read_text().splitlines(keepends=True)
    out.rename(tmp_path / "lines.jsonl.part-0")
    (tmp_path / "lines.jsonl.part-0").write_text("".join(lines[:3:2]))
    (tmp_path / "lines.jsonl.part-1").write_text(lines[1] + lines[3][:9])
    assert run(*args, "--output", str(out))[0] == 0
    same_lines(read(out), expected)
    assert not list(tmp_path.glob("*.part-*"))


def test_standard_input_needs_one_process(saved, tmp_path):
    workers = together(2, tmp_path, predict, ["--model", str(saved), "-"])
    assert [worker.ended() for worker in workers] == [1, 1]
    assert "- (standard input) needs a single process" in workers[0].said
