"""Video models from CLIP image models.

`clipvid.finetune` trains a model on labeled video, and `clipvid.evaluate` measures one. Importing the package registers
its models with the Auto classes of transformers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_HOMES = {
    "ADAPTERS": "clipvid.adapters",
    "AdapterBank": "clipvid.inference.bank",
    "ClipVidConfig": "clipvid.inference.auto_classes",
    "ClipVidForVideoClassification": "clipvid.inference.auto_classes",
    "ClipVidVideoProcessor": "clipvid.inference.auto_classes",
    "Explanation": "clipvid.inference.explain.explanation",
    "Index": "clipvid.inference.search.index",
    "ModelConfig": "clipvid.model",
    "Moment": "clipvid.inference.search.index",
    "Predictor": "clipvid.inference.predictor",
    "Run": "clipvid.experiments.python_api",
    "VideoCLIP": "clipvid.model",
    "VideoCLIPOutput": "clipvid.model",
    "build_index": "clipvid.inference.search.building",
    "create_model": "clipvid.model.factory",
    "evaluate": "clipvid.experiments.python_api",
    "explain": "clipvid.inference.explain.explanation",
    "finetune": "clipvid.experiments.python_api",
    "from_pretrained": "clipvid.hub",
    "push_to_hub": "clipvid.hub",
}
_MODULES = ("convert",)
_REGISTRATION = "clipvid.inference.registration"
__all__ = [*_HOMES, *_MODULES, "ClipvidError", "InputError", "RunError"]


class ClipvidError(Exception):
    """Base class of errors meant for users. The command line prints them as one line, without a traceback."""


class InputError(ClipvidError, ValueError):
    """Error for an option, a file or an argument that cannot be used."""


class RunError(ClipvidError, RuntimeError):
    """Error for an operation that failed although its input was valid."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"clipvid.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'clipvid' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Imported by name, as the names above are: every package imports the errors of this module.
import_module(_REGISTRATION).register_with_transformers()
