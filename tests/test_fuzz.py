"""Mutated files are read, or refused in one line: without a crash, a wait, much memory or a touch outside their folder.

A problem is named by its case (target, seed, index). `Case(...).content(files)` makes the file again.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import clip_config, write_clip
from fuzzing import TARGETS, Case, Reader
from mutations import as_yaml
from PIL import Image

from clipvid.runs.config_files import config_record
from clipvid.training.config import FinetuneConfig

# Cases per target of the long test, over 20,000 together; of the quick one, a fiftieth.
COUNTS = {
    "model": 1200, "weights": 2300, "processor": 2500, "classes": 4000, "lists": 5000, "shards": 2500,
    "videos": 2500, "images": 1500, "configs": 1000,
}  # fmt: skip
SEED = 20
# Cases that once found a fault.
FAULTS: list[tuple[str, int, int]] = [
    ("processor", 20, 591), ("model", 20, 550), ("classes", 20, 1556), ("lists", 20, 128), ("lists", 20, 634),
    ("lists", 20, 1140), ("lists", 20, 1322), ("lists", 20, 1502), ("lists", 20, 1586), ("lists", 20, 4270),
]  # fmt: skip


def write_videos(folder: Path) -> None:
    """Write a video of 32x32 pixels in each kind of container."""
    folder.mkdir()
    kinds = {
        "v.mp4": "libx264", "fragments.mp4": "libx264", "v.mov": "mpeg4", "v.mkv": "libx264", "v.webm": "libvpx",
        "v.avi": "mpeg4", "v.ts": "libx264", "v.flv": "flv", "v.gif": "gif", "v.mpg": "mpeg2video", "v.h264": "libx264",
        "v.ogv": "libvpx", "v.wmv": "msmpeg4",
    }  # fmt: skip
    for name, codec in kinds.items():
        options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if name.startswith("frag") else {}
        with av.open(str(folder / name), "w", options=options) as out:
            stream = out.add_stream(codec, rate=25)
            stream.width = stream.height = 32
            stream.pix_fmt = {"gif": "rgb8"}.get(codec, "yuv420p")
            for number in range(6):
                picture = np.full((32, 32, 3), 40 * number, np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(stream.encode())


def write_lists(folder: Path) -> None:
    """Write lists of videos in each format, a shard, and the videos."""
    folder.mkdir()
    rows = [("run/ann_run.mp4", "run"), ("run/bob_run.mp4", "run"), ("side walk/cid.mp4", "side walk")]
    for path, _ in rows:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(b"video")
    (folder / "classes.txt").write_text("run\nside walk\n")
    (folder / "list.txt").write_text("".join(f"{path} {label}\n" for path, label in rows))
    for suffix, sign in (("csv", ","), ("tsv", "\t")):
        lines = [["path", "label", "group", "start", "end"], *([*row, "ann", "0", "1.5"] for row in rows)]
        (folder / f"list.{suffix}").write_text("".join(f"{sign.join(line)}\n" for line in lines))
    objects = [{"path": path, "label": label, "start": 0.5, "caption": "a"} for path, label in rows]
    (folder / "list.json").write_text(json.dumps(objects))
    (folder / "list.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in objects))
    pq.write_table(pa.Table.from_pylist(objects), folder / "list.parquet")
    with tarfile.open(folder / "shard.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        texts = {"a.cls": b"run", "b.json": b'{"label": "side walk", "caption": "b"}', "a.txt": b"caption"}
        for name, content in {"a.mp4": b"video", "b.mp4": b"video" * 30, **texts}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="session")
def files(make_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "files"
    folder.mkdir()
    clip = write_clip(folder.parent / "clip", clip_config(text={"vocab_size": 64}))
    options = {"labels": ["a", "b"], "head": "linear", "folder": clip}
    make_model("ila", pooling="mit", **options).save_pretrained(folder / "model")
    make_model("ata", tune=["head", {"name": "lora", "rank": 2}], **options).save_pretrained(folder / "lora")
    (folder / "classes").mkdir()
    for name, text in {
        "names.txt": "swipe left\nswipe right\nrun\n",
        "numbered.txt": "1 ApplyEyeMakeup\n2 Archery\n",
        "table.csv": "id,name,partner\n1,right,0\n0,left,1\n",
        "names.json": '["a", ["b", "c"]]',
        "ids.json": '{"a": 0, "b": "1"}',
    }.items():
        (folder / "classes" / name).write_text(text)
    write_lists(folder / "lists")
    write_videos(folder / "videos")
    for suffix in ("png", "jpg", "bmp", "webp", "tiff", "ppm"):
        (folder / "images" / suffix).mkdir(parents=True)
        Image.new("RGB", (16, 12), "red").save(folder / "images" / suffix / f"1.{suffix}")
    record = config_record(FinetuneConfig())
    (folder / "run").mkdir()
    for name in ("config.yaml", "run/run.yaml"):
        (folder / name).write_bytes(as_yaml(json.dumps(record).encode()))
    return folder


@pytest.fixture(scope="module")
def reader(files, tmp_path_factory) -> Iterator[Reader]:
    process = Reader(files, tmp_path_factory.mktemp("fuzz") / "work")
    yield process
    process.close()


def check(reader: Reader, cases: list[Case]) -> None:
    """Read cases; fail with those that show a problem. Some must be read and some refused, or nothing was tried."""
    answers = {case: reader.run(case) for case in cases}
    problems = [f"{tuple(case)}: {problem}" for case, (_, problem) in answers.items() if problem is not None]
    assert not problems, f"{len(problems)} of {len(cases)}:\n" + "\n".join(problems[:40])
    if len(cases) > 10:
        assert 0 < sum(read for read, _ in answers.values()) < len(cases)


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_file_is_read_or_refused(reader, target):
    check(reader, [Case(target, SEED, index) for index in range(max(60, COUNTS[target] // 50))])


def test_cases_that_found_faults_are_read_or_refused(reader):
    check(reader, [Case(*case) for case in FAULTS])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_mutated_files_are_read_or_refused(reader, target):
    assert sum(COUNTS.values()) >= 20_000
    check(reader, [Case(target, SEED, index) for index in range(COUNTS[target])])


def test_case_is_the_same_wherever_it_is_made(files):
    for target in TARGETS:
        assert Case(target, 1, 2).content(files) == Case(target, 1, 2).content(files)
        assert len({Case(target, 1, index).content(files) for index in range(20)}) > 10
