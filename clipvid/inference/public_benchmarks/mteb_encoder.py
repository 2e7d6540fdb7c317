"""Encoder for the video tasks of mteb (MVEB).

Shapes: N rows of a task, E embedding.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from clipvid import InputError
from clipvid.data.loader import worker_options
from clipvid.data.reader import VideoError
from clipvid.inference.clips import ClipReader
from clipvid.inference.public_benchmarks.comparable import takes_text, warn_of_unused_parts
from clipvid.inference.search.settings import model_fingerprint
from clipvid.inference.videos import open_source
from clipvid.model.video_clip import VideoCLIP

_COLUMNS = ("text", "video")


class MtebEncoder:
    """Model with the interface `mteb.models.EncoderProtocol`, for `mteb.evaluate`.

    A video is sampled and resized as in the evaluation of the model, with one clip. A text is encoded as it is.
    Features are L2-normalized, and their similarity is the cosine. A row with text and video has the mean of both.

    mteb stores results under the name of the model and its revision. The revision is a hash of everything that the
    features depend on, so that results of other weights are never returned.

    Args:
        model: Model in evaluation mode. Without a text head or a text tower, it takes tasks with videos only.
        name: Name of the model in tables, as organization/model.
        training_datasets: Names of mteb's tasks whose data the model was trained on. None if unknown.

    Raises:
        InputError: mteb is not installed, or the name has another form.
    """

    def __init__(self, model: VideoCLIP, name: str, training_datasets: Collection[str] | None = None) -> None:
        if name.count("/") != 1 or not all(name.split("/")):
            raise InputError(f"name={name!r}: mteb expects organization/model, such as me/my_videos")
        self.model = model
        self.reader = ClipReader.create(model.num_frames, model.image_size, model.preprocessing)
        self.takes_text = takes_text(model)
        if self.takes_text:
            warn_of_unused_parts(model)
        self.mteb_model_meta = self._describe(name, training_datasets)

    @torch.no_grad()
    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        show_progress_bar: bool = True,
        **kwargs: Any,
    ) -> np.ndarray:
        """Return features float32 [N, E] of the rows of a task.

        Args:
            inputs: Rows with the columns `text`, `video` or both. Its `batch_size` and `num_workers` are followed.
            task_metadata: Description of the task.
            hf_split: Split of the data set.
            hf_subset: Subset of the data set.
            prompt_type: Query or document. Both are encoded alike.
            show_progress_bar: Show the progress on standard error.
            kwargs: Options of other encoders, which are ignored.

        Raises:
            InputError: There is neither a text nor a video, or the model takes no text.
            VideoError: A video cannot be read. mteb has no place for rows without features.
        """
        rows: Any = inputs.dataset
        name = f"{task_metadata.name}, {hf_subset}, {hf_split}"
        columns = [column for column in _COLUMNS if column in rows.column_names]
        if not columns:
            raise InputError(f"{name}: the columns are {', '.join(rows.column_names)}; expected text, video or both")
        if "text" in columns and not self.takes_text:
            raise InputError(f"{name}: the model has no text head with a text tower, so it takes tasks without text")
        clips = _Rows(_undecoded(rows.select_columns(columns)), self.reader, name)
        loader: DataLoader[Any] = DataLoader(
            clips, batch_size=inputs.batch_size or 1, collate_fn=_collate, **worker_options(inputs.num_workers)
        )
        progress = tqdm(loader, desc=name, disable=not show_progress_bar)
        features = [self._features(batch).float().cpu() for batch in progress]
        return torch.cat(features).numpy()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosines [N, M] of all pairs of features [N, E] and [M, E]."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosines [N] of the pairs of features [N, E] and [N, E]."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(dim=-1)

    def _features(self, batch: dict[str, Any]) -> Tensor:
        features = []
        if "text" in batch:
            features.append(F.normalize(self.model.encode_text(batch["text"]).float(), dim=-1))
        if "video" in batch:
            clips = batch["video"].to(self.model.pixel_mean.device)
            features.append(F.normalize(self.model.encode_video(clips).float(), dim=-1))
        return F.normalize(torch.stack(features).mean(dim=0), dim=-1) if len(features) > 1 else features[0]

    def _describe(self, name: str, training_datasets: Collection[str] | None) -> Any:
        """Return mteb's description of the model."""
        try:
            from mteb.models import ModelMeta
            from mteb.models.model_meta import ScoringFunction
        except ImportError:
            raise InputError("this encoder needs mteb; install it: pip install 'clipvid[mteb]'") from None
        parameters = list(self.model.parameters())
        facts = {
            "name": name,
            "revision": model_fingerprint(self.model)[:40],
            "languages": ["eng-Latn"],
            "n_parameters": sum(parameter.numel() for parameter in parameters),
            "memory_usage_mb": sum(parameter.nbytes for parameter in parameters) / 2**20,
            "embed_dim": self.model.backbone.vision.embed_dim,
            "framework": ["PyTorch"],
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": False,
            "modalities": ["video", "text"] if self.takes_text else ["video"],
            "training_datasets": None if training_datasets is None else set(training_datasets),
        }
        return ModelMeta.create_empty(facts)


class _Rows(Dataset[dict[str, Any]]):
    """Rows of a task with the clip [T, 3, S, S] of their video."""

    def __init__(self, rows: Any, reader: ClipReader, name: str) -> None:
        self.rows, self.reader, self.name = rows, reader, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = dict(self.rows[index])
        if "video" in row:
            row["video"] = self._clip(row["video"], index)
        return row

    def _clip(self, source: Any, index: int) -> Tensor:
        name = f"row {index} of {self.name}"
        if isinstance(source, dict):  # of `datasets.Video(decode=False)`
            name += f" ({source['path']})" if source.get("path") else ""
            source = source.get("bytes") or source.get("path")
        try:
            with open_source(source) as video:
                return self.reader.read(video)[0]
        except VideoError as error:
            raise VideoError(name, error.reason or str(error)) from None
        except InputError as error:
            raise InputError(f"{name}: {error}") from None


def _undecoded(rows: Any) -> Any:
    """Return a Dataset whose videos are paths and bytes, which clipvid decodes as in every evaluation."""
    from datasets import Video

    if isinstance(rows.features.get("video"), Video):
        return rows.cast_column("video", Video(decode=False))
    return rows


def _collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    if "video" in batch:
        batch["video"] = torch.stack(batch["video"])
    return batch


def _unit(features: Any) -> Tensor:
    """Return features [N, E] or [E] as float32 [N, E] of length 1."""
    return F.normalize(torch.atleast_2d(torch.as_tensor(features).float()), dim=-1)
