"""clipvid: CLIP image models made into video models."""

from clipvid import convert
from clipvid.adapters import ADAPTERS
from clipvid.builder import create_model
from clipvid.hub import from_pretrained
from clipvid.model import ModelConfig, VideoCLIP, VideoCLIPOutput

__version__ = "0.1.0"
__all__ = [
    "ADAPTERS",
    "ModelConfig",
    "VideoCLIP",
    "VideoCLIPOutput",
    "convert",
    "create_model",
    "from_pretrained",
]
