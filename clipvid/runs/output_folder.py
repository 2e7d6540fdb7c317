"""Config of a run in its output folder, recorded there and compared on resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from clipvid import InputError
from clipvid.files import one_line, write_text
from clipvid.runs.config_files import config_record
from clipvid.runs.yaml_files import read_yaml_text

# Options that may change on resume, since no result depends on them (the content of lists is hashed).
FREE = {
    "data.check_leaks",
    "data.check_videos",
    "data.max_bad_fraction",
    "data.num_workers",
    "data.root",
    "hub.private",
    "hub.push_to_hub",
    "hub.repo_id",
    "hub.revision",
    "output_dir",
    "selection.folds",
    "selection.max_videos",
    "training.cache_features",
    "training.ddp_timeout",
    "training.max_skipped_steps",
    "training.report_to",
    "training.save_steps",
    "training.save_total_limit",
}
# Options that may change for an unfinished run if the clips per step stay the same, which the training loop checks.
SPLIT = {"training.gradient_accumulation_steps", "training.per_device_train_batch_size"}


class OtherRunError(InputError, FileExistsError):
    """Error for an output folder that contains a run with another config or other inputs."""


def check_output(folder: Path, config: Any) -> Any:
    """Return the recorded config of the run in `folder`, or None without a run.

    A finished run may be continued with more `training.epochs`.

    Raises:
        OtherRunError: The run has another config. The message lists the options that differ.
        InputError: The recorded config cannot be read.
    """
    path = folder / "run.yaml"
    if not path.is_file():
        return None
    try:
        recorded = yaml.safe_load(read_yaml_text(path))
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}, the config of the run in {folder}, cannot be read: {one_line(error)}") from error
    finished = (folder / "metrics.json").is_file()
    free = FREE if finished else FREE | SPLIT
    if finished and more_epochs(recorded, config) is not None:
        free = free | {"training.epochs"}
    free = free | getattr(config, "EXTENDABLE", frozenset())
    differing = sorted(
        name for name in config_differences(recorded, config) if name.removeprefix("recipe.") not in free
    )
    if differing:
        raise OtherRunError(
            f"{folder} contains a run with another config ({', '.join(differing[:6])} differ). "
            "Choose another output_dir, or delete this one to start over."
        )
    return recorded


def prepare_output_dir(folder: Path, config: Any) -> None:
    """Make `folder` the output folder of a new or resumed run, and record the config.

    Raises:
        OtherRunError: It contains a run with another config. The message lists the options that differ.
    """
    path, record = folder / "run.yaml", config_record(config)
    if check_output(folder, config) == record:
        return
    write_text(path, yaml.safe_dump(record, sort_keys=False))


def more_epochs(recorded: Any, config: Any) -> int | None:
    """Return the recorded number of epochs if `config` has more, otherwise None."""
    training = recorded.get("training") if isinstance(recorded, dict) else None
    epochs = training.get("epochs") if isinstance(training, dict) else None
    own = getattr(getattr(config, "training", None), "epochs", 0)
    return epochs if isinstance(epochs, int) and epochs < own else None


def config_differences(recorded: Any, config: Any) -> list[str]:
    """Return options that differ between a record and a config. Options missing in the record have their defaults."""
    return _differences(recorded, config_record(config), _default_record(config))


def _default_record(config: Any) -> dict[str, Any]:
    """Return the record of the defaults of a config, with the sections that are None by default but set in `config`."""
    record = config_record(type(config)())
    for item in dataclasses.fields(config):
        section = getattr(config, item.name)
        if record.get(item.name) is None and dataclasses.is_dataclass(section):
            record[item.name] = _default_record(section)
    return record


def _differences(recorded: Any, present: Any, defaults: Any, prefix: str = "") -> list[str]:
    if isinstance(recorded, dict) and isinstance(present, dict):
        defaults = defaults if isinstance(defaults, dict) else {}
        differing = []
        for key in recorded.keys() | present.keys():
            default = defaults.get(key)
            differing += _differences(recorded.get(key, default), present.get(key), default, f"{prefix}.{key}")
        return differing
    return [] if recorded == present else [prefix.lstrip(".")]
