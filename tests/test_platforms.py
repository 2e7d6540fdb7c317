"""Loaders and checkpoints on systems with fewer signals and start methods, simulated by removing them."""

import errno
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipvid import files
from clipvid.data.synthetic.world import WorldConfig, build_world
from clipvid.training.checkpoint import Checkpoint, load_newest, save_checkpoint

POSIX = ("SIGUSR1", "SIGUSR2", "sigwaitinfo", "sigwait", "pthread_sigmask", "SIG_BLOCK", "SIGKILL", "SIGHUP")
MISSING = {"linux": (), "macos": ("sigwaitinfo", "sigtimedwait"), "windows": POSIX}
# The names are removed on import, so that processes started by `spawn` lack them too.
SCRIPT = """
import multiprocessing, signal, sys
root, method, missing = sys.argv[1], sys.argv[2], sys.argv[3].split()
for name in missing:
    if hasattr(signal, name):
        delattr(signal, name)
import clipvid.runs.preemption
from clipvid.data.batches import TrainBatches
from clipvid.data.loader import VideoDataset, build_loader
from clipvid.data.manifest import load_manifest
from clipvid.data.sampling import FrameSampling
from clipvid.data.transforms import train_transform

if __name__ == "__main__":
    multiprocessing.set_start_method(method)
    manifest = load_manifest(root, "train.csv", "classes.csv")
    dataset = VideoDataset(manifest, FrameSampling("uniform", 3), train_transform(32), seed=0, training=True)
    loader = build_loader(dataset, TrainBatches(len(dataset), 2, seed=0), 2)
    for _, batch in zip(range(2), loader):
        print(batch["index"].tolist(), batch["frames"].double().sum().item(), flush=True)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = WorldConfig(
        objects=("ball",), motions=("horizontal",), num_frames=4, image_size=32,
        train_per_class=4, val_per_class=1, test_per_class=0,
    )  # fmt: skip
    return build_world(config, tmp_path_factory.mktemp("world") / "world", progress=False)


def load(world: Path, folder: Path, method: str, system: str) -> str:
    """Return the output of two batches by two workers, which must exit by themselves without output."""
    script = folder / "load_batches.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(world), method, " ".join(MISSING[system])]
    path = os.pathsep.join([str(Path(files.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    assert (run.returncode, run.stderr) == (0, ""), run.stderr
    return run.stdout


@pytest.mark.slow
def test_workers_load_the_same_batches_on_every_system(world: Path, tmp_path: Path) -> None:
    methods = multiprocessing.get_all_start_methods()
    systems = [("fork", "linux"), ("fork", "macos"), ("spawn", "windows")]
    outputs = {load(world, tmp_path, method, system) for method, system in systems if method in methods}
    assert len(outputs) == 1
    assert len(outputs.pop().splitlines()) == 2


def save(folder: Path) -> None:
    tensors = {"a": torch.zeros(3)}
    save_checkpoint(folder, Checkpoint({"model": tensors}, {"optimizer": tensors}, {"step": 1}), keep=1)
    assert load_newest(folder)[1].progress["step"] == 1


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_checkpoint_without_folder_flush(tmp_path: Path, monkeypatch, number: int) -> None:
    flush = os.fsync

    def refuse(handle: int) -> None:
        if os.path.isdir(f"/dev/fd/{handle}") or os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        flush(handle)

    monkeypatch.setattr(files.os, "fsync", refuse)
    save(tmp_path)


def test_checkpoint_without_opening_folders(tmp_path: Path, monkeypatch) -> None:
    def refuse(path, *args, **options):
        raise PermissionError(errno.EACCES, "folders cannot be opened", str(path))

    monkeypatch.setattr(files, "_FOLDERS_FLUSH", False)
    monkeypatch.setattr(files.os, "open", refuse)
    save(tmp_path)


def test_failed_folder_flush_is_an_error(tmp_path: Path, monkeypatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "the disk does not answer")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="does not answer"):
        files.flush_folder(tmp_path)


def test_without_a_fork_server_trials_are_spawned(tmp_path: Path, monkeypatch) -> None:
    from clipvid.experiments import parallel

    asked = []
    real = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: asked.append(method) or real(method))
    parallel.run_side_by_side([], 1, None, lambda *args: None)
    assert asked == ["spawn"]


# Other packages look at the name of the system instead, so they are imported before the names are taken away.
WITHOUT_POSIX = """
import multiprocessing.context, os, signal, sys
import datasets, open_clip, peft, torch.distributed.run
from transformers import AutoVideoProcessor, Trainer, pipeline
import clipvid.commands.finetune, clipvid.experiments.python_api
for module in ("grp", "pwd", "resource"):
    sys.modules[module] = None
for owner, names in {
    os: ("fork", "forkpty", "mkfifo"),
    signal: ("SIGHUP", "SIGKILL", "SIGSTOP", "SIGUSR1", "SIGUSR2", "pthread_sigmask", "sigwait", "sigwaitinfo"),
}.items():
    for name in names:
        delattr(owner, name)
for method in ("fork", "forkserver"):
    multiprocessing.context._concrete_contexts.pop(method, None)
multiprocessing.get_all_start_methods = lambda: ["spawn"]
"""


@pytest.mark.slow
def test_suite_is_collected_without_posix(tmp_path: Path) -> None:
    (tmp_path / "without_posix.py").write_text(WITHOUT_POSIX)
    repository = Path(files.__file__).parents[1]
    path = os.pathsep.join([str(tmp_path), str(repository), os.environ.get("PYTHONPATH", "")])
    words = ["-m", "pytest", "-p", "without_posix", "-p", "no:cacheprovider", "--collect-only", "-q", "tests"]
    run = subprocess.run(
        [sys.executable, *words], cwd=repository, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-3000:]
