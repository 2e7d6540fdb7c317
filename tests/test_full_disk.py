"""Every writer on a full disk: one line for the user, and existing files stay intact."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clipvid.commands import exit_cleanly
from clipvid.data.lists.samples import Sample
from clipvid.data.lists.tables import write_without
from clipvid.data.manifest import ClassInfo, Manifest
from clipvid.data.synthetic.encoding import write_video
from clipvid.evaluation.loop import PredictionCache, ViewScores
from clipvid.evaluation.results import ConditionScores, write_predictions
from clipvid.files import failed_write, write_json, write_text
from clipvid.hub.card import write_card
from clipvid.inference.predictor import Timeline
from clipvid.inference.timeline import write_timeline
from clipvid.runs.config_files import copy_configs
from clipvid.runs.lock import locked
from clipvid.runs.output_folder import prepare_output_dir
from clipvid.training.checkpoint import Checkpoint, load_newest, save_checkpoint
from clipvid.training.config import FinetuneConfig

FULL = r"File too large|No space left"
resource = pytest.importorskip("resource", reason="limits on the size of files are POSIX")


class Disk:
    """Folder with a switch that makes every write to it fail."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        self.limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self.limit[1]))

    def empty(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limit)


class RealDisk(Disk):
    """File system of 32 MiB."""

    def fill(self) -> None:
        with (self.folder.parent / "junk").open("wb", buffering=0) as file:
            for size in (2**16, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def empty(self) -> None:
        (self.folder.parent / "junk").unlink()


@pytest.fixture(params=["limited", "full"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "limited":
        yield Disk(tmp_path / "disk")
        return
    root = tmp_path / "mounted"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(root)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can be mounted by root on Linux only")
    try:
        yield RealDisk(root / "disk")
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


def scores(value: float) -> ViewScores:
    videos, views, classes = 300, 2, 3
    return ViewScores(
        torch.arange(videos),
        torch.zeros(videos, dtype=torch.long),
        torch.ones(videos, dtype=torch.bool),
        torch.full((videos, views, classes), float(value)),
    )


def checkpoint(folder: Path, value: int) -> None:
    tensors = {"a": torch.full((300, 300), float(value))}
    save_checkpoint(folder, Checkpoint({"model": tensors}, {"optimizer": tensors}, {"step": value}), keep=3)


def predictions(folder: Path, value: int) -> None:
    manifest = Manifest(
        tuple(Sample(f"{n}.mp4", 0) for n in range(300)), tuple(ClassInfo(n, str(n)) for n in range(3)), folder
    )
    write_predictions(
        folder / "p.parquet", [ConditionScores("all", "forward", "key", manifest, scores(value))], "logits"
    )


def fixed_list(folder: Path, value: int, suffix: str) -> None:
    source = folder.parent / f"list{suffix}"
    rows = [("a.mp4", 0), ("b.mp4", 0), ("c.mp4", 1)]
    if suffix == ".parquet":
        pq.write_table(pa.table({"path": [path for path, _ in rows], "label": [label for _, label in rows]}), source)
    elif suffix == ".json":
        source.write_text(json.dumps([{"path": path, "label": label} for path, label in rows]))
    else:
        separator = "," if suffix == ".csv" else " "
        lines = rows if suffix == ".txt" else [("path", "label"), *rows]
        source.write_text("".join(f"{path}{separator}{label}\n" for path, label in lines))
    folder.mkdir(exist_ok=True)
    write_without(source, [2 + value], folder / f"fixed{suffix}")


def video(folder: Path, value: int) -> None:
    write_video(folder / "v.mp4", np.random.default_rng(value).integers(0, 255, (8, 64, 64, 3), np.uint8), 8)


def timeline(folder: Path, value: int) -> None:
    points = Timeline(torch.arange(20).tolist(), torch.full((20, 2), value / 3))
    write_timeline(folder, "v.mp4", points, ["a", "b"], 1.0, 1.0, 2)


WRITERS: dict[str, Callable[[Path, int], object]] = {
    "checkpoint": checkpoint,
    "json": lambda folder, value: write_json(folder / "a.json", [value] * 300),
    "text": lambda folder, value: write_text(folder / "a.txt", f"{value}\n" * 300),
    "run.yaml": lambda folder, value: prepare_output_dir(folder / str(value), FinetuneConfig(seed=value)),
    "predictions": predictions,
    "scored batches": lambda folder, value: PredictionCache(folder, str(value)).write(scores(value)),
    "timeline": timeline,
    "video": video,
    "list.csv": lambda folder, value: fixed_list(folder, value, ".csv"),
    "list.txt": lambda folder, value: fixed_list(folder, value, ".txt"),
    "list.json": lambda folder, value: fixed_list(folder, value, ".json"),
    "list.parquet": lambda folder, value: fixed_list(folder, value, ".parquet"),
    "configs": lambda folder, value: copy_configs(folder / str(value)),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_writer(disk: Disk, write: Callable[[Path, int], object], capsys: pytest.CaptureFixture[str]) -> None:
    """Write, fail to overwrite, and overwrite once there is space."""
    write(disk.folder, 1)
    before = contents(disk.folder)
    assert before
    disk.fill()
    try:
        with pytest.raises(SystemExit) as end, exit_cleanly("clipvid test"):
            write(disk.folder, 2)
    finally:
        disk.empty()
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    if isinstance(disk, RealDisk):
        assert "No space left on device" in line
        assert "start the same command again" in line
    else:
        assert "File too large" in line
    assert contents(disk.folder) == before
    write(disk.folder, 2)
    assert contents(disk.folder) != before


@pytest.mark.parametrize("writer", WRITERS)
def test_full_disk_is_one_line_and_keeps_files(disk: Disk, writer: str, capsys) -> None:
    check_writer(disk, WRITERS[writer], capsys)


def test_full_disk_keeps_saved_model_and_card(disk: Disk, make_model, capsys) -> None:
    models = [make_model("ila", labels=["a", "b"]), make_model("ila", labels=["c", "d"])]
    check_writer(disk, lambda folder, value: models[value - 1].save_pretrained(folder), capsys)
    (disk.folder / "README.md").unlink(missing_ok=True)

    disk.fill()
    try:
        with pytest.raises(SystemExit), exit_cleanly("clipvid test"):
            write_card(disk.folder)
    finally:
        disk.empty()
    assert not (disk.folder / "README.md").exists()
    write_card(disk.folder)


def test_previous_checkpoint_is_used_after_full_disk(disk: Disk) -> None:
    checkpoint(disk.folder, 1)
    disk.fill()
    try:
        with pytest.raises(OSError, match=FULL):
            checkpoint(disk.folder, 2)
    finally:
        disk.empty()
    assert load_newest(disk.folder)[1].progress["step"] == 1
    checkpoint(disk.folder, 2)
    assert load_newest(disk.folder)[1].progress["step"] == 2


def test_a_full_disk_leaves_no_lock(disk: Disk) -> None:
    disk.folder.mkdir()
    disk.fill()
    try:
        with pytest.raises(OSError, match=FULL), locked(disk.folder):
            pass
    finally:
        disk.empty()
    assert not contents(disk.folder)
    with locked(disk.folder):
        pass


def test_torch_save_on_full_disk_is_one_line(disk: Disk, capsys) -> None:
    disk.folder.mkdir()
    disk.fill()
    try:
        with pytest.raises(SystemExit), exit_cleanly("clipvid test"):
            torch.save(torch.zeros(2**24), disk.folder / "a.pt")
    finally:
        disk.empty()
    (line,) = capsys.readouterr().err.splitlines()
    assert "disk full" in line or "Free some space" in line


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), KeyError("a"), ValueError("I/O error"), OSError(2, "no")]
)
def test_other_errors_are_not_failed_writes(error: Exception) -> None:
    assert failed_write(error) is None
