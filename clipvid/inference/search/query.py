"""Queries: texts to look for, texts to avoid, and example videos, as directions among the features.

Shapes: E embedding, N texts to avoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipvid import InputError
from clipvid.data.reader import VideoError
from clipvid.inference.search.encoding import WindowEncoder, normalized

_LONGEST = 10_000  # letters of a text, of which the text tower reads the first few hundred


@dataclass(frozen=True)
class Query:
    """Query for windows of videos.

    Attributes:
        texts: Texts to look for.
        exclude: Texts to avoid. Windows that fit one of them better than the query are left out.
        like: Example videos, see `clipvid.Predictor`.

    Raises:
        InputError: There is nothing to look for, or a text is empty or too long.
    """

    texts: Sequence[str] = ()
    exclude: Sequence[str] = ()
    like: Sequence[Any] = ()

    def __post_init__(self) -> None:
        for text in (*self.texts, *self.exclude):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"the query has the text {text!r}; expected at least one word")
            if len(text) > _LONGEST:
                raise InputError(f"the query has a text of {len(text)} letters; expected at most {_LONGEST}")
        if not self.texts and not self.like:
            raise InputError("the query is empty; expected a text or an example video (--like)")

    def directions(self, encoder: WindowEncoder) -> Tensor:
        """Return directions float32 [1 + N, E]: the mean of texts and examples, and the N texts to avoid.

        The product of a normalized feature with the first one is its score, the mean cosine.

        Raises:
            InputError: An example is not a video, or a feature of the query is not finite.
            VideoError: An example cannot be read.
        """
        sought = [*self._texts(encoder, self.texts), *self._examples(encoder)]
        directions = torch.stack([torch.stack(sought).mean(dim=0), *self._texts(encoder, self.exclude)])
        if not directions.isfinite().all():
            raise InputError("the model returned features of the query that are not finite; are its weights damaged?")
        return directions

    @torch.no_grad()
    def _texts(self, encoder: WindowEncoder, texts: Sequence[str]) -> list[Tensor]:
        return list(normalized(encoder.model.encode_text(texts).float().cpu())) if texts else []

    def _examples(self, encoder: WindowEncoder) -> list[Tensor]:
        """Return the mean direction of the windows of each example."""
        directions = []
        for _, encoded in encoder.encode(self.like):
            if isinstance(encoded, VideoError):
                raise encoded
            directions.append(normalized(torch.from_numpy(encoded.features).float().mean(dim=0)))
        return directions
