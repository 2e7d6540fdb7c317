"""`SharedModel`, one model in memory that answers the requests of several users, one after another.

Shapes: B clips, T frames, S image side, E embedding, K classes.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch import Tensor

from clipvid import InputError
from clipvid.app.label_list import LONGEST_NAME, MAX_CLASSES
from clipvid.data.reader import open_video
from clipvid.files import printable
from clipvid.inference.explain.explanation import explain
from clipvid.inference.explain.page import save_strip
from clipvid.inference.predictor import Predictor
from clipvid.inference.search.encoding import WindowEncoder
from clipvid.inference.search.index import Index, Moment
from clipvid.inference.search.query import Query
from clipvid.inference.timeline import timeline_figure
from clipvid.model.linear_head import with_linear_head
from clipvid.model.prompts import resolve_templates
from clipvid.model.video_clip import VideoCLIP

_WINDOW, _HOP, _MOST_POINTS = 2.0, 1.0, 100  # seconds, seconds, points of a timeline
_CURVES = 5


class SharedModel:
    """Model with a lock. A request may change the class names, so requests run one at a time.

    Args:
        model: Model in evaluation mode.
        index: Index of this model for `search`.
        templates: Templates of new class names. None for those of the model.

    Attributes:
        has_free_labels: True if the head reads text, so that every request can name other classes.
        label_text: Class names at the start, one per line.

    Raises:
        InputError: The model has a head without text and no labels, or the index belongs to another model.
    """

    def __init__(
        self, model: VideoCLIP, index: Index | None = None, templates: str | Sequence[str] | None = None
    ) -> None:
        self.has_free_labels = model.head.needs_text and model.text.present
        if not self.has_free_labels and not model.labels:
            raise InputError("the model has no labels, and its head reads no text; name its classes (--labels)")
        if index is not None:
            index.check_model(model)
        self.model, self.index = model, index
        self.label_text = "\n".join(map(printable, model.labels))
        self._labels = self._current = list(model.labels)
        self._templates = model.templates if templates is None else resolve_templates(templates)
        self._lock = threading.Lock()

    def scores(self, video: str, label_text: str) -> dict[str, float]:
        """Return the probability of each class for the video at a path.

        Args:
            video: Path of the video.
            label_text: Class names, one per line.

        Raises:
            InputError: The class names cannot be used.
            VideoError: The video cannot be read.
        """
        with self._predictor(label_text) as predictor:
            values = predictor.scores(video).tolist()
            return dict(zip(map(printable, predictor.model.labels), values, strict=True))

    def timeline(
        self, video: str, label_text: str, name: str, on_progress: Callable[[int, int], None] | None = None
    ) -> Image.Image | None:
        """Return a picture of the scores over time, or None for a video that is shorter than two windows.

        The distance of the windows grows with the video, so that there are at most about 100 of them.
        """
        with open_video(video) as opened:
            duration = getattr(opened, "duration", None) or 0.0
        if duration < 2 * _WINDOW:
            return None
        with self._predictor(label_text) as predictor:
            hop = max(_HOP, duration / _MOST_POINTS)
            timeline = predictor.timeline(video, _WINDOW, hop, on_progress)
            figure = timeline_figure(name, timeline, predictor.model.labels, _CURVES)
        target = io.BytesIO()
        figure.savefig(target, format="png", dpi=100)
        return Image.open(target)

    def explain(self, video: str, label_text: str, name: str) -> tuple[Image.Image, str]:
        """Return the frames above their relevance as a picture, and the explanation in words."""
        with self._predictor(label_text) as predictor:
            explanation = explain(predictor.model, video, name=name)
        with TemporaryDirectory(prefix="clipvid-app-") as folder:
            path = Path(folder, "strip.png")
            save_strip(path, explanation)
            with Image.open(path) as picture:
                return picture.copy(), printable(explanation.sentence)

    def search(self, text: str, exclude: str, top_k: int) -> list[Moment]:
        """Return the moments of the index that fit a text, see `clipvid.Index.search`.

        Args:
            text: Text to look for.
            exclude: Text to avoid; empty for none.
            top_k: Largest number of moments.

        Raises:
            InputError: No index was given, or the text is empty or too long.
        """
        if self.index is None:
            raise InputError("no index was given to search; start clipvid app with --index INDEX")
        query = Query([text.strip()], [exclude.strip()] if exclude.strip() else [])
        settings = self.index.settings
        with self._lock:
            direction, *others = query.directions(WindowEncoder(self.model, settings.window, settings.hop))
        return self.index.nearest(direction, top_k, avoid=others)

    @torch.no_grad()
    def video_features(self, clips: Tensor) -> Tensor:
        """Return the pooled features float32 [B, E] of clips uint8 [B, T, 3, S, S], on the CPU."""
        with self._lock:
            return self.model.encode_video(clips.to(self.model.pixel_mean.device)).float().cpu()

    def best_classes(self, features: Tensor, names: Sequence[str], videos: Sequence[str]) -> list[str]:
        """Return the best class of each clip among `names`. A head without text chooses among its classes.

        Args:
            features: Features [B, E] of the clips, see `video_features`.
            names: Class names.
            videos: Paths of the clips, which are read again for a head that reads patches.

        Raises:
            InputError: The class names cannot be used.
            VideoError: A clip cannot be read any more.
        """
        text = "\n".join(names)
        if self.model.head.needs_patches:
            scores = [self.scores(video, text) for video in videos]
            return [max(each, key=lambda name: each[name]) for each in scores]
        with self._predictor(text) as predictor:
            return [predictor.model.labels[place] for place in self._head_scores(features).argmax(dim=1).tolist()]

    def save_with_head(self, weight: Tensor, bias: Tensor, labels: Sequence[str], folder: Path) -> None:
        """Write a model folder with a linear head instead of the head of this model, see `with_linear_head`."""
        with self._lock:
            with_linear_head(self.model, weight, bias, labels).save_pretrained(folder)

    @torch.no_grad()
    def _head_scores(self, features: Tensor) -> Tensor:
        """Return the scores [B, K] of a head that reads features [B, E] only."""
        video = features.to(self.model.pixel_mean)
        return self.model.head(video, video.new_empty(0), self.model.label_features).float().cpu()

    @contextmanager
    def _predictor(self, label_text: str) -> Iterator[Predictor]:
        """Yield a predictor for some classes, while no other request uses the model."""
        is_changed = self.has_free_labels and (label_text != self.label_text or not self._labels)
        labels = parse_labels(label_text) if is_changed else self._labels
        with self._lock:
            if labels != self._current:
                self._current = []  # until the model has the new ones
                self.model.set_labels(labels, self._templates)
                self._current = labels
            yield Predictor(self.model)


def parse_labels(text: str) -> list[str]:
    """Return the class names in the lines of a text, without repeats.

    Raises:
        InputError: There are none, too many, or one is too long.
    """
    labels = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not labels:
        raise InputError("there are no classes; write their names, one per line")
    if len(labels) > MAX_CLASSES:
        raise InputError(f"there are {len(labels)} classes; expected at most {MAX_CLASSES}")
    longest = max(labels, key=len)
    if len(longest) > LONGEST_NAME:
        raise InputError(f"a class name has {len(longest)} letters; expected at most {LONGEST_NAME}, one name per line")
    return labels
