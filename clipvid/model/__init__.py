"""`VideoCLIP`: clips and class names in, logits out; its parts, and how they are built and saved."""

from clipvid.model.video_clip import ModelConfig, VideoCLIP, VideoCLIPOutput

__all__ = ["ModelConfig", "VideoCLIP", "VideoCLIPOutput"]
