"""Runner of grids: suites, ladders and the pretraining study.

A grid is a list of trials. Finished trials are kept, interrupted ones resume, and folders of other configs are refused
before anything starts. `run.yaml` in the output folder contains the config. `trials.json` contains the state and the
cost of every trial.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from clipvid import ClipvidError, InputError, RunError
from clipvid.experiments.config import GridConfig
from clipvid.experiments.parallel import run_side_by_side
from clipvid.experiments.trial import Trial
from clipvid.files import failed_write, write_json, write_text
from clipvid.runs.config_files import config_record
from clipvid.runs.lock import locked
from clipvid.runs.output_folder import check_output
from clipvid.runs.preemption import Preempted, Preemption
from clipvid.runs.record import locked_by_main_process


class Grid:
    """Trials and their results.

    Attributes:
        results: Content of `metrics.json` by name of the trial, for finished trials.
        errors: One line by name of the trial, for trials that failed in this process.
        is_main_process: False in all but one process of `accelerate launch`. Only the main process has the results.
    """

    def __init__(self, trials: Sequence[Trial], config: GridConfig) -> None:
        """Check all folders, build synthetic worlds once, and find the finished trials.

        Raises:
            InputError: Two trials have the same name or folder, or `jobs` is set under `accelerate launch`.
            OtherRunError: The folder of a trial contains a run with another config.
        """
        self.trials, self.config = list(trials), config
        self.results: dict[str, dict[str, Any]] = {}
        self.errors: dict[str, str] = {}
        for what, values in (("name", [t.name for t in trials]), ("folder", [str(t.folder) for t in trials])):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise InputError(f"two trials have the same {what} {twice[0]!r}; choose names that differ in letters")
        if config.jobs is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                f"jobs={config.jobs}: each trial gets its own process, but `accelerate launch` has started several; "
                "start the command without it, or remove jobs"
            )
        self._accelerator = None if config.jobs is not None else Accelerator(mixed_precision=_precision(self.trials))
        self.is_main_process = self._accelerator is None or self._accelerator.is_main_process
        if self.is_main_process:
            for trial in self.trials:
                check_output(trial.folder, trial.config)
            self._find_finished()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the output folder within the block.

        Raises:
            RunError: Another run uses the folder.
        """
        folder = Path(self.config.output_dir)
        with locked(folder) if self._accelerator is None else locked_by_main_process(folder, self._accelerator):
            yield

    def run(self, report: Callable[[], None]) -> None:
        """Run unfinished trials. Call `report` in the main process before the first one and after each.

        A failed trial does not stop the others, except under `accelerate launch` with several processes.

        Raises:
            RunError: Trials failed. Raised after all others have ended.
            Preempted: A signal requested the end. The same command resumes.
        """
        with Preemption():
            if self.config.threads is not None:
                torch.set_num_threads(self.config.threads)
            waiting = [trial for trial in self.trials if trial.name not in self.results]
            if self.is_main_process:
                print(f"{len(self.results)} of {len(self.trials)} trials are finished", flush=True)
                report()
                self._write()
            start = time.monotonic()

            def ended(trial: Trial, seconds: float, error: str | None) -> None:
                if not self.is_main_process:
                    return
                self._note(trial, error)
                report()
                self._write()
                left = sum(each.name not in self.results and each.name not in self.errors for each in waiting)
                minutes = (time.monotonic() - start) / (len(waiting) - left) * left / 60
                print(f"{self._describe(trial, seconds)}; {left} trials left, about {minutes:.0f} min", flush=True)

            if self._accelerator is None:
                assert self.config.jobs is not None
                run_side_by_side(waiting, self.config.jobs, self.config.threads, ended)
            else:
                self._run_here(waiting, self._accelerator, ended)
        if self.errors:
            lines = "\n".join(f"  {name}: {error}" for name, error in self.errors.items())
            count = f"{len(self.errors)} of {len(self.trials)} trials failed"
            raise RunError(f"{count}; the results of the others are kept:\n{lines}")

    def seconds(self) -> float:
        """Return the wall time of all finished trials over all their sessions, in seconds."""
        return sum(trial.cost()["seconds"] or 0.0 for trial in self.trials if trial.name in self.results)

    def _find_finished(self) -> None:
        for trial in self.trials:
            inputs = None
            with suppress(ValueError, OSError, ClipvidError):  # reported when the trial runs
                inputs = trial.inputs()
            result = None if inputs is None else trial.result(inputs)
            if result is not None and all(name in self.results for name in trial.after):
                self.results[trial.name] = result

    def _run_here(
        self, waiting: list[Trial], accelerator: Accelerator, ended: Callable[[Trial, float, str | None], None]
    ) -> None:
        """Run trials one after another in this process and the other processes of `accelerate launch`."""
        names = broadcast_object_list([[trial.name for trial in waiting]])[0]
        for trial in [each for each in self.trials if each.name in names]:
            begun = time.monotonic()
            error = next((f"{name} failed" for name in trial.after if name in self.errors), None)
            if error is None:
                error = _try(trial, accelerator)
                accelerator.free_memory()
            ended(trial, time.monotonic() - begun, error)

    def _note(self, trial: Trial, error: str | None) -> None:
        result = trial.result() if error is None else None
        if result is None:
            self.errors[trial.name] = error or f"{trial.folder} has no metrics.json although the trial has ended"
        else:
            self.results[trial.name] = result

    def _describe(self, trial: Trial, seconds: float) -> str:
        if trial.name in self.errors:
            return f"{trial.name}: FAILED after {seconds:.0f} s: {self.errors[trial.name]}"
        metrics = self.results[trial.name]
        figures = [f"{key} {metrics[key]['value']:.3f}" for key in ("pairs", "top1", "map") if key in metrics]
        return f"{trial.name}: {', '.join(figures) or 'finished'} in {seconds:.0f} s"

    def _write(self) -> None:
        """Write `run.yaml` and `trials.json`."""
        output = Path(self.config.output_dir)
        write_text(output / "run.yaml", yaml.safe_dump(config_record(self.config), sort_keys=False))
        records = []
        for trial in self.trials:
            state = "finished" if trial.name in self.results else "failed" if trial.name in self.errors else "waiting"
            place = os.path.relpath(trial.folder, output)
            record = {"name": trial.name, "folder": Path(place).as_posix(), "seed": trial.seed, "state": state}
            records.append(record | trial.cost() | {"error": self.errors.get(trial.name)})
        write_json(output / "trials.json", records)


def _precision(trials: Sequence[Trial]) -> str:
    precisions = sorted({trial.mixed_precision for trial in trials})
    if len(precisions) > 1:
        raise InputError(
            f"mixed_precision differs between the trials ({', '.join(precisions)}); choose one, or set jobs to give "
            "each trial its own process"
        )
    return precisions[0]


def _try(trial: Trial, accelerator: Accelerator) -> str | None:
    """Run a trial and return its error in one line. Raise it if other processes may wait for this one."""
    try:
        trial.run(accelerator)
    except Preempted:
        raise
    except Exception as error:
        if accelerator.num_processes > 1:
            raise
        failure = failed_write(error)
        if failure is not None:
            return failure
        if not isinstance(error, ClipvidError | ValueError | OSError):
            traceback.print_exc()
        return f"{type(error).__name__}: {error}" if not isinstance(error, ClipvidError) else str(error)
    return None
