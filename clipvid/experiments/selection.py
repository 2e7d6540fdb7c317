"""Choice between adapters and the model without them, by cross-validation on the training videos."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from clipvid.adapters import resolve_adapters
from clipvid.data.folds import by_class, held_out_folds
from clipvid.data.manifest import Manifest
from clipvid.distributed import by_main_process
from clipvid.evaluation.metrics import proportion
from clipvid.evaluation.summary import MAIN, main_figure
from clipvid.files import write_json
from clipvid.runs.output_folder import prepare_output_dir
from clipvid.training.config import FinetuneConfig, HubConfig, SelectionConfig
from clipvid.training.finetune import Selected, finetune
from clipvid.training.small_sets import fit_small_set
from clipvid.training.trainer import CHECKPOINTS
from clipvid.training.unreadable import OpenedVideos

SELECTION = "selection.json"
_FOLDER = "selection"  # of the trainings of the folds
ADAPTERS, NONE = "adapters", "none"
AVERAGED, UNTRAINED = "frames averaged", "CLIP without training"  # names of the model without adapters


def select_model(config: FinetuneConfig, train: Manifest, accelerator: Accelerator, output: Path) -> Selected | None:
    """Return the model to train, with adapters or without, or None where there is nothing to choose.

    The outcome is written to `output`/selection.json, which a resumed run reads. Interrupted trainings of folds are
    resumed, and all are removed at the end.

    Raises:
        FileExistsError: A folder of a fold contains a run with another config.
    """
    record = _read(output)
    if record is None:
        if not _is_open(config, train, accelerator, output):
            return None
        record = _cross_validate(config, train, accelerator, output)

        def write() -> None:
            prepare_output_dir(output, config)
            write_json(output / SELECTION, record)

        by_main_process(accelerator, write)
    if accelerator.is_main_process:
        shutil.rmtree(output / _FOLDER, ignore_errors=True)
    accelerator.print(describe_selection(record))
    chosen = config.model if record["chosen"] == ADAPTERS else replace(config.model, adapter="none")
    return Selected(chosen, record)


def describe_selection(record: dict[str, Any]) -> str:
    """Return the outcome in a sentence or two."""
    figures = [f"{record[name]['value']:.3f}" for name in (ADAPTERS, NONE)]
    metric, without = MAIN[record.get("metric", "top1")], name_without(record)
    outcome = (
        f"in {record['folds']}-fold cross-validation on {record['videos']} training videos, "
        f"{record['adapter']} reaches {metric} {figures[0]}, and {without} {figures[1]}"
    )
    if record["chosen"] == ADAPTERS:
        return f"{outcome}. The model is trained with {record['adapter']}"
    kept = f"The model is {UNTRAINED}" if without == UNTRAINED else f"The model is trained without {record['adapter']}"
    return f"{outcome}. {kept}; selection.folds=0 and another output_dir train with {record['adapter']} in any case"


def name_without(record: dict[str, Any]) -> str:
    """Return the name of the model without adapters: `UNTRAINED` if nothing else was to be trained."""
    return str(record.get("without", AVERAGED))


def compare(outcomes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Return accuracies with intervals, their difference, and the better choice. Equal accuracies choose the adapters.

    Args:
        outcomes: Number of right answers and of videos, of `adapters` and of `none`.
    """
    return _with_choice({name: proportion(correct, count) for name, (correct, count) in outcomes.items()})


def compare_means(outcomes: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the means over the folds of shares that cannot be pooled, their difference, and the better choice.

    Args:
        outcomes: `value` and `count` of each fold, of `adapters` and of `none`.
    """
    return _with_choice(
        {
            name: {"value": sum(own["value"] for own in shares) / len(shares), "count": sum(s["count"] for s in shares)}
            for name, shares in outcomes.items()
        }
    )


def _with_choice(record: dict[str, Any]) -> dict[str, Any]:
    record["difference"] = record[ADAPTERS]["value"] - record[NONE]["value"]
    record["chosen"] = ADAPTERS if record["difference"] >= 0 else NONE
    return record


def fold_folder(output: Path, number: int, choice: str) -> Path:
    """Return the folder of the training of a fold, which exists until the choice is made."""
    return output / _FOLDER / f"fold_{number}_{choice}"


def _read(output: Path) -> dict[str, Any] | None:
    """Return the outcome of an earlier start of the run, or None."""
    path = output / SELECTION
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def _is_open(config: FinetuneConfig, train: Manifest, accelerator: Accelerator, output: Path) -> bool:
    """Return True if the run has a choice to make: it is new, trains adapters, and has videos for all folds."""
    trains_adapters = bool(resolve_adapters(config.model.adapter)) and "adapters" in config.model.parts.tuning.parts
    if config.selection.folds == 0 or not trains_adapters or config.model.init_from is not None:
        return False
    if (output / "metrics.json").exists() or (output / CHECKPOINTS).exists():
        return False  # the run began before, with the adapters
    smallest = min(_counts(train, config.selection), default=0)
    if smallest < 2:
        accelerator.print(
            f"the adapters are not compared with the model without them: a fold would be left with {smallest} training "
            f"videos. See selection.folds (now {config.selection.folds})"
        )
        return False
    return True


def _counts(train: Manifest, selection: SelectionConfig) -> list[int]:
    """Return the numbers of training videos of the folds."""
    count = min(len(train), selection.max_videos)
    _, folds = held_out_folds(train.subset(range(count)), selection.folds, 0)
    return [count - len(fold) for fold in folds]


def _cross_validate(config: FinetuneConfig, train: Manifest, accelerator: Accelerator, output: Path) -> dict[str, Any]:
    """Train with and without adapters on each fold, and return the comparison."""
    chosen = _subset(train, config.selection.max_videos, config.seed)
    unit, folds = held_out_folds(chosen, config.selection.folds, config.seed)
    name = " + ".join(resolve_adapters(config.model.adapter))
    accelerator.print(
        f"{len(folds)}-fold cross-validation on {len(chosen)} training videos compares {name} with the "
        f"model without it, each {unit} held out once. selection.folds=0 trains with {name} in any case"
    )
    opened = OpenedVideos()
    measured: dict[str, list[dict[str, Any]]] = {ADAPTERS: [], NONE: []}
    key, without = "top1", AVERAGED
    for number, held_out in enumerate(folds):
        part = sorted(set(range(len(chosen))) - set(held_out))
        manifests = chosen.subset(part), chosen.subset(held_out)
        for choice in measured:
            kind = "with" if choice == ADAPTERS else "without"
            accelerator.print(f"fold {number + 1} of {len(folds)}, {kind} {name}")
            folder = fold_folder(output, number, choice)
            model = config.model if choice == ADAPTERS else replace(config.model, adapter="none")
            fold = _fold_config(config, folder, len(part), accelerator.num_processes)
            figures = finetune(fold, *manifests, accelerator, folder, opened, Selected(model, {}))
            accelerator.wait_for_everyone()
            accelerator.free_memory()
            key, main = main_figure(figures)
            measured[choice].append(main)
            without = AVERAGED if figures.get("trained", True) else UNTRAINED  # after the last choice, NONE
    record = {"adapter": name, "without": without, "folds": len(folds), "unit": unit, "videos": len(chosen)}
    if key == "map":
        return record | {"metric": key} | compare_means(measured)
    return record | compare({choice: _pooled(shares) for choice, shares in measured.items()})


def _pooled(shares: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the number of right answers and of videos of all folds."""
    return sum(round(own["value"] * own["count"]) for own in shares), sum(own["count"] for own in shares)


def _fold_config(config: FinetuneConfig, folder: Path, videos: int, processes: int) -> FinetuneConfig:
    """Return the config of the training of a fold, whose batch the videos fill."""
    training = replace(
        config.training,
        eval_epochs=config.training.epochs,
        load_best_model_at_end=False,
        report_to="none",
        diagnose=False,
    )
    return replace(
        config,
        output_dir=str(folder),
        training=fit_small_set(training, videos * config.data.repeats, processes),
        selection=SelectionConfig(folds=0),
        hub=HubConfig(),
    )


def _subset(train: Manifest, most: int, seed: int) -> Manifest:
    """Return at most `most` videos, drawn by class in proportion."""
    if len(train) <= most:
        return train
    ranks = [
        (rank / len(own), index) for own in by_class(train, seed) for rank, index in enumerate(own)
    ]  # the first share of every class
    return train.subset(sorted(index for _, index in sorted(ranks)[:most]))
