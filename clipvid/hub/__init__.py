"""Model folders: read from disk or from the Hugging Face Hub, and pushed there."""

from clipvid.hub.continuing import start_from
from clipvid.hub.loading import from_pretrained, load_model
from clipvid.hub.push import push_to_hub

__all__ = ["from_pretrained", "load_model", "push_to_hub", "start_from"]
