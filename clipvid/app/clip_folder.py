"""Clips of a folder and their video features, which a thread computes once and stores.

Shapes: N clips, E embedding.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from clipvid import InputError
from clipvid.app.shared_model import SharedModel
from clipvid.data.feature_store import FeatureStore, StoredFeatures
from clipvid.data.lists.text import is_utf8
from clipvid.data.sampling import keyed_generator
from clipvid.files import cache_folder, hash_key, one_line, printable
from clipvid.inference.clips import ClipReader
from clipvid.inference.search.settings import model_fingerprint
from clipvid.inference.stream import ClipBatch, read_clips
from clipvid.inference.video_names import SUFFIXES, videos_in

MOST_CLIPS = 20_000
_AT_ONCE = 4  # clips of a pass of the model, after which other requests have their turn
_STORED = 2**30  # bytes


class ClipFolder:
    """Clips below a folder. Features become available one after another, in a mixed order.

    Args:
        shared: The model.
        folder: The folder.

    Attributes:
        folder: Absolute path of the folder.
        skipped: Reason by name of each file that cannot be used.
        failure: Error that ended the thread, or None.

    Raises:
        InputError: The folder does not exist, or has no usable videos or too many.
    """

    def __init__(self, shared: SharedModel, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"--teach {folder} is not a folder; expected a folder of videos")
        self.folder = folder.resolve()
        self.skipped: dict[str, str] = {}
        names = list(self._usable())
        if not names:
            raise InputError(f"--teach {folder} has no usable video; expected files with {', '.join(SUFFIXES)}")
        if len(names) > MOST_CLIPS:
            raise InputError(f"--teach {folder} has {len(names)} videos; expected at most {MOST_CLIPS}: name a part")
        order = torch.randperm(len(names), generator=keyed_generator(0)).tolist()
        self.names = [names[place] for place in order]
        self.failure: str | None = None
        self._shared = shared
        self._features: dict[str, Tensor] = {}
        self._stacked = torch.empty(0)
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="features")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """End the thread after the clips that it is reading."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def wait(self) -> None:
        """Wait until all clips are encoded or skipped."""
        self._thread.join()

    def path(self, name: str) -> Path:
        """Return the path of a clip.

        Raises:
            InputError: The folder has no clip with this name.
        """
        if name not in self.names:
            raise InputError(f"{printable(name)!r} is not a clip of the folder")
        return self.folder / name

    def ready(self) -> tuple[list[str], Tensor]:
        """Return the names of the clips that are encoded, in order of their completion, and their features [N, E]."""
        with self._lock:
            return list(self._features), torch.stack(list(self._features.values())) if self._features else torch.empty(
                0
            )

    def done(self) -> int:
        """Return the number of clips that are encoded or could not be read."""
        with self._lock:
            return len(self._features) + sum(name in self.skipped for name in self.names)

    def _usable(self) -> Iterator[str]:
        """Yield the names of the videos, and note those that cannot be listed in a file or lead out of the folder."""
        for path in videos_in(self.folder):
            name = path.relative_to(self.folder).as_posix()
            if not path.resolve().is_relative_to(self.folder):
                self.skipped[name] = "the file is a link that leads out of the folder"
            elif not is_utf8(name) or printable(name) != name or any(part.strip() != part for part in name.split("/")):
                self.skipped[name] = "the name is not plain text on one line, without spaces around it; rename the file"
            else:
                yield name

    def _run(self) -> None:
        try:
            self._compute()
        except Exception as error:  # the page shows it
            self.failure = one_line(error)
            raise

    def _compute(self) -> None:
        model = self._shared.model
        recipe = hash_key("teach", 1, model_fingerprint(model))
        stored = StoredFeatures(FeatureStore(cache_folder() / "teach", _STORED), recipe)
        keys = {name: stored.key(self.folder / name) for name in self.names}
        missing = []
        for name, key in keys.items():
            entry = None if key is None else stored.store.read(key)
            if entry is None:
                missing.append(name)
            else:
                self._add(name, entry[0].clone())
        reader = ClipReader.create(model.num_frames, model.image_size, model.preprocessing)
        sources = {str(self.folder / name): name for name in missing}
        unread = (source for source in sources if not self._stopped.is_set())
        for batch in read_clips(reader, 1, unread, _AT_ONCE, 0):
            for name, features in self._encode(batch, [sources[source] for source in batch.sources]):
                self._add(name, features)
                key = keys[name]
                if key is not None and key == stored.key(self.folder / name):
                    stored.store.write(key, features)

    def _encode(self, batch: ClipBatch, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the names and features of the usable clips of a batch, and note the reasons of the others."""
        features = iter(() if batch.clips is None else self._shared.video_features(batch.clips[:, 0]))
        for name, video in zip(names, batch.videos, strict=True):
            own = next(features) if video.error is None else None
            if own is not None and own.isfinite().all():
                yield name, own.clone()
                continue
            reason = None if video.error is None else video.error.reason or str(video.error)
            with self._lock:
                self.skipped[name] = reason or "the model returned features that are not finite"

    def _add(self, name: str, features: Tensor) -> None:
        with self._lock:
            self._features[name] = features
