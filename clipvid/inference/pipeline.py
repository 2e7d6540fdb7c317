"""Video-classification pipeline of transformers with batches and frames in memory, for clipvid's models."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.feature_extraction_utils import BatchFeature
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.pipelines.video_classification import VideoClassificationPipeline

from clipvid.inference.processor import ClipVidVideoProcessor
from clipvid.inference.videos import split_videos

TASK = "video-classification"


class ClipVidPipeline(VideoClassificationPipeline):
    """Pipeline of videos. Models of other libraries use transformers' methods."""

    @property
    def _is_ours(self) -> bool:
        return isinstance(self.video_processor, ClipVidVideoProcessor)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return the classes of a video, or of each video of a list; see `clipvid.Predictor` for the kinds of video."""
        if not self._is_ours or not isinstance(inputs, list | tuple) or not inputs:
            return super().__call__(inputs, **kwargs)
        videos, several = split_videos(inputs)
        predictions = super().__call__(videos, **kwargs)
        return predictions if several else predictions[0]

    def preprocess(  # type: ignore[override]
        self, video: Any, num_frames: int | None = None, frame_sampling_rate: int | None = None
    ) -> Any:
        """Return the clip of a video."""
        processor = self.video_processor
        if not isinstance(processor, ClipVidVideoProcessor):
            return super().preprocess(video, num_frames, frame_sampling_rate or 1)
        return processor(video, num_frames=num_frames, frame_sampling_rate=frame_sampling_rate)

    def postprocess(  # type: ignore[override]
        self, model_outputs: Any, top_k: int = 5, function_to_apply: str | None = None
    ) -> Any:
        """Return the `top_k` classes with their probabilities. Each has one by itself if a clip may have several."""
        if self._is_ours and function_to_apply is None:
            function_to_apply = "sigmoid" if self.model.config.is_multi_label else "softmax"
        return super().postprocess(model_outputs, top_k, function_to_apply)

    def get_iterator(
        self, inputs: Any, num_workers: int, batch_size: int, preprocess: Any, forward: Any, postprocess: Any
    ) -> Any:
        """Iterate over the outputs. Clips of a batch are concatenated, since all have the same size."""
        if not self._is_ours:
            return super().get_iterator(inputs, num_workers, batch_size, preprocess, forward, postprocess)
        dataset = (PipelineDataset if hasattr(inputs, "__len__") else PipelineIterator)(
            inputs, self.preprocess, preprocess
        )
        workers = num_workers if hasattr(inputs, "__len__") else min(num_workers, 1)
        loader = DataLoader(dataset, num_workers=workers, batch_size=batch_size, collate_fn=_collate)
        outputs = PipelineIterator(loader, self.forward, forward, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess)


def _collate(items: list[Any]) -> BatchFeature:
    return BatchFeature({key: torch.cat([item[key] for item in items]) for key in items[0]})


def register() -> None:
    """Make `ClipVidPipeline` the pipeline of the task, without a warning."""
    PIPELINE_REGISTRY.supported_tasks[TASK]["impl"] = ClipVidPipeline
