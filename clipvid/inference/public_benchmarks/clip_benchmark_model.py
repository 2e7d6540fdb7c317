"""Model and videos for the evaluations of clip-benchmark, which knows images.

Shapes: B clips, T frames, S image side, K texts, L text length, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from clipvid import InputError
from clipvid.inference.clips import ClipReader
from clipvid.inference.public_benchmarks.comparable import takes_text, warn_of_unused_parts
from clipvid.inference.videos import open_source
from clipvid.model.prompts import class_prompts, resolve_templates
from clipvid.model.video_clip import VideoCLIP


class ClipBenchmarkModel(nn.Module):
    """Model with `encode_image` and `encode_text`, in which an image is a clip.

    Args:
        model: Model in evaluation mode.

    Raises:
        InputError: The video features of the model cannot be compared with texts.
    """

    def __init__(self, model: VideoCLIP) -> None:
        super().__init__()
        if not takes_text(model):
            raise InputError(
                "the model has no text head with a text tower; clip-benchmark compares videos with texts, so choose a "
                "model with both"
            )
        warn_of_unused_parts(model)
        self.model = model

    @property
    def tokenizer(self) -> Callable[[list[str]], Tensor]:
        """Function from K texts to token ids [K, L]."""
        return self.model.text.tokenize

    def encode_image(self, images: Tensor) -> Tensor:
        """Return video features [B, E], not normalized, of clips uint8 [B, T, 3, S, S]."""
        return self.model.encode_video(images)

    def encode_text(self, text: Tensor) -> Tensor:
        """Return text features [K, E], not normalized, of token ids [K, L]."""
        return self.model.encode_text(text)


class ClipBenchmarkVideos(Dataset[tuple[Tensor, Any]]):
    """Clips uint8 [T, 3, S, S] of videos, read as in the evaluation of a model, with their targets.

    Args:
        model: Model whose frames, sampling and resizing are used.
        videos: Videos, see `clipvid.Predictor`.
        targets: For each video, the number of its class, or a list of captions for retrieval.
        classes: Class names.
        templates: See `clipvid.model.prompts.resolve_templates`.

    Attributes:
        classes: Class names in words, as in the prompts of `clipvid evaluate`.
        templates: Templates in the form of clip-benchmark, with `{c}` for the class.

    Raises:
        InputError: The numbers of videos and targets differ, or a template is invalid.
    """

    def __init__(
        self,
        model: VideoCLIP,
        videos: Sequence[Any],
        targets: Sequence[Any],
        classes: Sequence[str] = (),
        templates: str | Sequence[str] | None = None,
    ) -> None:
        if len(videos) != len(targets):
            raise InputError(f"{len(videos)} videos with {len(targets)} targets; expected one target for each video")
        self.videos, self.targets = videos, targets
        self.classes = [words for (words,) in class_prompts(classes, ["{}"])]
        self.templates = [template.replace("{}", "{c}") for template in resolve_templates(templates)]
        self._reader = ClipReader.create(model.num_frames, model.image_size, model.preprocessing)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        """Return clip and target of a video.

        Raises:
            InputError: The object is not a video.
            VideoError: The video cannot be read. clip-benchmark has no place for videos without features.
        """
        with open_source(self.videos[index]) as video:
            return self._reader.read(video)[0], self.targets[index]
