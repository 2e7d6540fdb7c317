"""clipvid: CLIP image models made into video models."""

from clipvid import convert
from clipvid.adapters import ADAPTERS
from clipvid.hub.loading import from_pretrained
from clipvid.hub.push import push_to_hub
from clipvid.inference.auto_classes import ClipVidConfig, ClipVidForVideoClassification, ClipVidVideoProcessor
from clipvid.inference.bank import AdapterBank
from clipvid.inference.predictor import Predictor
from clipvid.model.factory import create_model
from clipvid.model.video_clip import ModelConfig, VideoCLIP, VideoCLIPOutput

__version__ = "0.1.0"
__all__ = [
    "ADAPTERS",
    "AdapterBank",
    "ClipVidConfig",
    "ClipVidForVideoClassification",
    "ClipVidVideoProcessor",
    "ModelConfig",
    "Predictor",
    "VideoCLIP",
    "VideoCLIPOutput",
    "convert",
    "create_model",
    "from_pretrained",
    "push_to_hub",
]
