"""`Index`, the windows of a folder of videos, to be searched by text and example.

Shapes: W windows, E embedding.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from clipvid import InputError
from clipvid.inference.search.encoding import WindowEncoder
from clipvid.inference.search.folder import graph_path, open_arrays, read_record
from clipvid.inference.search.graph import near_windows
from clipvid.inference.search.nearest import best_apart, exact_scores
from clipvid.inference.search.query import Query
from clipvid.inference.search.settings import IndexSettings, check_searches, model_fingerprint
from clipvid.model.video_clip import VideoCLIP


@dataclass(frozen=True)
class Moment:
    """Part of a video that answers a query.

    Attributes:
        video: Path of the video.
        start: Seconds from the first frame.
        end: Seconds.
        score: Mean cosine with the query, minus that with the texts to avoid.
    """

    video: str
    start: float
    end: float
    score: float

    def record(self) -> dict[str, Any]:
        """Return the fields by their names in files."""
        return {"video": self.video, "start": self.start, "end": self.end, "score": self.score}


class Index:
    """Index of the windows of videos. Features stay on the disk and are mapped into memory.

    Args:
        folder: Folder that `clipvid.build_index` or `clipvid index` has written.

    Attributes:
        settings: Model, window, hop and folder of the videos.
        features: L2-normalized features, float16 [W, E].
        times: Start and end of each window in seconds, float64 [W, 2].

    Raises:
        InputError: The folder is not an index, or files are damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._record = read_record(self.folder)
        self.features, self.times = open_arrays(self.folder, self._record)

    def __len__(self) -> int:
        """Return the number of windows W."""
        return len(self.times)

    @property
    def settings(self) -> IndexSettings:
        """Settings of the index."""
        return self._record.settings

    @property
    def videos(self) -> list[str]:
        """Names of the videos, relative to `settings.folder`."""
        return [video.name for video in self._record.videos]

    @cached_property
    def owners(self) -> np.ndarray:
        """Number of the video of each window, int64 [W]."""
        return np.repeat(np.arange(len(self._record.videos)), [video.windows for video in self._record.videos])

    def search(
        self,
        model: VideoCLIP,
        text: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        like: Sequence[Any] = (),
        top_k: int = 10,
        approximate: bool = False,
    ) -> list[Moment]:
        """Return the moments that fit a query best, best first. Moments of one video do not overlap.

        Args:
            model: The model of the index.
            text: Text or texts to look for.
            exclude: Text or texts to avoid.
            like: Example videos, see `clipvid.Predictor`.
            top_k: Largest number of moments.
            approximate: Use the graph of usearch instead of comparing with every window.

        Raises:
            InputError: The model is not that of the index, or the query is empty or too long. Also raised if `top_k` is
                less than 1, or if the index has no graph.
            VideoError: An example cannot be read.
        """
        self.check_model(model)
        texts, avoided = ((each,) if isinstance(each, str) else tuple(each) for each in (text, exclude))
        encoder = WindowEncoder(model, self.settings.window, self.settings.hop)
        return self.nearest(Query(texts, avoided, like).direction(encoder), top_k, approximate)

    def nearest(self, direction: Tensor, top_k: int = 10, approximate: bool = False) -> list[Moment]:
        """Return the moments whose features have the highest products with a direction float32 [E], see `search`."""
        if top_k < 1:
            raise InputError(f"top_k={top_k}: expected at least 1")
        if direction.shape != self.features.shape[1:]:
            raise InputError(f"the query has {list(direction.shape)} values; expected {[self.features.shape[1]]}")
        if not approximate:
            scores = exact_scores(self.features, direction)
            best = best_apart(scores, self.owners, self.times, top_k)
            return [self._moment(row, float(scores[row])) for row in best]
        count = 16 * top_k
        while True:
            rows = near_windows(graph_path(self.folder, self._record), self.features, direction.numpy(), count)
            scores = exact_scores(self.features[rows], direction)
            best = best_apart(scores, self.owners[rows], self.times[rows], top_k)
            if len(best) == top_k or count >= len(self):
                return [self._moment(int(rows[place]), float(scores[place])) for place in best]
            count *= 4

    def check_model(self, model: VideoCLIP) -> None:
        """Raise InputError unless the index has the features of this model."""
        check_searches(model)
        if model_fingerprint(model) != self.settings.fingerprint:
            name = "another model" if self.settings.model is None else f"the model {self.settings.model}"
            raise InputError(
                f"{self.folder} has the features of {name} with other weights or settings; search with that model, or "
                "run clipvid index with this one and another --output"
            )

    def _moment(self, row: int, score: float) -> Moment:
        start, end = self.times[row].tolist()
        name = self._record.videos[int(self.owners[row])].name
        return Moment(str(Path(self.settings.folder, name)), start, end, score)
