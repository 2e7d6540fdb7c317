"""Registration of clipvid's classes with transformers, without importing transformers.

`import clipvid` calls `register_with_transformers`. `pipeline("video-classification", model=DIR)` then works,
independent of the order of imports.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

AUTO_MODULES = frozenset(
    f"transformers.models.auto.{name}" for name in ("configuration_auto", "modeling_auto", "video_processing_auto")
)


def register_with_transformers() -> None:
    """Register now if transformers' Auto classes are loaded, otherwise as soon as they are."""
    if AUTO_MODULES & sys.modules.keys():
        _register()
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def _register() -> None:
    import_module("clipvid.inference.auto_classes")  # registers its classes


class _Watcher(MetaPathFinder):
    """Import finder that detects when transformers has loaded an Auto class, registers, and removes itself.

    The registration needs modules of transformers. It waits until none of them is being imported.
    """

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.loaded = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of other finders for a module of transformers, with its loader watched."""
        if name.partition(".")[0] != "transformers":
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: Loader) -> None:
        execute = loader.exec_module

        def execute_watched(module: ModuleType) -> None:
            name = module.__spec__.name if module.__spec__ is not None else module.__name__
            self.running.add(name)
            try:
                execute(module)
                self.loaded = self.loaded or name in AUTO_MODULES
            finally:
                self.running.discard(name)
            if self.loaded and not self.running and self in sys.meta_path:
                sys.meta_path.remove(self)
                _register()

        loader.exec_module = execute_watched  # type: ignore[method-assign]
