"""Predictions for lists of files: in one process as they come, or shared out over several and gathered in order."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from clipvid import InputError
from clipvid.data.reader import VideoError
from clipvid.files import printable
from clipvid.inference.outputs import LabelScore, VideoPrediction, prediction_line
from clipvid.inference.prediction_log import PredictionLog
from clipvid.inference.predictor import Predictor
from clipvid.inference.video_names import STDIN, SUFFIXES
from clipvid.runs.progress import Remaining


@dataclass(frozen=True)
class FilePredictor:
    """Predictor of files by name, with the options of `Predictor.stream`.

    Attributes:
        on_video: Called with the name and the prediction of each readable video, before its line is written.
    """

    predictor: Predictor
    top_k: int
    batch_size: int
    num_workers: int
    on_video: Callable[[str, VideoPrediction], None] = lambda name, prediction: None

    def each(self, names: Iterable[str]) -> Iterator[tuple[str, list[LabelScore] | None]]:
        """Yield names and predictions, in order. A video that cannot be read is reported on standard error."""
        for name, prediction in self._predictions(names):
            if prediction.error is not None:
                print(f"clipvid predict: {printable(prediction.error)}", file=sys.stderr)
                yield name, None
            else:
                self.on_video(name, prediction)
                yield name, prediction.predictions

    def into_log(self, words_to_names: Callable[[], list[str]], log: PredictionLog | None) -> tuple[list[str], int]:
        """Predict the videos of all processes together.

        Args:
            words_to_names: Returns the names of all videos. Only the first process calls it.
            log: File of the lines. Videos that have a line there are left out.

        Returns:
            In the first process without a log, the lines in order. The number of unreadable videos of all processes.
        """
        state = PartialState()
        names = broadcast_object_list([words_to_names() if state.is_main_process else None])[0]
        if state.num_processes > 1 and STDIN in names:
            raise InputError("- (standard input) needs a single process; write the video to a file")
        lines = dict(gather_object(list((log.read() if log is not None else {}).items())))
        started_empty = not lines
        remaining = [name for name in dict.fromkeys(names) if name not in lines]
        own, failures = self._own_lines(remaining[state.process_index :: state.num_processes], log)
        lines |= dict(gather_object(own))
        failures = sum(gather_object([failures]))
        if log is None:
            return [lines[name] for name in names if name in lines], failures
        if state.is_main_process and (state.num_processes > 1 or not started_empty):
            log.join(names, lines)
        state.wait_for_everyone()
        log.remove_parts()
        return [], failures

    def _own_lines(self, names: list[str], log: PredictionLog | None) -> tuple[list[tuple[str, str]], int]:
        """Predict some videos. Return the names and lines of readable ones, and the number of others."""
        lines, failures, progress = [], 0, Remaining("videos of this process")
        if log is not None:
            log.open()
        for done, (name, predictions) in enumerate(self.each(names), 1):
            if predictions is None:
                failures += 1
            else:
                lines.append((name, prediction_line(name, predictions)))
                if log is not None:
                    log.append(lines[-1][1])
            progress(done, len(names))
        if log is not None:
            log.close()
        return lines, failures

    def _predictions(self, names: Iterable[str]) -> Iterator[tuple[str, VideoPrediction]]:
        waiting: deque[tuple[str, VideoPrediction | None]] = deque()
        remaining = iter(names)
        first = list(islice(remaining, 2))
        workers = self.num_workers if len(first) > 1 else 0

        def sources() -> Iterator[Any]:
            for name in chain(first, remaining):
                refused = _refused(name)
                waiting.append((name, refused))
                if refused is None:
                    yield sys.stdin.buffer.read() if name == STDIN else name

        def refused_first() -> Iterator[tuple[str, VideoPrediction]]:
            while waiting and waiting[0][1] is not None:
                name, refused = waiting.popleft()
                assert refused is not None
                yield name, refused

        for prediction in self.predictor.stream(sources(), self.top_k, self.batch_size, workers):
            yield from refused_first()
            yield waiting.popleft()[0], prediction
        yield from refused_first()


def start_processes() -> PartialState:
    """Join the processes of a launcher, on CPUs too where there are no other devices."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    # Processes wait for the slowest one at the end. The launcher stops all if one dies.
    return PartialState(cpu=on_cpu, timeout=timedelta(days=7))


def _refused(name: str) -> VideoPrediction | None:
    if "://" in name or not Path(name).is_dir():
        return None
    error = VideoError(name, f"the folder has no video; expected one of {', '.join(SUFFIXES)}")
    return VideoPrediction(name, [], None, error)
