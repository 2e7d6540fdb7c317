"""Check of a list or a folder: findings, output files and exit codes."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_loader import grey_video

from clipvid.commands import check_videos
from clipvid.data.lists import tables
from clipvid.data.manifest import Manifest, Sample, load_manifest
from clipvid.data.scan import check_all

NASTY = Path(os.environ.get("CLIPVID_SHARED_DATA", Path(__file__).parents[1] / "../shared/data")) / "nasty"
GOOD, BAD = (
    ("run/a.mp4", "run/b.mp4", "side walk/c.mp4"),
    {"run/bad.mp4": "not a readable", "side walk/no.mp4": "no such"},
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for i, name in enumerate(GOOD):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        grey_video(tmp_path / name, 5 + i)
    (tmp_path / "run/bad.mp4").write_text("text")
    (tmp_path / "classes.txt").write_text("run\nside walk\n")
    return tmp_path


ENTRIES = [
    (path, path.split("/")[0])
    for path in ("run/a.mp4", "run/bad.mp4", "run/b.mp4", "side walk/c.mp4", "side walk/no.mp4")
]


def write_list(file: Path) -> None:
    rows = [{"path": path, "label": label, "caption": "kept"} for path, label in ENTRIES]
    if file.suffix == ".csv":
        file.write_text("path,label,caption\n" + "".join(f"{path},{label},kept\n" for path, label in ENTRIES))
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        file.write_text("\n".join(f"{path} {label}" for path, label in ENTRIES) + "\n")


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".json", ".jsonl", ".parquet"])
def test_list_is_checked_and_fixed(suffix: str, root: Path, tmp_path: Path, capsys):
    file = root / f"list{suffix}"
    write_list(file)
    report = tmp_path / "reports" / "bad.jsonl"
    options = ["--report", str(report), "--num_workers", "2", "--classes", "classes.txt"]
    with pytest.raises(SystemExit) as end:
        check_videos.main([str(file), *options, "--fix", "true"])
    assert end.value.code == 1
    actual = {entry["path"]: entry["reason"] for entry in map(json.loads, report.read_text().splitlines())}
    assert actual.keys() == BAD.keys()
    assert all(BAD[path] in reason for path, reason in actual.items())
    captured = capsys.readouterr()
    assert "5 checked, 2 cannot be read" in captured.out
    assert "run/bad.mp4: not a readable video" in captured.err
    fixed = file.with_name(f"list.fixed{suffix}")
    assert [sample.path for sample in load_manifest(root, fixed.name, "classes.txt").samples] == list(GOOD)
    if suffix == ".parquet":
        assert "caption" in pq.read_schema(fixed).names
    with pytest.raises(SystemExit) as end:
        check_videos.main([str(fixed), *options])
    assert end.value.code == 0
    assert report.read_text() == ""


def test_a_folder_is_checked_and_listed(root: Path, tmp_path: Path, capsys):
    with pytest.raises(SystemExit) as end:
        check_videos.main([str(root), "--report", str(tmp_path / "bad.jsonl"), "--fix", "true"])
    assert end.value.code == 1
    assert "4 checked, 1 cannot be read" in capsys.readouterr().out
    assert (root / "manifest.fixed.csv").read_text().splitlines()[1:] == [
        f"{path},{path.split('/')[0]}" for path in GOOD
    ]
    assert len(load_manifest(root, "manifest.fixed.csv", None)) == 3


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("run/a.mp4 0\n../x.mp4 0\n", [], "is outside of the root"),
        ("run/a.mp4 0\nrun/b.mp4 7\n", ["--classes", "classes.txt"], "label 7 is outside of the 2 classes"),
        ("run/a.mp4 0\nrun/a.mp4 0\n", [], "already listed"),
        ("", [], "no video is listed"),
    ],
)
def test_wrong_lists_are_refused(content: str, options: list[str], message: str, root: Path):
    (root / "list.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        check_videos.main([str(root / "list.txt"), "--report", str(root / "bad.jsonl"), *options])


class Fatal:
    """Video whose decoder crashes the process."""

    def __call__(self) -> bytes:
        os._exit(9)
        raise AssertionError


def test_video_that_crashes_its_process_is_identified(root: Path):
    samples = [Sample(name, 0) for name in GOOD] + [Sample("fatal", 0, media=Fatal())] + [Sample("run/bad.mp4", 0)]
    actual = dict(check_all(Manifest(tuple(samples), (), root), 2, 2))
    assert actual.keys() == set(range(5))
    assert [actual[i] for i in range(4)] == [None, None, None, "its decoder crashes the process"]
    assert "not a readable video" in (actual[4] or "")


def test_video_submitted_to_broken_pool_is_checked(root: Path, monkeypatch):
    submit, calls = ProcessPoolExecutor.submit, 0

    def refuse_once(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise BrokenProcessPool
        return submit(self, *arguments)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", refuse_once)
    actual = dict(check_all(Manifest(tuple(Sample(name, 0) for name in GOOD), (), root), 2, 2))
    assert actual == dict.fromkeys(range(3))


def test_large_list_with_blank_lines_is_fixed(root: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tables, "LARGE_BYTES", 0)
    rows = [f"{path},{label}" for path, label in ENTRIES]
    file = root / "large.csv"
    file.write_text("\n".join(["path,label", rows[0], "", *rows[1:]]) + "\n")
    with pytest.raises(SystemExit):
        check_videos.main([str(file), "--report", str(tmp_path / "bad.jsonl"), "--fix", "true"])
    assert [line.split(",")[0] for line in (root / "large.fixed.csv").read_text().splitlines()] == ["path", *GOOD]


@pytest.mark.skipif(not NASTY.is_dir(), reason="no collection of difficult files at CLIPVID_SHARED_DATA")
def test_difficult_files_are_checked_whole(tmp_path: Path, capfd):
    with pytest.raises(SystemExit):
        check_videos.main([str(NASTY), "--frames", "0", "--report", str(tmp_path / "bad.jsonl")])
    bad = {json.loads(line)["path"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()}
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err
    assert {"made_text.mp4", "made_zero_length.mp4", "made_audio_only.mp4"} <= bad
    assert not bad & {"torchcodec_av1_video.mkv", "torchcodec_gradient.gif", "made_raw_no_container.h264"}
