"""One run of a grid with its config, folder and result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from clipvid.experiments.config import EvaluateConfig, extend_evaluation
from clipvid.experiments.run import evaluate_protocol, evaluation_inputs, load_videos
from clipvid.runs.output_folder import FREE, config_differences
from clipvid.runs.record import recorded_inputs
from clipvid.training.pretrain import load_videos as unlabeled_videos
from clipvid.training.pretrain import pretrain
from clipvid.training.pretrain_config import PretrainConfig
from clipvid.training.session import input_hashes

METRICS = "metrics.json"


@dataclass(frozen=True)
class Trial:
    """One run of a grid.

    Attributes:
        name: Unique name in the grid, for display.
        config: An evaluation, which may train its models, or a training without labels.
        after: Names of trials whose models this one starts from.
    """

    name: str
    config: EvaluateConfig | PretrainConfig
    after: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Folder of all files of the trial."""
        return Path(self.config.output_dir)

    @property
    def seed(self) -> int | None:
        """Seed of the training, or None without training."""
        if isinstance(self.config, PretrainConfig):
            return self.config.seed
        return None if self.config.recipe is None else self.config.recipe.seed

    @property
    def mixed_precision(self) -> str:
        """Precision in the notation of `Accelerator`."""
        config = self.config
        return config.training.mixed_precision if isinstance(config, PretrainConfig) else config.mixed_precision

    def run(self, accelerator: Accelerator) -> None:
        """Run the trial, or resume an interrupted one."""
        if isinstance(self.config, PretrainConfig):
            pretrain(self.config, accelerator)
        else:
            evaluate_protocol(self.config, accelerator)

    def inputs(self) -> dict[str, str]:
        """Return the hashes of the trial's inputs as in `run.json`. Build its synthetic world first.

        Raises:
            OSError: An input is missing or cannot be read.
            InputError: An input is invalid.
        """
        config = self.config
        if isinstance(config, PretrainConfig):
            return input_hashes(config, *unlabeled_videos(config))
        return evaluation_inputs(config, *load_videos(config))

    def result(self, inputs: dict[str, str] | None = None) -> dict[str, Any] | None:
        """Return the content of `metrics.json`, which is written last, or None for an unfinished trial.

        Args:
            inputs: Result of `inputs`. A finished trial with other inputs counts as unfinished.
        """
        file = self.folder / METRICS
        metrics: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        config = self.config
        if isinstance(config, EvaluateConfig):
            config = extend_evaluation(config, metrics.get("config", {}))
        if "config" not in metrics or set(config_differences(metrics["config"], config)) - FREE:
            return None
        recorded = recorded_inputs(self.folder)
        same = inputs is None or {name: recorded.get(name) for name in inputs} == inputs
        return metrics if same else None

    def cost(self) -> dict[str, float | None]:
        """Return `seconds` over all sessions and `peak_memory_bytes`. Killed sessions are not counted."""
        file = self.folder / "run.json"
        sessions = json.loads(file.read_text())["sessions"] if file.is_file() else []
        peaks = [session["peak_memory_bytes"] for session in sessions if "peak_memory_bytes" in session]
        return {
            "seconds": sum(session.get("wall_seconds", 0.0) for session in sessions),
            "peak_memory_bytes": max(peaks, default=None),
        }
