"""clipvid: CLIP image models made into video models."""

from clipvid import convert
from clipvid.adapters import ADAPTERS
from clipvid.auto import ClipVidConfig, ClipVidForVideoClassification, ClipVidVideoProcessor
from clipvid.bank import AdapterBank
from clipvid.builder import create_model
from clipvid.hub import from_pretrained
from clipvid.model import ModelConfig, VideoCLIP, VideoCLIPOutput
from clipvid.predictor import Predictor
from clipvid.push import push_to_hub

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
