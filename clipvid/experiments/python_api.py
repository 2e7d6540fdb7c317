"""Python API: `clipvid.finetune` and `clipvid.evaluate`, equivalent to the verbs of these names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized

from clipvid import InputError, RunError
from clipvid.data.drawn_split import SPLIT, describe_split, without_missing_list, write_split
from clipvid.data.manifest import Manifest
from clipvid.data.map_dataset import MapDataset, dataset_manifest
from clipvid.data.splits import check_leaks, load_split, load_splits
from clipvid.evaluation.summary import describe
from clipvid.experiments.chosen_settings import Setting, chosen_threads, settings_table
from clipvid.experiments.config import EvaluateConfig
from clipvid.experiments.cross_validation import finetune_protocol
from clipvid.experiments.finetune_report import read_outcome, write_finetune_report
from clipvid.experiments.protocols import BaseToNovel, Holdout, build_protocol
from clipvid.experiments.run import evaluate_protocol
from clipvid.files import printable
from clipvid.hub.loading import from_pretrained, load_model
from clipvid.model.video_clip import VideoCLIP
from clipvid.runs.config_files import read_config
from clipvid.runs.output_folder import check_output
from clipvid.training.build import build_accelerator
from clipvid.training.config import FinetuneConfig
from clipvid.training.finetune import check_hub, push_run
from clipvid.training.session import end_trackers

ConfigSource: TypeAlias = Mapping[str, Any] | str | os.PathLike[str]


@dataclass(frozen=True)
class Run:
    """Result of a finished run.

    Attributes:
        model: The model in evaluation mode, or None if the protocol trains several.
        figures: Content of `metrics.json`.
        folder: Output folder with all files of the run.
    """

    model: VideoCLIP | None
    figures: dict[str, Any]
    folder: Path


def finetune(
    config: FinetuneConfig | ConfigSource,
    train: MapDataset | None = None,
    val: MapDataset | None = None,
    classes: Sequence[str] | None = None,
) -> Run:
    """Fine-tune on labeled video, like `clipvid finetune`.

    An interrupted run in `output_dir` is resumed, and a finished one is loaded.

    Datasets replace the lists of videos in the config. An item is `{"frames": uint8 [N, 3, H, W], "label": int}`. Its N
    frames are treated as the frames of a video: `data.sampling`, `data.augment` and `data.resize` apply. The content of
    a Dataset cannot be hashed. A resumed run only refuses another length or other classes, so keep the items the same,
    or choose another `output_dir`.

    Args:
        config: A `FinetuneConfig`, a nested mapping with the keys of a YAML config, or the path of a YAML file.
        train: Map-style Dataset for training, or None for `data.train`.
        val: Map-style Dataset for evaluation, or None for `data.val`.
        classes: Class names of the Datasets in the order of the labels.

    Returns:
        The run. Its model is None under `data.protocol: leave_one_group_out`, which trains a model for each group.

    Raises:
        InputError: A config, list of videos or Dataset is invalid, or the folder contains another run.
        RunError: The folder is in use, or the push to the Hub failed.
        OSError: A file is missing or cannot be read.
    """
    config = read_config(FinetuneConfig, config)
    run_finetuning(config, _dataset_manifests(config, train, val, classes))
    folder = Path(config.output_dir)
    is_single = isinstance(build_protocol(config.data.protocol), Holdout)
    return Run(from_pretrained(folder) if is_single else None, _read_figures(folder), folder)


def evaluate(
    subject: EvaluateConfig | ConfigSource | VideoCLIP, config: EvaluateConfig | ConfigSource | None = None
) -> Run:
    """Measure a model on labeled video, like `clipvid evaluate`.

    Args:
        subject: An `EvaluateConfig`, a nested mapping with the keys of a YAML config, the path of a YAML file, or a
            model in memory. A model is saved to `output_dir`/model, and replaces `model` of the config.
        config: The config if `subject` is a model, or None for the defaults.

    Returns:
        The run. Its model is the measured one without `alpha` and `descriptions`, or None if the protocol measures
        several.

    Raises:
        InputError: A config, model or list of videos is invalid, or the folder contains another run.
        RunError: The folder is in use.
        OSError: A file is missing or cannot be read.
    """
    if not isinstance(subject, VideoCLIP):
        if config is not None:
            raise InputError(
                f"got two arguments, and the first is of type {type(subject).__name__}; expected a VideoCLIP and a "
                "config, or only a config"
            )
        return _evaluate(read_config(EvaluateConfig, subject))
    parsed = read_config(EvaluateConfig, {} if config is None else config)
    if parsed.recipe is not None:
        raise InputError("recipe trains a model, but a model was given; remove one of them")
    parsed = replace(parsed, model=str(Path(parsed.output_dir) / "model"))
    check_output(Path(parsed.output_dir), parsed)
    accelerator = _evaluation_accelerator(parsed)
    if accelerator.is_main_process:
        subject.save_pretrained(parsed.model)
    accelerator.wait_for_everyone()
    return _evaluate(parsed)


def _evaluate(config: EvaluateConfig) -> Run:
    run_evaluation(config)
    folder = Path(config.output_dir)
    return Run(_measured_model(config), _read_figures(folder), folder)


def _measured_model(config: EvaluateConfig) -> VideoCLIP | None:
    """Load the only model of a finished evaluation, or return None if it measured several."""
    protocol = build_protocol(config.protocol or config.data.protocol)
    if config.recipe is not None:
        return from_pretrained(Path(config.output_dir) / "model") if isinstance(protocol, Holdout) else None
    if isinstance(protocol, BaseToNovel):
        return None
    names = load_split(config.data, "val").class_names
    return load_model(config.model, config.pretrained, config.num_frames, names, config.templates)


def _dataset_manifests(
    config: FinetuneConfig, train: MapDataset | None, val: MapDataset | None, classes: Sequence[str] | None
) -> tuple[Manifest, Manifest] | None:
    """Return the manifests of two Datasets, or None without Datasets."""
    if train is None and val is None and classes is None:
        return None
    if train is None or val is None or classes is None:
        missing = [name for name, value in {"train": train, "val": val, "classes": classes}.items() if value is None]
        raise InputError(f"{' and '.join(missing)} not given; Datasets need train, val and classes together")
    if train is val:
        raise InputError(
            "train and val are the same Dataset; a model is evaluated on videos that it was not trained on"
        )
    if config.data.protocol != "holdout":
        raise InputError(f"data.protocol={config.data.protocol}: Datasets have no groups; expected holdout")
    return dataset_manifest(train, "train", classes), dataset_manifest(val, "val", classes)


def run_finetuning(
    config: FinetuneConfig, manifests: tuple[Manifest, Manifest] | None = None, settings: Sequence[Setting] = ()
) -> None:
    """Fine-tune under `data.protocol`, write folder and report, print the figures, and push if configured.

    Args:
        config: The config.
        manifests: Training and evaluation videos, or None for those of the config.
        settings: Settings of the config that were chosen for the user, to be printed.

    Raises:
        InputError: See `finetune`.
        RunError: See `finetune`.
        OSError: See `finetune`.
    """
    _check_precision(config.training.mixed_precision, "training.mixed_precision")
    accelerator = build_accelerator(config.training, config.output_dir)
    output = Path(config.output_dir)
    check_output(output, config)
    if settings:
        accelerator.print(f"settings chosen for the data and this machine:\n{settings_table(settings)}")
    if config.hub.push_to_hub:
        check_hub(config)
    with chosen_threads(settings):
        _finetune_and_report(config, manifests, settings, accelerator)
    end_trackers(accelerator)
    if config.hub.push_to_hub and accelerator.is_main_process:
        print(push_run(config, output))


def _finetune_and_report(
    config: FinetuneConfig,
    manifests: tuple[Manifest, Manifest] | None,
    settings: Sequence[Setting],
    accelerator: Accelerator,
) -> None:
    output = Path(config.output_dir)
    data = without_missing_list(config.data)
    with accelerator.main_process_first():
        train, val = manifests or load_splits(data)
    was_drawn = manifests is None and data.val is None
    if was_drawn:
        accelerator.print(describe_split(train, val))
    check_leaks(config.data, train, val, accelerator)
    figures = finetune_protocol(config, train, val, accelerator, output)
    accelerator.print(f"{describe(figures)} -> {output}/metrics.json")
    if accelerator.is_main_process:
        if was_drawn:
            root = write_split(output / SPLIT, train, val)
            print(f"split: {output / SPLIT}, with paths below {printable(root)}")
        print(f"report: {write_finetune_report(config, train, val, accelerator, output, settings)}")
        print("\n".join(read_outcome(config, train, val, output)))


def run_evaluation(config: EvaluateConfig) -> None:
    """Measure under the protocol, write the output folder, and print the figures.

    Raises:
        InputError: See `evaluate`.
        RunError: See `evaluate`.
        OSError: See `evaluate`.
    """
    accelerator = _evaluation_accelerator(config)
    metrics = evaluate_protocol(config, accelerator)
    for name, figures in metrics["groups"].items():
        accelerator.print(f"{name}: {describe(figures)}" if len(metrics["groups"]) > 1 else describe(figures))
    accelerator.print(f"-> {config.output_dir}/report.html, metrics.json, predictions.parquet")


def _evaluation_accelerator(config: EvaluateConfig) -> Accelerator:
    _check_precision(config.mixed_precision, "mixed_precision")
    return Accelerator(mixed_precision=config.mixed_precision)


def _check_precision(precision: str, option: str) -> None:
    """Raise RunError if this process has an Accelerator of another precision, which all runs of a process share."""
    if is_initialized() and AcceleratorState().mixed_precision != precision:
        raise RunError(
            f"{option}={precision}, but an earlier run of this process has {AcceleratorState().mixed_precision}; "
            "Accelerate allows one precision per process. Use the same one, or a new process"
        )


def _read_figures(folder: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return figures
