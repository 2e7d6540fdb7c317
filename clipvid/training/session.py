"""A run of training in its folder: what it starts from, what it is recorded as, what it leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from clipvid import InputError, RunError
from clipvid.data.manifest import Manifest
from clipvid.evaluation.loop import Predictions
from clipvid.files import write_json
from clipvid.hub.card import write_card
from clipvid.hub.folder import read_record, read_weights, weights_hash
from clipvid.model.feature_cache import FeatureCache
from clipvid.model.prompts import resolve_templates
from clipvid.model.video_clip import VideoCLIP
from clipvid.runs.config_files import config_record
from clipvid.runs.output_folder import OtherRunError, check_output, more_epochs, prepare_output_dir
from clipvid.runs.preemption import Preemption
from clipvid.runs.record import recorded, recorded_inputs
from clipvid.training.build import build_finetune_model
from clipvid.training.config import RunConfig, VideoRunConfig
from clipvid.training.state import TrainState
from clipvid.training.trainer import EpochEnd, Trainer


def fresh_model(config: VideoRunConfig, labelled: Manifest, accelerator: Accelerator) -> VideoCLIP:
    """The model before training, the same every time."""
    torch.manual_seed(config.seed)
    return build_finetune_model(config, labelled.class_names).to(accelerator.device)


def input_hashes(config: VideoRunConfig, train: Manifest, val: Manifest) -> dict[str, str]:
    """Of the lists of videos, of the templates, and of the weights that training starts from."""
    templates = hashlib.sha256(json.dumps(resolve_templates(config.templates)).encode()).hexdigest()
    hashes = {"train": train.hash, "val": val.hash, "templates": templates}
    if config.model.init_from is not None:
        hashes["model.init_from"] = weights_hash(config.model.init_from)
    return hashes


def load_finished_run(
    config: RunConfig, output: Path, hashes: dict[str, str], accelerator: Accelerator
) -> dict[str, Any] | None:
    """Return the figures of a run that is finished in `output`, None if there is something left to do.

    A finished run with fewer epochs than `config` has is continued.

    Raises:
        OtherRunError: a list of videos, the templates or the weights to start from differ from those that
            `output`/run.json names.
    """
    recorded_hashes = recorded_inputs(output)
    changed = [name for name, value in hashes.items() if recorded_hashes.get(name, value) != value]
    if changed:
        raise OtherRunError(
            f"{output} holds a run on another {' and another '.join(changed)} (the content has changed since); choose "
            "another output_dir, or remove this one"
        )
    done = finished(output)
    if done is None or more_epochs(done[1].get("config"), config) is not None:
        return None
    try:
        read_weights(output, read_record(output))
    except (InputError, OSError) as error:
        accelerator.print(f"the model of the finished run is damaged ({error}); it is made again")
        return None
    accelerator.print(f"{output} is finished already")
    return done[1]


def preemption(config: RunConfig) -> Preemption:
    """Return the listener to signals that end a run early."""
    return Preemption(timedelta(seconds=config.training.ddp_timeout))


@contextmanager
def session(
    config: RunConfig, hashes: dict[str, str], accelerator: Accelerator, output: Path, stop: Preemption
) -> Iterator[Callable[[Trainer, EpochEnd], TrainState]]:
    """Record the config and this session of a run, and yield the function that runs its trainer.

    Enter it with the model, the data and the objective built: a run that cannot start then leaves no files.

    Args:
        hashes: see `input_hashes`.
        output: folder of the run. The config is recorded in `config.output_dir`, which differs for a fold.
        stop: the active listener to signals.

    Raises:
        FileExistsError: `config.output_dir` holds a run with another config.
        RunError: another run uses `output`.
    """
    if accelerator.is_main_process:
        before, epochs = more_epochs(check_output(Path(config.output_dir), config), config), config.training.epochs
        if before is not None:
            accelerator.print(
                f"{config.output_dir} was finished after {before} epochs and continues to {epochs}, with a longer "
                "learning-rate schedule over all of them"
            )
        prepare_output_dir(Path(config.output_dir), config)
    accelerator.wait_for_everyone()
    caches: list[FeatureCache] = []
    with recorded(output, accelerator, config_record(config), hashes) as record:

        def run(trainer: Trainer, on_epoch_end: EpochEnd) -> TrainState:
            start_trackers(accelerator)
            caches.extend([trainer.features] if trainer.features is not None else [])
            try:
                return trainer.run(stop, on_epoch_end)
            finally:
                record.update(trainer.throughput())

        try:
            yield run
        finally:
            if caches:
                record["features"] = caches[0].record()


def write_run(
    output: Path,
    model: VideoCLIP,
    state: TrainState,
    predictions: Predictions,
    figures: dict[str, Any],
    config: VideoRunConfig,
    accelerator: Accelerator,
) -> None:
    """Model folder, history, results and card, by the first process while the others wait."""
    if accelerator.is_main_process:
        model.save_pretrained(output)
        write_json(output / "history.json", state.history)
        write_results(output, predictions, figures, config, accelerator)
        write_card(output)
    accelerator.wait_for_everyone()


def write_results(
    output: Path, predictions: Predictions, figures: dict[str, Any], config: Any, accelerator: Accelerator
) -> None:
    """predictions.json (indices, labels, scores) and, last of all, metrics.json (figures, processes, config)."""
    rows = {name: getattr(predictions, name).tolist() for name in Predictions._fields}
    write_json(output / "predictions.json", rows)
    record = {"processes": accelerator.num_processes, "config": config_record(config)}
    write_json(output / "metrics.json", figures | record)


def finished(output: Path) -> tuple[Predictions, dict[str, Any]] | None:
    """What a finished run left; metrics.json is written last of all."""
    if not (output / "metrics.json").is_file():
        return None
    rows = json.loads((output / "predictions.json").read_text())
    predictions = Predictions(*(torch.tensor(rows[name]) for name in Predictions._fields))
    return predictions, json.loads((output / "metrics.json").read_text())


def start_trackers(accelerator: Accelerator) -> None:
    """Start the trackers. TensorBoard writes to `logs` in the output folder.

    Raises:
        RunError: a tracker cannot start, for example because nobody is logged in.
        OSError: its files cannot be written.
    """
    if not accelerator.log_with:
        return
    try:
        accelerator.init_trackers("logs")
    except OSError:
        raise
    except Exception as error:
        raise RunError(
            f"training.report_to: the tracker cannot start ({error}). Set it up, or set training.report_to to none"
        ) from error


def end_trackers(accelerator: Accelerator) -> None:
    """Close the trackers. An error of theirs is printed, since the run has finished."""
    try:
        accelerator.end_training()
    except Exception as error:
        accelerator.print(f"the tracker could not be closed ({error!r})")
