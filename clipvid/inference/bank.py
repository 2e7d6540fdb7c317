"""Several trained models on one backbone in memory, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from clipvid import InputError
from clipvid.hub.loading import from_pretrained
from clipvid.model.video_clip import VideoCLIP, VideoCLIPOutput


class AdapterBank(nn.Module):
    """Models that share the frozen weights of one backbone. Each has its adapters, pooling, head and labels.

    Calls go to the active one, `model`:

        bank = AdapterBank(clipvid.from_pretrained("user/gestures"), "gestures")
        bank.load_adapter("user/sports", "sports")
        bank.set_adapter("sports")
        bank(clip).logits  # [B, number of sports]
    """

    def __init__(self, model: VideoCLIP, name: str = "default"):
        super().__init__()
        self.models = nn.ModuleDict({name: model})
        self.active = name

    @property
    def model(self) -> VideoCLIP:
        """The active model."""
        model = self.models[self.active]
        assert isinstance(model, VideoCLIP)
        return model

    @property
    def adapter_names(self) -> list[str]:
        """Names in the order of loading."""
        return list(self.models)

    def load_adapter(self, source: str | Path, name: str, revision: str | None = None) -> None:
        """Add a saved model, a folder or a repository. The active model does not change.

        Raises:
            InputError: The name is taken, or the model was trained on another backbone or trained the backbone. See
                also `clipvid.from_pretrained`.
        """
        if name in self.models:
            raise InputError(f"adapter {name!r} already exists; adapters: {', '.join(self.models)}")
        if not name or "." in name or hasattr(self.models, name):
            raise InputError(f"adapter {name!r}: choose a word without dots that is not an attribute of nn.ModuleDict")
        self.models[name] = from_pretrained(source, revision, self.model.backbone)

    def set_adapter(self, name: str) -> None:
        """Make the adapter `name` active.

        Raises:
            InputError: The name is unknown.
        """
        if name not in self.models:
            raise InputError(f"no adapter {name!r}; adapters: {', '.join(self.models)}")
        self.active = name

    def forward(self, *args: Any, **kwargs: Any) -> VideoCLIPOutput:
        """Call the active model, see `VideoCLIP.forward`."""
        return self.model(*args, **kwargs)
