"""Predictions of an exported model for files.

Shapes: V views, T frames, S image side, K classes.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipvid import InputError
from clipvid.data.reader import VideoError
from clipvid.data.resizing import resize_frame
from clipvid.files import hash_file, printable
from clipvid.inference.exported.onnx_model import OnnxModel
from clipvid.inference.exported.record import ExportRecord
from clipvid.inference.exported.texts import read_texts, texts_path
from clipvid.inference.opening import open_file
from clipvid.inference.outputs import LabelScore, prediction_line
from clipvid.inference.prediction_log import PredictionLog
from clipvid.inference.varying_rate import warn_of_varying_rate
from clipvid.inference.video_names import STDIN


class _Clips(NamedTuple):
    """Clips uint8 [V, T, S, S, 3] of a video, or the error that prevented them."""

    name: str
    clips: np.ndarray | None
    ignores_varying_rate: bool = False
    error: VideoError | None = None


class ExportedPredictor:
    """Predictor of files by name, with an exported model.

    Args:
        model: The model.
        texts: File of text features, for a model that has them as an input. By default the one beside the model.
        views: Clips per video, whose probabilities are averaged.
        top_k: Classes per video.
        batch_size: Clips in one pass, at least those of one video.
        num_workers: Threads that read videos ahead. 0 to read none ahead.
        threshold: Lowest probability of a class that is listed, or None to list any class.

    Raises:
        InputError: The text features are missing or do not fit the model.
    """

    def __init__(
        self,
        model: OnnxModel,
        texts: Path | None = None,
        views: int = 1,
        top_k: int = 5,
        batch_size: int = 8,
        num_workers: int = 2,
        threshold: float | None = None,
    ) -> None:
        self.model, self.views, self.top_k, self.num_workers = model, views, top_k, num_workers
        self.threshold = threshold
        self.videos_at_once = max(batch_size // views, 1)
        self.labels, self._text = _classes(model, texts)

    def each(self, names: Iterable[str]) -> Iterator[tuple[str, list[LabelScore] | None]]:
        """Yield names and predictions, in order. A video that cannot be read is reported on standard error."""
        batch: list[_Clips] = []
        for item in self._read_ahead(names):
            batch.append(item)
            if len(batch) == self.videos_at_once or self.num_workers == 0:
                yield from self._predict(batch)
                batch = []
        yield from self._predict(batch)

    def into_log(self, names: Iterable[str], path: Path) -> int:
        """Append the lines of videos that have none yet to a file. Return the number of unreadable videos."""
        log = PredictionLog(path)
        counts = {"num_frames": self.model.record.num_frames, "views": self.views, "top_k": self.top_k}
        settings = counts | {"model": hash_file(self.model.path), "labels": self.labels}
        log.check(settings | ({} if self.threshold is None else {"threshold": self.threshold}))
        ordered, lines = list(dict.fromkeys(names)), log.read()
        started_empty, failures = not lines, 0
        log.open()
        for name, predictions in self.each([name for name in ordered if name not in lines]):
            if predictions is None:
                failures += 1
            else:
                lines[name] = prediction_line(name, predictions)
                log.append(lines[name])
        log.close()
        if not started_empty:
            log.join(ordered, lines)
        log.remove_parts()
        return failures

    def _predict(self, batch: list[_Clips]) -> Iterator[tuple[str, list[LabelScore] | None]]:
        clips = [item.clips for item in batch if item.clips is not None]
        scores: Iterator[np.ndarray] = iter(())
        if clips:
            probabilities = self.model(np.concatenate(clips), self._text)
            scores = iter(probabilities.reshape(len(clips), self.views, -1).mean(axis=1))
        for item in batch:
            if item.error is not None:
                print(f"clipvid predict: {printable(item.error)}", file=sys.stderr)
                yield item.name, None
                continue
            if item.ignores_varying_rate:
                warn_of_varying_rate(item.name)
            own = next(scores)
            best = np.argsort(-own, kind="stable")[: self.top_k]
            if self.threshold is not None:
                best = best[own[best] >= self.threshold]
            yield item.name, [{"label": self.labels[index], "score": float(own[index])} for index in best]

    def _read_ahead(self, names: Iterable[str]) -> Iterator[_Clips]:
        record, views = self.model.record, self.views
        if self.num_workers == 0:
            yield from (read_clips(name, record, views) for name in names)
            return
        with ThreadPoolExecutor(self.num_workers) as pool:
            waiting: deque[Future[_Clips]] = deque()
            try:
                for name in names:
                    waiting.append(pool.submit(read_clips, name, record, views))
                    if len(waiting) > 2 * self.num_workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def read_clips(name: str, record: ExportRecord, views: int) -> _Clips:
    """Read the clips of a file by its path or address, equal to those of `ClipReader`."""
    sampling = record.preprocessing.frame_sampling(record.num_frames)
    try:
        with open_file(sys.stdin.buffer.read() if name == STDIN else name) as video:
            part = range(len(video))
            times = video.frame_times(part) if sampling.by == "time" else None
            drawn = [sampling.fixed_indices(len(part), times, view, views) for view in range(views)]
            shown, rows = np.unique(np.stack(drawn), return_inverse=True)
            pictures = (picture for _, picture in video.pictures(shown.tolist()))
            resize = record.preprocessing.resize
            frames = np.stack([resize_frame(picture, record.image_size, resize) for picture in pictures])
            ignores = sampling.ignores_time and bool(video.has_varying_rate)
            return _Clips(name, frames[rows.reshape(views, -1)], ignores)
    except VideoError as error:
        return _Clips(name, None, error=error)


def _classes(model: OnnxModel, texts: Path | None) -> tuple[list[str], np.ndarray | None]:
    """Return the names of the classes, and their text features if the model takes them."""
    if model.record.classes is not None:
        if texts is not None:
            raise InputError(f"{model.path} has its classes inside; leave out the file of text features {texts}")
        return list(model.record.classes), None
    chosen = texts or texts_path(model.path)
    if not chosen.is_file():
        raise InputError(
            f"{model.path} takes text features, and {chosen} does not exist; clipvid export --text input with "
            "--labels writes one"
        )
    names, features = read_texts(chosen)
    if features.shape[1] != model.record.embed_dim:
        raise InputError(
            f"{chosen}: features of length {features.shape[1]}, but {model.path} takes {model.record.embed_dim}"
        )
    return names, features
