"""Processes that read mutated files under watch; `test_fuzz.py` says which files and how many.

As a script it is such a process: it gets the folder of valid files and a folder to work in, then a case a line.
"""

import json
import os
import random
import select
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from mutations import (
    Mutation,
    mutate_bytes,
    mutate_json,
    mutate_json_lines,
    mutate_lines,
    mutate_media,
    mutate_safetensors,
    mutate_tar,
    mutate_yaml,
)

REPOSITORY = Path(__file__).parent.parent
SECONDS = 10
PATIENCE = 6  # on a machine with other work
BYTES = 1 << 30
MAX_MESSAGE = 5000  # characters
MAX_LINES = 8  # of the error about a list, which shows the first few wrong lines


class Case(NamedTuple):
    """One mutated file, the same wherever it is made."""

    target: str
    seed: int
    index: int

    def content(self, files: Path) -> tuple[str, bytes]:
        """Return the name of a file of the target, and what it becomes."""
        chance = random.Random(f"{self.seed} {self.target} {self.index}")
        target = TARGETS[self.target]
        name = chance.choice(target.names)
        mutation = target.mutations.get(Path(name).suffix, mutate_bytes)
        return name, mutation((files / name).read_bytes(), chance)


@dataclass(frozen=True)
class Target:
    """Files of one kind, and the function that reads one of them in a folder with all files.

    names: paths in the folder. mutations: by suffix; `mutate_bytes` for others.
    """

    names: tuple[str, ...]
    read: Callable[[Path, str], object]
    mutations: dict[str, Mutation]


def read_model(folder: Path, name: str) -> None:
    """Load a model folder."""
    import clipvid

    clipvid.from_pretrained(folder / Path(name).parts[0])


def read_processor(folder: Path, name: str) -> None:
    """Load the preprocessing of a model folder for clipvid and for transformers, and its config for transformers."""
    from clipvid.data.preprocessing import Preprocessing
    from clipvid.hub.strict import read_json
    from clipvid.inference.auto_classes import ClipVidConfig, ClipVidVideoProcessor

    if name.endswith("config.json") and not name.endswith("preprocessor_config.json"):
        ClipVidConfig.from_pretrained(folder / Path(name).parent)
        return
    ClipVidVideoProcessor.from_pretrained(folder / Path(name).parent)
    Preprocessing.from_record(read_json(folder / name), name)


def read_weights(folder: Path, name: str) -> None:
    """Read the tensors of a file, and compare sizes with their shapes."""
    from clipvid import InputError
    from clipvid.hub.strict import check_sizes, read_tensors

    read_tensors(folder / name)
    with suppress(InputError):
        check_sizes({"width": 300}, [folder / name], folder / name)


def read_class_list(folder: Path, name: str) -> None:
    """Read a class list and use its names."""
    from clipvid.data.lists.classes import mirror_map, read_classes
    from clipvid.model.prompts import TEMPLATES, class_prompts

    names = [info.name for info in read_classes(folder / name).classes]
    mirror_map(names)
    class_prompts(names, TEMPLATES["single"])


def read_list(folder: Path, name: str) -> None:
    """Read a list of videos and fetch the first of them."""
    from clipvid.data.manifest import load_manifest
    from clipvid.data.reader import VideoError

    manifest = load_manifest(folder / "lists", Path(name).name, "classes.txt")
    assert manifest.hash
    try:
        manifest.video(0)
    except (OSError, ValueError) as error:  # one bad video for every caller
        raise VideoError(name, str(error)) from None


def read_video(folder: Path, name: str) -> None:
    """Read a few frames of a video, and of its part."""
    from clipvid.data.reader import open_video

    path = folder / name
    with open_video(path.parent if name.startswith("images") else path) as video:
        video.read([0, len(video) // 2, len(video) - 1])
        if path.suffix == ".mp4":
            video.frames_between(0.2, 0.9)


_PARSERS: list[Any] = []


def read_run_config(folder: Path, name: str) -> None:
    """Parse a config of a run, or compare it with the one that a run has recorded."""
    from jsonargparse import ArgumentParser

    from clipvid.runs import config_files
    from clipvid.runs.output_folder import check_output
    from clipvid.training.config import FinetuneConfig

    if name.startswith("run/"):
        check_output(folder / "run", FinetuneConfig())
        return
    if not _PARSERS:  # it takes longer to build than to use
        parser: ArgumentParser = config_files._build_parser(FinetuneConfig, "config", False)
        parser.exit_on_error = False
        _PARSERS.append(parser)
    config_files._build_parser = lambda *_: _PARSERS[0]
    config_files.read_config(FinetuneConfig, folder / name)


_JSON = {".json": mutate_json, ".safetensors": mutate_safetensors}
_LISTS = {".json": mutate_json, ".jsonl": mutate_json_lines, ".tar": mutate_tar, ".parquet": mutate_bytes}
_TEXT = dict.fromkeys((".txt", ".csv", ".tsv"), mutate_lines)
_MEDIA = ("mp4", "fragments.mp4", "mov", "mkv", "webm", "avi", "ts", "flv", "gif", "mpg", "h264", "ogv", "wmv")
_IMAGES = ("png", "jpg", "bmp", "webp", "tiff", "ppm")
_PIXELS = "video_preprocessor_config.json"

TARGETS = {
    "model": Target(
        ("model/config.json", "model/backbone/open_clip_config.json", f"model/{_PIXELS}", "lora/config.json"),
        read_model,
        _JSON,
    ),
    "weights": Target(("model/model.safetensors", "lora/lora/adapter_model.safetensors"), read_weights, _JSON),
    "processor": Target((f"model/{_PIXELS}", f"model/{_PIXELS}", "lora/config.json"), read_processor, _JSON),
    "classes": Target(
        tuple(f"classes/{name}" for name in ("names.txt", "numbered.txt", "table.csv", "names.json", "ids.json")),
        read_class_list,
        _LISTS | _TEXT,
    ),
    "lists": Target(
        tuple(f"lists/list.{suffix}" for suffix in ("txt", "csv", "tsv", "json", "jsonl", "parquet")),
        read_list,
        _LISTS | _TEXT,
    ),
    "shards": Target(("lists/shard.tar",), read_list, _LISTS),
    "videos": Target(
        tuple(f"videos/{name if '.' in name else f'v.{name}'}" for name in _MEDIA),
        read_video,
        {Path(f"v.{name}").suffix: mutate_media for name in _MEDIA},
    ),
    "images": Target(
        tuple(f"images/{suffix}/1.{suffix}" for suffix in _IMAGES),
        read_video,
        {f".{suffix}": mutate_media for suffix in _IMAGES},
    ),
    "configs": Target(("config.yaml", "config.yaml", "run/run.yaml"), read_run_config, {".yaml": mutate_yaml}),
}


def _answers(process: subprocess.Popen[bytes]) -> bool:
    """Return True if the process answers within `SECONDS` of processor time, and within `PATIENCE` times as long."""
    usage = psutil.Process(process.pid)
    start = sum(usage.cpu_times()[:2])
    for _ in range(PATIENCE):
        if select.select([process.stdout], [], [], SECONDS)[0]:
            return True
        if sum(usage.cpu_times()[:2]) - start > SECONDS:
            return False
    return False


class Reader:
    """A process that reads cases one after another. `run` starts it, and starts it again after it was lost."""

    def __init__(self, files: Path, work: Path) -> None:
        self.files, self.work = files, work
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, case: Case) -> tuple[bool, str | None]:
        """Return whether the file was read, and a problem or None. Time is judged twice."""
        read, problem = self._run(case)
        return self._run(case) if problem is not None and problem.startswith("takes") else (read, problem)

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None

    def _run(self, case: Case) -> tuple[bool, str | None]:
        process = self.process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(case).encode() + b"\n")
        process.stdin.flush()
        if not _answers(process):
            self.close()
            return False, f"takes more than {SECONDS} s"
        answer = process.stdout.readline()
        if not answer:
            code = process.wait()
            self.close()
            return False, f"ends the process with code {code}: {(self.work / 'log').read_text()[-500:]}"
        read, problem, is_lost = json.loads(answer)
        if is_lost:
            self.close()
        return read, problem

    def _start(self) -> subprocess.Popen[bytes]:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        with (self.work / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(self.files), str(self.work)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.work / "hub"), "OMP_NUM_THREADS": "1"},
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n", (self.work / "log").read_text()[-3000:]
        return self.process


class Watch:
    """Record of reads, writes and started processes outside of a folder while a process reads a case."""

    READABLE = (sys.prefix, sys.base_prefix, str(REPOSITORY), "/usr/", "/proc/", "/sys/", "/dev/null", "/dev/urandom")
    WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    CHANGES = (
        *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
        *("os.chown", "os.utime", "os.setxattr", "shutil.rmtree", "shutil.move", "shutil.copyfile"),
    )
    REFUSED = (
        *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.kill"),
        *("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "urllib.Request", "ctypes.dlopen"),
    )

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.seen: list[str] = []
        self.active = False
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in self.REFUSED:
            self.seen.append(f"{event} {args[:2]!r}")
        elif event == "open":
            self._check(event, args[0], bool(args[2] & self.WRITING) if isinstance(args[2], int) else False)
        elif event in self.CHANGES:
            for path in args[: 2 if event in ("os.rename", "os.link") else 1]:
                self._check(event, path, True)
        elif event in ("os.listdir", "os.scandir"):
            self._check(event, args[0], False)

    def _check(self, event: str, path: Any, changes: bool) -> None:
        if not isinstance(path, str | bytes | os.PathLike):  # a descriptor that is open already
            return
        active, self.active = self.active, False
        real = os.path.realpath(os.fsdecode(path))
        self.active = active
        allowed = () if changes else self.READABLE
        if not f"{real}/".startswith((f"{self.folder}/", *allowed)) and real != os.devnull:
            self.seen.append(f"{event} {real!r}{' to change it' if changes else ''}")


def peak_memory() -> int:
    """Return the highest resident memory of this process since it was started, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status[status.index("VmHWM:") :].split()[1]) * 1024


def judge(case: Case, files: Path, folder: Path, watch: Watch, baseline: int) -> tuple[bool, str | None, bool]:
    """Read one case. Return whether it was read, a problem or None, and whether the process must be replaced."""
    from clipvid import ClipvidError

    name, content = case.content(files)
    path, problem, read = folder / name, None, False
    path.write_bytes(content)
    watch.active = True
    try:
        TARGETS[case.target].read(folder, name)
        read = True
    except (ClipvidError, FileNotFoundError) as error:
        problem = wrong_message(str(error))
    except BaseException as error:
        problem = f"{type(error).__name__}: {str(error)[:300]}"
    watch.active = False
    path.write_bytes((files / name).read_bytes())
    if watch.seen:
        problem = f"touches {', '.join(watch.seen[:3])}"
        watch.seen.clear()
    has_grown = peak_memory() > baseline + BYTES
    if has_grown:
        problem = f"takes the process from {baseline >> 20} to {peak_memory() >> 20} MiB"
    return read, problem, has_grown


def wrong_message(message: str) -> str | None:
    """Return what is wrong with the message of an error for users, or None."""
    lines = message.splitlines()
    lists_several = bool(lines) and lines[-1].startswith(("Correct the list", "Drop the repeated"))
    if not 1 <= len(lines) <= (MAX_LINES if lists_several else 1):
        return f"{len(lines)} lines of message: {message[:300]!r}"
    return f"a message of {len(message)} letters: {message[:100]!r}" if len(message) > MAX_MESSAGE else None


def main(files: Path, work: Path) -> None:
    """Read the cases that standard input names, and answer each with a line."""
    cases, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    folder = shutil.copytree(files, work / "files")
    os.chdir(folder)
    os.environ["CLIPVID_CACHE"] = str(folder / "cache")
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    for target in TARGETS.values():  # imports, caches and first allocations are not those of a case
        for name in dict.fromkeys(target.names):
            target.read(folder, name)
    watch = Watch(folder)
    baseline = peak_memory()
    answers.write("ready\n")
    for line in cases:
        answers.write(json.dumps(judge(Case(*json.loads(line)), files, folder, watch, baseline)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
