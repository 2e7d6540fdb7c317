"""Command line as a process: fast start, no error for a closed pipe, plugins."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from processes import Worker, all_end_well

from clipvid.commands import INTERRUPTED, READER_LEFT, VERBS, main, split_plugins
from clipvid.runs.config_files import config_path, copy_configs

HEAVY = "accelerate", "datasets", "matplotlib", "open_clip", "peft", "torchmetrics", "torchvision", "transformers"
LOADED = "\nimport sys\nprint(*sorted({name.partition('.')[0] for name in sys.modules}), sep='\\n')"
CALL = "from clipvid.commands import main\ntry: main({args!r})\nexcept SystemExit as end: assert not end.code, {args!r}"
PLUGIN = '''
from dataclasses import dataclass
import torch
from clipvid.adapters import ADAPTERS, Adapter, AdapterConfig, AdapterOutput


@dataclass(frozen=True)
class GainConfig(AdapterConfig):
    """A gain per channel."""


class Gain(Adapter):
    Config = GainConfig
    place = "before_attention"

    def __init__(self, config, block):
        super().__init__(config, block)
        self.gain = torch.nn.Parameter(torch.zeros(block.width))

    def forward(self, x, *args, **kwargs):
        return AdapterOutput(x * self.gain)


ADAPTERS["gain"] = Gain
'''


def python(*args: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, **options)


def modules_after(*command_lines: list[str]) -> set[str]:
    """Return the top-level modules that a process has imported after some command lines."""
    run = python("-c", "\n".join(CALL.format(args=args) for args in command_lines) + LOADED)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines())


def test_help_imports_no_torch():
    assert "torch" not in modules_after(["--help"])


def test_help_of_verbs_imports_nothing_slow_but_torch():
    assert not modules_after(*([verb, "--help"] for verb in VERBS)) & set(HEAVY)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_script(verb):
    # A script named as a module of Python would hide it from all scripts.
    name = {"inspect": "inspect_data"}.get(verb, verb.replace("-", "_"))
    text = (REPOSITORY / "scripts" / f"{name}.py").read_text()
    assert f'run("{verb}")' in text


def test_module_and_script_are_equivalent():
    spoken = python("-m", "clipvid", "push", "--help")
    assert spoken.returncode == 0
    assert python(str(REPOSITORY / "scripts/push.py"), "--help").stdout == spoken.stdout


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", [["--help"], ["push", "--help"]])
def test_broken_pipe_is_not_an_error(args, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        command = [sys.executable, "-m", "clipvid", *args]
        env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        run = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False, env=env)
    assert run.stderr == ""
    assert run.returncode in ((READER_LEFT, 0) if unbuffered else (READER_LEFT,))  # argparse hides the error then


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_in_one_line(tmp_path: Path):
    waiting = tmp_path / "waiting_plugin.py"
    waiting.write_text("import pathlib, time\npathlib.Path(__file__).with_name('ready').touch()\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "clipvid", "push", "--plugin", str(waiting)]
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.split("\n")) == (INTERRUPTED, ["", "clipvid push: interrupted", ""])


def test_plugins_are_parsed_at_any_position():
    words = ["--plugin", "a", "predict", "--plugin=b.py", "x", "--", "--plugin", "c"]
    assert split_plugins(words) == (["predict", "x", "--", "--plugin", "c"], ["a", "b.py"])


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("no_such_module", "the module does not exist"),
        ("no_such_file.py", "the file does not exist"),
        ("", "expected the name of a module"),
        ("json.py", "rename the file"),
    ],
)
def test_a_plugin_that_cannot_be_imported_is_named(plugin, message, tmp_path):
    (tmp_path / "json.py").touch()
    run = python("-m", "clipvid", "push", f"--plugin={plugin}", cwd=tmp_path, env=os.environ | {"PYTHONSAFEPATH": "1"})
    assert run.returncode == 1
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1


def command_in(folder: Path, args: list[str]) -> None:
    os.chdir(folder)
    main(args)


def test_an_adapter_from_a_file_is_trained_saved_and_loaded(tmp_path: Path):
    (tmp_path / "gain_adapter.py").write_text(PLUGIN)
    world = ["objects=[ball, box]", "motions=[horizontal]", "num_frames=4", "image_size=32"]
    world += ["train_per_class=2", "val_per_class=1", "test_per_class=1"]
    options = ["--model.adapter=gain", "--model.num_frames=2", "--data.root=world", "--output_dir=run"]
    options += ["--training.epochs=1", "--training.per_device_train_batch_size=8", "--training.report_to=none"]
    options += ["--selection.folds=0", "--data.num_workers=0", *(f"--data.world.{option}" for option in world)]
    plugin = ["--plugin", "gain_adapter.py"]
    all_end_well([Worker(tmp_path / "trained", {}, command_in, tmp_path, [*plugin, "finetune", *options])])
    video = next((tmp_path / "world").rglob("*.mp4"))
    predict = ["predict", "--model", "run", str(video)]
    with_plugin = Worker(tmp_path / "with", {}, command_in, tmp_path, [*predict, *plugin])
    all_end_well([with_plugin])
    assert '"label"' in with_plugin.said
    without = Worker(tmp_path / "without", {}, command_in, tmp_path, predict)
    assert without.ended() == 1
    assert "unknown adapter 'gain'" in without.said
    assert "install that package or add --plugin MODULE" in without.said


def test_configs_are_listed_and_found_by_name(tmp_path):
    run = python("-m", "clipvid", "configs", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    names = run.stdout.split()
    assert set(names) == {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "configs").rglob("*.yaml")}
    assert all(config_path(name).is_file() for name in names)


def test_local_config_precedes_packaged_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    own = Path("configs/demo.yaml")
    own.write_text("seed: 1\n")
    assert config_path("configs/demo.yaml") == own
    assert config_path("configs/nothing.yaml") == Path("configs/nothing.yaml")


def test_configs_are_copied_and_edited_ones_are_kept(tmp_path):
    count = copy_configs(tmp_path / "mine")
    assert count == sum(path.is_file() for path in (REPOSITORY / "configs").rglob("*"))
    edited = tmp_path / "mine" / "demo.yaml"
    edited.write_text("seed: 1\n")
    with pytest.raises(FileExistsError, match=r"demo\.yaml has other content"):
        copy_configs(tmp_path / "mine")
    assert edited.read_text() == "seed: 1\n"
