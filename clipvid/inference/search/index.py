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
import torch
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
        score: Mean cosine with the texts and examples of the query.
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
            exclude: Text or texts to avoid. Windows that fit one of them better than the query are left out.
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
        direction, *others = Query(texts, avoided, like).directions(encoder)
        return self.nearest(direction, top_k, approximate, others)

    def nearest(
        self, direction: Tensor, top_k: int = 10, approximate: bool = False, avoid: Sequence[Tensor] = ()
    ) -> list[Moment]:
        """Return the moments whose features have the highest products with a direction float32 [E], see `search`.

        Args:
            direction: The direction.
            top_k: Largest number of moments.
            approximate: See `search`.
            avoid: Directions. Features with a higher product with one of them are left out.

        Raises:
            InputError: A direction has another shape, `top_k` is less than 1, or the index has no graph.
        """
        if top_k < 1:
            raise InputError(f"top_k={top_k}: expected at least 1")
        for each in (direction, *avoid):
            if each.shape != self.features.shape[1:]:
                raise InputError(f"the query has {list(each.shape)} values; expected {[self.features.shape[1]]}")
        directions = torch.stack([direction, *avoid])
        if not approximate:
            return self._best(self.features, np.arange(len(self)), directions, top_k)
        count = 16 * top_k
        while True:
            rows = near_windows(graph_path(self.folder, self._record), self.features, direction.numpy(), count)
            moments = self._best(self.features[rows], rows, directions, top_k)
            if len(moments) == top_k or count >= len(self):
                return moments
            count *= 4

    def _best(self, features: np.ndarray, rows: np.ndarray, directions: Tensor, top_k: int) -> list[Moment]:
        """Return the best moments among the windows `rows`, whose features are [len(rows), E]."""
        products = exact_scores(features, directions)
        fitting = (products[:, :1] > products[:, 1:]).all(axis=1)
        rows, scores = rows[fitting], products[fitting, 0]
        best = best_apart(scores, self.owners[rows], self.times[rows], top_k)
        return [self._moment(int(rows[place]), float(scores[place])) for place in best]

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
