"""Training run in its folder: initial model, record, resume and results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from clipvid import InputError, RunError
from clipvid.backbone import load_backbone
from clipvid.data.manifest import Manifest
from clipvid.evaluation.loop import Predictions
from clipvid.files import write_json
from clipvid.hub.card import write_card
from clipvid.hub.folder import read_record, read_weights, weights_hash
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

BACKBONE = "model.backbone"  # its hash in run.json


def fresh_model(config: VideoRunConfig, videos: Manifest, accelerator: Accelerator) -> VideoCLIP:
    """Build the model before training, the same on every call."""
    torch.manual_seed(config.seed)
    return build_finetune_model(config, videos.class_names).to(accelerator.device)


def input_hashes(config: VideoRunConfig, train: Manifest, val: Manifest) -> dict[str, str]:
    """Return hashes of the lists of videos, of the templates, and of the initial weights."""
    templates = hashlib.sha256(json.dumps(resolve_templates(config.templates)).encode()).hexdigest()
    hashes = {"train": train.hash, "val": val.hash, "templates": templates}
    if config.model.init_from is not None:
        hashes["model.init_from"] = weights_hash(config.model.init_from)
    return hashes


def load_finished_run(
    config: VideoRunConfig, output: Path, hashes: dict[str, str], accelerator: Accelerator
) -> dict[str, Any] | None:
    """Return the figures of a finished run in `output`, or None if there is training left.

    A finished run with fewer epochs than `config` is continued.

    Raises:
        OtherRunError: A list of videos, the templates or the initial weights differ from those in `output`/run.json.
            Also raised if the pretrained weights of the backbone have changed.
    """
    recorded_hashes = recorded_inputs(output)
    changed = [name for name, value in hashes.items() if recorded_hashes.get(name, value) != value]
    if changed:
        raise OtherRunError(
            f"{output} contains a run on another {' and another '.join(changed)} (the content has changed); choose "
            "another output_dir, or delete this one"
        )
    done = finished(output)
    if done is None or more_epochs(done[1].get("config"), config) is not None:
        return None
    try:
        read_weights(output, read_record(output))
    except (InputError, OSError) as error:
        accelerator.print(f"the model of the finished run is damaged ({error}); it is created again")
        return None
    _check_pretrained(config, output, accelerator)
    accelerator.print(f"{output} is already finished")
    return done[1]


def _check_pretrained(config: VideoRunConfig, output: Path, accelerator: Accelerator) -> None:
    """Compare the pretrained weights with those of a finished run. Weights that are no longer there change nothing."""
    torch.manual_seed(config.seed)  # the weights may be random
    try:
        backbone = load_backbone(config.model.backbone, config.model.pretrained, config.model.image_size)
    except RunError as error:
        accelerator.print(f"the pretrained weights cannot be compared with those of the finished run: {error}")
        return
    check_backbone(backbone.fingerprint(), config, output)


def check_backbone(digest: str, config: VideoRunConfig, output: Path) -> None:
    """Compare the hash of pretrained weights with the one that is recorded in `output`.

    Raises:
        OtherRunError: The run was started from other weights.
    """
    before = recorded_inputs(output).get(BACKBONE, digest)
    if before != digest:
        raise OtherRunError(
            f"{output} contains a run on other weights: those of model.backbone={config.model.backbone} (pretrained="
            f"{config.model.pretrained}) have changed since, SHA-256 {digest[:12]}..., expected {before[:12]}.... "
            "Bring back the former weights, or choose another output_dir"
        )


def with_backbone(hashes: dict[str, str], model: VideoCLIP, config: VideoRunConfig, output: Path) -> dict[str, str]:
    """Return the hashes with that of the pretrained weights that the model is made from.

    Args:
        hashes: See `input_hashes`.
        model: Model before training.
        config: Config of the run.
        output: Folder of the run.

    Raises:
        OtherRunError: See `check_backbone`.
    """
    digest = model.base_fingerprint()
    check_backbone(digest, config, output)
    return hashes | {BACKBONE: digest}


def preemption(config: RunConfig) -> Preemption:
    """Return the handler of signals that end a run early."""
    return Preemption(timedelta(seconds=config.training.ddp_timeout))


@dataclass(frozen=True)
class Session:
    """One start of a run.

    Attributes:
        record: entry of the session in run.json, to which figures may be added.
        accelerator: of the run.
        stop: the active listener to signals.
        is_tracked: start the trackers of the Accelerator.
    """

    record: dict[str, Any]
    accelerator: Accelerator
    stop: Preemption
    is_tracked: bool = True

    def train(self, trainer: Trainer, on_epoch_end: EpochEnd, before: Callable[[], None] | None = None) -> TrainState:
        """Run the trainer to its end, and record its throughput. See `Trainer.run` for errors."""
        if self.is_tracked:
            start_trackers(self.accelerator)
        try:
            return trainer.run(self.stop, on_epoch_end, before)
        finally:
            self.record.update(trainer.throughput())


@contextmanager
def session(
    config: RunConfig, hashes: dict[str, str], accelerator: Accelerator, output: Path, stop: Preemption
) -> Iterator[Session]:
    """Record the config and this session of a run, and yield the session.

    Enter it after building model, data and objective, so that a run that cannot start leaves no files.

    Args:
        config: Config of the run.
        hashes: See `input_hashes`.
        accelerator: The Accelerator.
        output: Folder of the run. The config is recorded in `config.output_dir`, which differs for a fold.
        stop: The active handler of signals.

    Raises:
        FileExistsError: `config.output_dir` contains a run with another config.
        RunError: Another run uses `output`.
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
    with recorded(output, accelerator, config_record(config), hashes) as record:
        yield Session(record, accelerator, stop, config.training.report_to != "none")


def write_run(
    output: Path,
    model: VideoCLIP,
    state: TrainState,
    predictions: Predictions,
    figures: dict[str, Any],
    config: VideoRunConfig,
    accelerator: Accelerator,
) -> None:
    """Write model folder, history, results and card in the first process, while the others wait."""
    if accelerator.is_main_process:
        model.save_pretrained(output)
        write_json(output / "history.json", state.history)
        write_results(output, predictions, figures, config, accelerator)
        write_card(output)
    accelerator.wait_for_everyone()


def write_results(
    output: Path, predictions: Predictions, figures: dict[str, Any], config: Any, accelerator: Accelerator
) -> None:
    """Write predictions.json (indices, labels, scores) and then metrics.json (figures, processes, config)."""
    rows = {name: getattr(predictions, name).tolist() for name in Predictions._fields}
    write_json(output / "predictions.json", rows)
    record = {"processes": accelerator.num_processes, "config": config_record(config)}
    write_json(output / "metrics.json", figures | record)


def finished(output: Path) -> tuple[Predictions, dict[str, Any]] | None:
    """Return the results of a finished run, or None. metrics.json is written last."""
    if not (output / "metrics.json").is_file():
        return None
    rows = json.loads((output / "predictions.json").read_text())
    predictions = Predictions(*(torch.tensor(rows[name]) for name in Predictions._fields))
    return predictions, json.loads((output / "metrics.json").read_text())


def start_trackers(accelerator: Accelerator) -> None:
    """Start the trackers. TensorBoard writes to `logs` in the output folder.

    Raises:
        RunError: A tracker cannot start, for example without a login.
        OSError: Its files cannot be written.
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
    """Close the trackers. Their errors are only printed, since the run has finished."""
    try:
        accelerator.end_training()
    except Exception as error:
        accelerator.print(f"the tracker could not be closed ({error!r})")
