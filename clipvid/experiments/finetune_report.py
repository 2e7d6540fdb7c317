"""The report of a fine-tuning run, made from the files that the run has written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from clipvid.data.config import DataConfig
from clipvid.data.drawn_split import SPLIT, split_root
from clipvid.data.manifest import Manifest
from clipvid.evaluation.clips import hardest
from clipvid.evaluation.evaluation_report import Evaluation, evaluation_page
from clipvid.evaluation.metrics import answered
from clipvid.evaluation.report import write_page
from clipvid.evaluation.report_sections import Curve
from clipvid.evaluation.summary import summarize_thoroughly
from clipvid.experiments.chosen_settings import Setting
from clipvid.experiments.outcome import describe_outcome
from clipvid.experiments.protocols import Holdout, build_protocol
from clipvid.experiments.report_clips import read_clips
from clipvid.experiments.run import trained_name
from clipvid.experiments.selection import ADAPTERS, UNTRAINED, describe_selection
from clipvid.hub.loading import from_pretrained
from clipvid.runs.config_files import config_record
from clipvid.training.config import FinetuneConfig
from clipvid.training.session import finished

_CLIPS = 8  # the hardest ones
_EVALUATED = ("root", "train", "val", "classes", "sampling", "stride", "resize", "test_clips", "test_crops")


def write_finetune_report(
    config: FinetuneConfig,
    train: Manifest,
    val: Manifest,
    accelerator: Accelerator,
    output: Path,
    settings: Sequence[Setting] = (),
) -> Path:
    """Write `report.html` into the folder of a finished run, unless it is there already; return its path.

    Call it on one process. The model, the predictions and the history of the run are read, and no video is scored.
    `settings` are those that were chosen for the user.
    """
    report, metrics_file = output / "report.html", output / "metrics.json"
    if report.is_file() and report.stat().st_mtime_ns >= metrics_file.stat().st_mtime_ns:
        return report
    run = finished(output)
    assert run is not None
    predictions, metrics = run
    protocol = build_protocol(config.data.protocol)
    is_single = isinstance(protocol, Holdout)
    folder = output if is_single else output / protocol.parts(train, val, trained=True)[0].run
    tested = _tested(config, train, val)
    name = _name(config, metrics)
    unreadable = predictions.indices[~answered(predictions.scores)].tolist()
    evaluation = Evaluation(
        name,
        {"all": summarize_thoroughly(predictions, tested.classes)},
        tested.class_names,
        unreadable=[tested.samples[index].path for index in unreadable],
        clips=read_clips(
            config.data, from_pretrained(folder), tested, hardest(predictions, _CLIPS), {name: predictions}, accelerator
        ),
        curves=[Curve(name, json.loads((output / "history.json").read_text()))] if is_single else [],
        details=_details(config, metrics, tested, settings),
        introduction=[
            " ".join(read_outcome(config, train, val, output)),
            *_introduction(_evaluated(config.data, train, val, output), folder if is_single else None),
        ],
    )
    write_page(report, evaluation_page(evaluation))
    return report


def read_outcome(config: FinetuneConfig, train: Manifest, val: Manifest, output: Path) -> list[str]:
    """Return the outcome of a finished run; see `clipvid.experiments.outcome`."""
    run, history = finished(output), output / "history.json"
    assert run is not None
    log = json.loads(history.read_text()) if history.is_file() else []
    return describe_outcome(run[1], run[0], _tested(config, train, val), log)


def _name(config: FinetuneConfig, metrics: dict[str, Any]) -> str:
    """Return the name of the model, which says whether it was trained, and with which adapters."""
    if not metrics.get("trained", True):
        return UNTRAINED
    selection = metrics.get("selection")
    return trained_name(config.model.adapter if selection is None or selection["chosen"] == ADAPTERS else "none")


def _tested(config: FinetuneConfig, train: Manifest, val: Manifest) -> Manifest:
    is_single = isinstance(build_protocol(config.data.protocol), Holdout)
    return val if is_single else train.joined(val)


def _evaluated(data: DataConfig, train: Manifest, val: Manifest, output: Path) -> DataConfig:
    """Return the data of the run, with the written list of a drawn split."""
    split = output / SPLIT
    if not split.is_file():
        return data
    return replace(data, root=split_root(train, val), train=str(split), val=str(split))


def _introduction(data: DataConfig, folder: Path | None) -> list[str]:
    texts = []
    if folder is not None:
        words = ["clipvid", "evaluate", "--model", str(folder)]
        for name in _EVALUATED:
            value = getattr(data, name)
            if value != getattr(DataConfig, name):
                words += [f"--data.{name}", value if isinstance(value, str) else json.dumps(value)]
        command = shlex.join(words)
        texts.append(
            f"{command} adds zero-shot CLIP and clips in other orders, which show how much comes from the training and "
            "how much from motion."
        )
    return texts


def _details(
    config: FinetuneConfig, metrics: dict[str, Any], tested: Manifest, settings: Sequence[Setting]
) -> dict[str, str]:
    details = {
        "folder": config.output_dir,
        "protocol": json.dumps(config.data.protocol, ensure_ascii=False),
        "videos": str(len(tested)),
    }
    if "selection" in metrics:
        details["adapters"] = describe_selection(metrics["selection"])
    if "selected" in metrics:
        details["weights"] = f"the best ones by {metrics['selected']['by']}, chosen on these videos"
    details |= {setting.name: f"{setting.value} (chosen: {setting.why})" for setting in settings}
    return details | {"config": json.dumps(config_record(config), ensure_ascii=False)}
