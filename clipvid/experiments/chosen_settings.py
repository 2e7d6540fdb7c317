"""Settings that `clipvid finetune` chooses for a folder or list of videos, from the size of data and machine.

`choose_settings` is a pure function. A value in a config or on the command line always takes precedence, and a run that
is started again keeps its values.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from clipvid.data.drawn_split import without_missing_list
from clipvid.data.lists.sources import FolderSource, ListSource, Source, resolve_source
from clipvid.data.splits import load_splits
from clipvid.evaluation.tables import Table
from clipvid.experiments.selection import ADAPTERS, fold_folder
from clipvid.model.heads import HEADS
from clipvid.runs.yaml_files import read_yaml_text
from clipvid.training.config import FinetuneConfig

TRAIN_BATCH, EVAL_BATCH = "training.per_device_train_batch_size", "training.per_device_eval_batch_size"
EPOCHS, EVAL_EPOCHS = "training.epochs", "training.eval_epochs"
WORKERS, PRECISION, THREADS = "data.num_workers", "training.mixed_precision", "threads"
OPTIONS = (TRAIN_BATCH, EVAL_BATCH, EPOCHS, EVAL_EPOCHS, WORKERS, PRECISION)

_SAME_IN_FOLDS = (EVAL_BATCH, EPOCHS, WORKERS, PRECISION)

_STEPS, _STEPS_OF_NEW_HEAD = 400, 800  # see docs/results/real-video.md
_FEWEST_EPOCHS, _MOST_EPOCHS, _EVALUATIONS = 5, 100, 20
_STEPS_PER_EPOCH, _SMALLEST_BATCH, _CPU_BATCH = 8, 4, 8
_BATCHES = ((30.0, 32), (12.0, 16), (0.0, 8))  # GiB of a device, and clips that fit with a frozen ViT-B/16
_MOST_WORKERS = {"cpu": 4, "gpu": 8}


@dataclass(frozen=True)
class Facts:
    """Facts that settings are chosen from.

    Attributes:
        videos: Training videos.
        cores: Processor cores that all processes of this machine may use.
        processes: Processes of the training.
        device: Kind of the device that computes.
        memory_gib: Memory of a GPU.
        has_bf16: True if a GPU computes in bfloat16.
        fixed_threads: Value of OMP_NUM_THREADS, or None if it is not set.
    """

    videos: int
    cores: int
    processes: int = 1
    device: Literal["cpu", "gpu"] = "cpu"
    memory_gib: float = 0.0
    has_bf16: bool = False
    fixed_threads: int | None = None


@dataclass(frozen=True)
class Setting:
    """Option with its value and the reason for it."""

    name: str
    value: Any
    why: str


def choose_settings(facts: Facts, config: FinetuneConfig, unset: frozenset[str]) -> list[Setting]:
    """Return values of the options in `unset`, and the number of threads, with reasons.

    Args:
        facts: Size of data and machine.
        config: Config with the values of all other options.
        unset: Names of options that the user has not set.
    """
    training, chosen = config.training, dict[str, Setting]()

    def choose(name: str, value: Any, why: str) -> None:
        if name in unset:
            chosen[name] = Setting(name, value, why)

    def value(name: str, own: Any) -> Any:
        return chosen[name].value if name in chosen else own

    most, limit = _device_batch(facts)
    clips, shared = facts.videos * config.data.repeats, facts.processes * training.gradient_accumulation_steps
    choose(TRAIN_BATCH, _train_batch(clips, shared, most), f"{clips} training clips in an epoch, {limit}")
    choose(EVAL_BATCH, most, limit)
    batch = value(TRAIN_BATCH, training.per_device_train_batch_size) * shared
    steps = max(clips // batch, 1)
    is_random = not HEADS[config.model.parts.head.name].needs_text and not training.head_epochs
    needed, reason = (_STEPS_OF_NEW_HEAD, "for a head with random weights") if is_random else (_STEPS, "to learn")
    epochs = min(max(math.ceil(needed / steps), _FEWEST_EPOCHS), _MOST_EPOCHS)
    choose(EPOCHS, epochs, f"{epochs * steps} optimizer steps, {steps} in an epoch; about {needed} are needed {reason}")
    epochs = value(EPOCHS, training.epochs)
    every = math.ceil(epochs / _EVALUATIONS)
    choose(EVAL_EPOCHS, every, f"{math.ceil(epochs / every)} evaluations in {epochs} epochs")
    own_cores = max(facts.cores // facts.processes, 1)
    place = f"{facts.cores} cores for {facts.processes} {'process' if facts.processes == 1 else 'processes'}"
    workers = own_cores // 2 if facts.device == "cpu" else own_cores - 1
    choose(WORKERS, min(max(workers, 1), _MOST_WORKERS[facts.device]), place)
    choose(PRECISION, *_precision(facts))
    threads = Setting(THREADS, own_cores, place)
    if facts.fixed_threads is not None:
        threads = Setting(THREADS, facts.fixed_threads, "OMP_NUM_THREADS is set")
    return [*chosen.values(), threads]


def _device_batch(facts: Facts) -> tuple[int, str]:
    """Return the largest batch to choose, and the reason."""
    if facts.device == "cpu":
        return _CPU_BATCH, f"at most {_CPU_BATCH} on a CPU"
    most = next(size for memory, size in _BATCHES if facts.memory_gib >= memory)
    return most, f"at most {most} on a GPU with {facts.memory_gib:.0f} GiB"


def _train_batch(clips: int, shared: int, most: int) -> int:
    """Return the power of two that gives about `_STEPS_PER_EPOCH` steps. A set that does not fill it has a smaller one.

    Args:
        clips: Clips of an epoch.
        shared: Processes x accumulation steps, which take a batch each.
        most: Largest batch.
    """
    per_step = min(max(clips // (_STEPS_PER_EPOCH * shared), _SMALLEST_BATCH), most)
    return max(min(2 ** int(math.log2(per_step)), clips // shared), 1)


def _precision(facts: Facts) -> tuple[str, str]:
    if facts.device == "cpu":
        return "no", "a CPU gains nothing from half precision"
    return ("bf16", "the GPU computes in bfloat16") if facts.has_bf16 else ("fp16", "the GPU has no bfloat16")


def with_chosen_settings(config: FinetuneConfig, set_by_user: frozenset[str]) -> tuple[FinetuneConfig, list[Setting]]:
    """Return the config with chosen settings, and these.

    They are chosen for a folder by class, and for a list without a config file. Other sources get none.

    Args:
        config: Config as parsed.
        set_by_user: Names of the options on the command line and in config files, with `config` if there is a file.

    Raises:
        InputError: The videos cannot be listed, see `load_splits`.
        OSError: See `load_splits`.
    """
    unset = frozenset(OPTIONS) - set_by_user
    kinds = (FolderSource,) if "config" in set_by_user else (FolderSource, ListSource)
    if not unset or not isinstance(_training_videos(config), kinds):
        return config, []
    train, val = load_splits(without_missing_list(config.data))
    videos = len(train) if config.data.protocol == "holdout" else len(train) + len(val)
    settings = _kept(choose_settings(_facts(videos), config, unset), Path(config.output_dir))
    values = {setting.name: setting.value for setting in settings}
    training = {name.removeprefix("training."): own for name, own in values.items() if name.startswith("training.")}
    data = {name.removeprefix("data."): own for name, own in values.items() if name.startswith("data.")}
    return replace(config, training=replace(config.training, **training), data=replace(config.data, **data)), settings


@contextlib.contextmanager
def chosen_threads(settings: Sequence[Setting]) -> Iterator[None]:
    """Let torch compute in the chosen number of threads inside, and in the former number afterwards."""
    former = torch.get_num_threads()
    for setting in settings:
        if setting.name == THREADS:
            torch.set_num_threads(setting.value)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def settings_table(settings: Sequence[Setting]) -> str:
    """Return the settings as a table with lines of text."""
    rows = [[setting.name, str(setting.value), setting.why] for setting in settings]
    return Table(["setting", "value", "why"], rows, text_columns=3).markdown()


def _training_videos(config: FinetuneConfig) -> Source | None:
    """Return what lists the training videos, or None for videos that are drawn and for a source that is missing."""
    if config.data.world is None:
        with contextlib.suppress(OSError, ValueError):  # reported when the run lists its videos
            return resolve_source(config.data.train, Path(config.data.root))
    return None


def _kept(settings: list[Setting], output: Path) -> list[Setting]:
    """Return the settings with the values of the run in the output folder, if there is one.

    A run that was interrupted in its cross-validation has only the config of the first fold, with another batch size.
    """
    for folder, names in ((output, OPTIONS), (fold_folder(output, 0, ADAPTERS), _SAME_IN_FOLDS)):
        try:
            recorded = yaml.safe_load(read_yaml_text(folder / "run.yaml"))
        except (yaml.YAMLError, ValueError, OSError):
            continue  # no run, or one that cannot be read, which is reported later
        return [_with_recorded(setting, recorded) if setting.name in names else setting for setting in settings]
    return settings


def _with_recorded(setting: Setting, recorded: Mapping[str, Any]) -> Setting:
    section, _, name = setting.name.partition(".")
    values = recorded.get(section) if isinstance(recorded, dict) else None
    if not isinstance(values, dict) or values.get(name, setting.value) == setting.value:
        return setting
    return Setting(setting.name, values[name], "as in the first start of this run")


def _facts(videos: int) -> Facts:
    """Return the facts of this machine."""
    processes, fixed = int(os.environ.get("WORLD_SIZE", 1)), os.environ.get("OMP_NUM_THREADS", "")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    facts = Facts(videos, usable_cores() * max(processes // max(local, 1), 1), processes)
    facts = replace(facts, fixed_threads=int(fixed) if fixed.isdigit() and int(fixed) > 0 else None)
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if on_cpu or not torch.cuda.is_available():
        return facts
    properties = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", 0)))
    memory = properties.total_memory / 2**30
    return replace(facts, device="gpu", memory_gib=memory, has_bf16=torch.cuda.is_bf16_supported())


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the number of cores that this process may use, by its affinity and the quota of its container."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        limit, period = quota.read_text().split()
        cores = min(cores, max(math.floor(int(limit) / int(period)), 1))
    return cores
