"""Wheel in a fresh environment, used from an empty folder."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY
from test_demo import ROWS, smaller

pytest.importorskip("hatchling", reason="the wheel is built with hatchling")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Return the folder of commands of an environment with clipvid's wheel and this environment's packages."""
    folder = tmp_path_factory.mktemp("newcomer")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("clipvid-*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=os.name != "nt")
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder / "env")}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # searched after the environment's packages
    return Path(sysconfig.get_path("scripts", "venv", {"base": str(folder / "env")}))


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(installed / "python"), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=550)


def test_package_and_configs_come_from_the_wheel(installed, tmp_path):
    shown = run(installed, tmp_path / "empty", "-c", "import clipvid; print(clipvid.__file__)")
    assert Path(shown.stdout.strip()).is_relative_to(installed.parent), shown.stderr
    listed = run(installed, tmp_path / "empty", "-m", "clipvid", "configs")
    assert "configs/demo.yaml" in listed.stdout.split(), listed.stderr
    named = ["--config", "configs/demo.yaml", "--print_config"]
    actual = run(installed, tmp_path / "empty", "-m", "clipvid", "finetune", *named)
    assert "output_dir: outputs/demo/ila" in actual.stdout, actual.stderr


PROGRAM = """
import clipvid
world = {"objects": ["ball", "box"], "motions": ["horizontal"], "num_frames": 4, "image_size": 32}
run = clipvid.finetune({
    "output_dir": "run",
    "model": {"adapter": {"name": "ila", "hidden": 16}, "num_frames": 2},
    "data": {
        "root": "world",
        "world": world | {"train_per_class": 2, "val_per_class": 1, "test_per_class": 1},
        "num_workers": 0,
    },
    "training": {"epochs": 1, "per_device_train_batch_size": 8, "report_to": "none"},
    "selection": {"folds": 0},
})
assert 0 <= run.figures["top1"]["value"] <= 1
assert (run.folder / "model.safetensors").is_file()
assert "</html>" in (run.folder / "report.html").read_text(encoding="utf-8")
print(*run.model.labels, sep="\\n")
"""


def test_finetune_from_python_uses_the_wheel(installed, tmp_path):
    done = run(installed, tmp_path / "empty", "-c", PROGRAM)
    assert done.returncode == 0, done.stdout + done.stderr
    labels = [f"{name} moving {way}" for name in ("ball", "box") for way in ("left", "right")]
    assert done.stdout.splitlines()[-4:] == labels


@pytest.mark.slow
def test_demo_runs_from_the_wheel_to_its_report(installed, tmp_path):
    words = [
        f"--adapter={smaller('demo.yaml', tmp_path)}",
        f"--baseline={smaller('demo_mean_pooling.yaml', tmp_path)}",
        f"--output_dir={tmp_path / 'demo'}",
    ]
    done = run(installed, tmp_path / "empty", "-m", "clipvid", "demo", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "demo" / "report.html").read_text()
    assert all(name in page for name in ROWS)
