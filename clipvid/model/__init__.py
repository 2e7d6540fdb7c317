"""`VideoCLIP`, which maps clips and class names to logits; its parts, factory and saved form."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # names of __getattr__, for type checkers and editors
    from clipvid.model.config import ModelConfig as ModelConfig
    from clipvid.model.video_clip import VideoCLIP as VideoCLIP
    from clipvid.model.video_clip import VideoCLIPOutput as VideoCLIPOutput

_HOMES = {"ModelConfig": "config", "VideoCLIP": "video_clip", "VideoCLIPOutput": "video_clip"}
__all__ = ["ModelConfig", "VideoCLIP", "VideoCLIPOutput"]


def __getattr__(name: str) -> Any:
    # Configs of command lines come from this package. They must not import towers.
    if name not in _HOMES:
        raise AttributeError(f"module 'clipvid.model' has no attribute {name!r}")
    return getattr(import_module(f"clipvid.model.{_HOMES[name]}"), name)
