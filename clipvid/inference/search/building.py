"""Building of an index: only new and changed videos are encoded, and a killed run continues.

Each encoded video is stored at once. At the end, old and new features are joined in the order of the names.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from clipvid import InputError, RunError
from clipvid.data.reader import VideoError
from clipvid.inference.search.encoding import VideoFeatures, WindowEncoder
from clipvid.inference.search.folder import (
    INDEX,
    PARTIAL,
    IndexedVideo,
    IndexRecord,
    check_hashes,
    graph_path,
    open_arrays,
    read_record,
    write_index,
)
from clipvid.inference.search.graph import build_graph, check_usearch
from clipvid.inference.search.index import Index
from clipvid.inference.search.settings import IndexSettings, ModelSource
from clipvid.inference.search.unfinished import FileState, UnfinishedVideos
from clipvid.inference.video_names import SUFFIXES, videos_in
from clipvid.model.video_clip import VideoCLIP
from clipvid.runs.lock import NAME as LOCK
from clipvid.runs.lock import locked
from clipvid.runs.progress import Remaining


def build_index(
    folder: str | os.PathLike[str],
    model: VideoCLIP,
    output: str | os.PathLike[str] = "outputs/index",
    window: float = 2.0,
    hop: float = 1.0,
    num_workers: int = 2,
    graph: bool = False,
    source: ModelSource | None = None,
    on_error: Callable[[VideoError], None] | None = None,
) -> Index:
    """Write or update the index of the videos in a folder and its subfolders.

    Only new and changed files are encoded, and deleted files leave the index. The same call continues a killed one. On
    a CPU the files are those of a first run, to the bit.

    Args:
        folder: Folder of the videos.
        model: Model in evaluation mode with a text head.
        output: Folder of the index.
        window: Seconds of a window.
        hop: Seconds between windows. The last window ends with the video.
        num_workers: Reading processes. 0 to read in this process.
        graph: Also write a graph for approximate search, which needs usearch.
        source: Stored as the default model of `clipvid search`.
        on_error: Called for each video that cannot be read. By default, a warning.

    Raises:
        InputError: An option is out of range, the folder has no videos, or the model cannot search. Also raised if
            `output` is another folder than an index, damaged, or has other settings.
        RunError: No video can be read, or another process writes the index.
    """
    folder, output = Path(folder), Path(output)
    if num_workers < 0:
        raise InputError(f"num_workers={num_workers}: expected at least 0")
    if graph:
        check_usearch()
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected a folder of videos")
    settings = IndexSettings.create(folder, model, window, hop, source)
    if not videos_in(folder):
        raise InputError(f"{folder} has no video; expected files with one of the endings {', '.join(SUFFIXES)}")
    _check_output(output)
    with locked(output):
        _Build(folder, output, settings, WindowEncoder(model, window, hop), on_error or _warn).run(num_workers)
        index = Index(output)
        path = graph_path(output, read_record(output))
        if graph and not path.exists():
            build_graph(index.features, path)
    return index


def _warn(error: VideoError) -> None:
    warnings.warn(f"not in the index: {error}", stacklevel=2)


def _check_output(output: Path) -> None:
    """Raise InputError for a folder that is neither empty nor an index, finished or not."""
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; expected the folder of an index, or a new one")
    unfinished = output / PARTIAL
    if not output.is_dir() or (output / INDEX).exists() or UnfinishedVideos.is_present(unfinished):
        return
    is_empty = unfinished.is_dir() and not any(unfinished.iterdir())
    own = [PARTIAL] if is_empty else []
    others = [path.name for path in output.iterdir() if not path.name.startswith(LOCK) and path.name not in own]
    if others:
        raise InputError(
            f"--output {output} is not an index and contains {others[0]!r}; choose an empty or a new folder"
        )


@dataclass(frozen=True)
class _FormerIndex:
    """Index that is there already. Its arrays are checked by their hashes.

    Attributes:
        record: Its record.
        features: float16 [W, E].
        times: float64 [W, 2].
        rows: Windows of each video by its name, size and time of modification.
    """

    record: IndexRecord
    features: np.ndarray
    times: np.ndarray
    rows: dict[tuple[str, int, int], slice]

    @classmethod
    def open(cls, folder: Path, settings: IndexSettings) -> _FormerIndex:
        """Read the index in a folder.

        Raises:
            InputError: It is damaged, or has other settings.
        """
        record = read_record(folder)
        changed = settings.differences(record.settings)
        if changed:
            names = ", ".join("model" if name == "fingerprint" else name for name in changed)
            raise InputError(
                f"--output {folder} is an index with other settings ({names}); choose another folder, or delete it"
            )
        features, times = open_arrays(folder, record)
        check_hashes(folder, record)
        ends = accumulate(video.windows for video in record.videos)
        rows = {
            (video.name, video.size, video.modified): slice(end - video.windows, end)
            for video, end in zip(record.videos, ends, strict=True)
        }
        return cls(record, features, times, rows)

    def read(self, state: FileState) -> VideoFeatures | None:
        """Return the features of a video, or None if it is new or has changed."""
        own = self.rows.get((state.name, state.size, state.modified))
        return None if own is None else VideoFeatures(self.times[own], self.features[own])


class _Build:
    """One run that writes the index in `output`."""

    def __init__(
        self,
        folder: Path,
        output: Path,
        settings: IndexSettings,
        encoder: WindowEncoder,
        on_error: Callable[[VideoError], None],
    ) -> None:
        self.folder, self.output, self.settings = folder, output, settings
        self.encoder, self.on_error = encoder, on_error
        self.unfinished = UnfinishedVideos(output / PARTIAL, settings)
        self.former = _FormerIndex.open(output, settings) if (output / INDEX).exists() else None

    def run(self, num_workers: int) -> None:
        """Encode the videos that are missing, and write the index if it changes.

        Raises:
            RunError: No video can be read.
        """
        self.unfinished.open()
        states = self._states()
        failed = self._encode([state for state in states if self._read(state) is None], num_workers)
        states = [state for state in states if state.name not in failed]
        if not states:
            self.unfinished.remove()
            raise RunError(f"no video in {self.folder} can be read; the reasons are above")
        videos, width = [], 0
        for state in states:
            count, width = self._encoded(state).features.shape
            videos.append(IndexedVideo(state.name, state.size, state.modified, count))
        if self.former is None or (self.former.record.settings, self.former.record.videos) != (self.settings, videos):
            features = (self._encoded(state).features for state in states)
            times = (self._encoded(state).times for state in states)
            write_index(self.output, self.settings, videos, features, times, width)
        self.unfinished.remove()

    def _states(self) -> list[FileState]:
        states = []
        for path in videos_in(self.folder):
            try:
                states.append(FileState.read(path, self.folder))
            except VideoError as error:
                self.on_error(error)
        return states

    def _encode(self, states: list[FileState], num_workers: int) -> set[str]:
        """Encode and store videos. Return the names of those that failed."""
        failed, progress = set(), Remaining("videos to encode")
        sources = [str(state.path) for state in states]
        for done, (number, encoded) in enumerate(self.encoder.encode(sources, num_workers), 1):
            state = states[number]
            try:
                if isinstance(encoded, VideoError):
                    raise encoded
                if FileState.read(state.path, self.folder) != state:
                    raise VideoError(str(state.path), "the file changed while it was read; run the command again")
                self.unfinished.write(state, encoded)
            except VideoError as error:
                failed.add(state.name)
                self.on_error(error)
            progress(done, len(states))
        return failed

    def _read(self, state: FileState) -> VideoFeatures | None:
        former = None if self.former is None else self.former.read(state)
        return self.unfinished.read(state) if former is None else former

    def _encoded(self, state: FileState) -> VideoFeatures:
        encoded = self._read(state)
        if encoded is None:
            raise RunError(f"the features of {state.path} are gone from {self.output}; run the command again")
        return encoded
