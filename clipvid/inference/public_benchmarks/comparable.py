"""Check of models whose answers depend on more than the features of video and text."""

from __future__ import annotations

import warnings

from clipvid.model.video_clip import VideoCLIP


def takes_text(model: VideoCLIP) -> bool:
    """Return True if the video features of a model can be compared with texts."""
    return model.head.needs_text and model.text.present


def warn_of_unused_parts(model: VideoCLIP) -> None:
    """Warn about parts of a text head that `clipvid evaluate` uses, and a benchmark of features cannot."""
    prompts = "video-specific prompts" if model.head.needs_patches else None
    context = "learned context tokens" if model.context is not None else None
    unused = " and ".join(part for part in (prompts, context) if part)
    if unused:
        warnings.warn(
            f"the model has {unused}, which features do not contain: figures differ from those of clipvid evaluate",
            stacklevel=3,
        )
