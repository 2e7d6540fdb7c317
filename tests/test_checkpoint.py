"""Checkpoints on disk: complete or absent, and distinguished from damaged ones."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from clipvid.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)


def make(step: int) -> Checkpoint:
    tensors = {"a": torch.full((3, 4), float(step)), "b": torch.tensor(step)}
    optimizer = {
        "optimizer": {"state": {0: {"exp_avg": torch.randn(3, 4)}}},
        "scheduler": {"lr": [0.1]},
        "scaler": None,
    }
    return Checkpoint({"model": tensors, "ema": tensors}, optimizer, {"step": step, "epoch": 1, "history": []})


def test_checkpoint_round_trip_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        path = save_checkpoint(tmp_path, make(step), keep=2)
    assert [actual.name for actual in list_checkpoints(tmp_path)] == ["step_00000002", "step_00000010"]
    loaded, made = load_checkpoint(path), make(10)
    assert loaded.progress == made.progress | {"format_version": 2}
    assert loaded.weights.keys() == {"model", "ema"}
    assert all(torch.equal(loaded.weights["ema"][name], tensor) for name, tensor in made.weights["ema"].items())
    assert loaded.optimizer["optimizer"]["state"][0]["exp_avg"].shape == (3, 4)
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=path, check=True)
    assert load_newest(tmp_path / "nowhere") is None


def test_damaged_checkpoint_falls_back_to_previous(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        path = save_checkpoint(tmp_path, make(step), keep=3)
    content = bytearray((path / "ema.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "ema.safetensors").write_bytes(content)
    (tmp_path / "step_00000002" / "optimizer.pt").unlink()
    with pytest.warns(UserWarning, match="is damaged") as said:
        actual = load_newest(tmp_path)
    assert actual is not None
    assert actual[1].progress["step"] == 1
    texts = [str(warning.message) for warning in said]
    assert "step_00000003 is damaged: ema.safetensors is not what was written" in texts[0]
    assert "step_00000002 is damaged: optimizer.pt" in texts[1]
    assert sorted(path.name for path in tmp_path.glob("damaged_*")) == [f"damaged_step_0000000{n}" for n in (2, 3)]
    save_checkpoint(tmp_path, make(3), keep=2)
    assert load_checkpoint(tmp_path / "step_00000003").progress["step"] == 3


def test_all_checkpoints_damaged_is_an_error(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make(1), keep=2)
    (path / "model.safetensors").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CheckpointError, match=r"all 1 checkpoints of .* are damaged"),
    ):
        load_newest(tmp_path)


def test_failed_write_keeps_older_checkpoints(tmp_path: Path) -> None:
    """The system's limit on the size of a file simulates a full disk, so that writing fails midway."""
    resource = pytest.importorskip("resource")
    save_checkpoint(tmp_path, make(1), keep=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(tmp_path, make(2), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert load_newest(tmp_path)[1].progress["step"] == 1
    save_checkpoint(tmp_path, make(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


@pytest.mark.parametrize(("version", "way_out"), [(1, "train again"), (99, "upgrade clipvid")])
def test_another_format_is_refused_and_left_in_place(tmp_path: Path, version: int, way_out: str) -> None:
    path = save_checkpoint(tmp_path, make(4), keep=1)
    record = json.loads((path / "progress.json").read_text())
    (path / "progress.json").write_text(json.dumps(record | {"format_version": version}))
    with pytest.raises(ValueError, match=f"has format {version}, this clipvid reads format 2: {way_out}") as refused:
        load_newest(tmp_path)
    assert not isinstance(refused.value, CheckpointError)
    assert path.is_dir()


class Evil:
    """Pickle that would execute code."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("owned"),)


def test_checkpoint_never_executes_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save_checkpoint(tmp_path, Checkpoint(make(1).weights, {"optimizer": Evil()}, {"step": 1}), keep=1)
    with pytest.raises(CheckpointError, match="tensors cannot be read"):
        load_checkpoint(path)
    assert not Path("owned").exists()


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Cut, flip, repeat, fill or replace a part."""
    start = chance.randrange(len(content) + 1)
    end = min(len(content), start + chance.choice([1, 1, 8, 64, len(content)]))
    part = content[start:end]
    flipped = bytes(byte ^ (1 << chance.randrange(8)) for byte in part)
    filled = [b"\0" * len(part), b"\xff" * len(part), chance.randbytes(len(part))]
    foreign = [b"{}", b"null", b"1e999", b"[" * 2000]
    replacement = chance.choice([b"", flipped, part * 2, *filled, *foreign])
    return content[:start] + replacement + content[end:]


@pytest.mark.parametrize("count", [300, pytest.param(4000, marks=pytest.mark.slow)])
def test_mutated_checkpoint_is_refused_or_intact(tmp_path: Path, count: int) -> None:
    path = save_checkpoint(tmp_path, make(1), keep=1)
    chance, refused = random.Random(2), 0
    whole = {file.name: file.read_bytes() for file in path.iterdir()}
    for _ in range(count):
        name = chance.choice(sorted(whole))
        content = mutate(whole[name], chance)
        (path / name).write_bytes(content)
        try:
            load_checkpoint(path)
        except ValueError as error:
            refused += 1
            output = str(error)
        else:
            output = str(path)
            assert name == "SHA256SUMS" or content == whole[name]
        assert str(path) in output
        (path / name).write_bytes(whole[name])
    assert refused > count / 4
    shutil.rmtree(path)


@pytest.mark.parametrize("stray", [".ipynb_checkpoints/", "@eaDir/", ".DS_Store", "notes.txt"])
def test_stray_files_do_not_damage_a_checkpoint(tmp_path: Path, stray: str) -> None:
    path = save_checkpoint(tmp_path, make(1), keep=2)
    if stray.endswith("/"):
        (path / stray).mkdir()
    else:
        (path / stray).write_text("x")
    actual = load_newest(tmp_path)
    assert actual is not None
    assert actual[0] == path
