"""JSON lines of predictions in a file that a killed run continues, for one process or several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipvid import InputError
from clipvid.files import check_regular, replacing, write_json

if TYPE_CHECKING:
    from clipvid.model.video_clip import VideoCLIP


class PredictionLog:
    """File of one line per video. A line is appended as soon as its video is done.

    Each of several processes appends to a part of the file. The first process joins the parts at the end. The settings
    that the lines depend on are stored beside the file.

    Args:
        path: The file.
        rank: Number of this process.
        processes: Number of processes.
    """

    def __init__(self, path: Path, rank: int = 0, processes: int = 1) -> None:
        self.path = path
        self._settings = path.with_name(f"{path.name}.settings.json")
        self._own = path if processes == 1 else path.with_name(f"{path.name}.part-{rank}")

    def check(self, settings: dict[str, Any]) -> None:
        """Store the settings of a new file.

        Raises:
            InputError: The file has predictions under other settings, or is not a file of predictions.
        """
        if self._files():
            try:
                stored = json.loads(self._settings.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                raise InputError(
                    f"--output {self.path} exists, and {self._settings.name} is missing or damaged: it cannot be "
                    "continued; choose another file, or delete it"
                ) from None
            changed = sorted(name for name in settings if stored.get(name) != settings[name])
            if changed:
                raise InputError(
                    f"--output {self.path} has predictions with other settings ({', '.join(changed)}); choose another "
                    f"file, or delete it and {self._settings.name}"
                )
        else:
            write_json(self._settings, settings)

    def read(self) -> dict[str, str]:
        """Return the complete lines of the file and its parts, by the name of the video."""
        lines = {}
        for file in self._files():
            for line in file.read_bytes().split(b"\n")[:-1]:
                lines[_video(line, file)] = line.decode()
        return lines

    def open(self) -> None:
        """Open the file of this process to append lines. A line that was cut is removed."""
        self._own.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._own.open("a+b")
        self._file.seek(0)
        end = self._file.read().rfind(b"\n") + 1
        self._file.truncate(end)

    def append(self, line: str) -> None:
        """Append a line, and pass it to the operating system."""
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file of this process."""
        self._file.close()

    def join(self, names: Iterable[str], lines: dict[str, str]) -> None:
        """Write the lines in the order of `names`, after those of other videos, in place of the file and its parts."""
        order = dict.fromkeys(names)
        others = [line for name, line in lines.items() if name not in order]
        with replacing(self.path) as aside, aside.open("w", encoding="utf-8", newline="\n") as out:
            out.writelines(f"{line}\n" for line in others)
            out.writelines(f"{lines[name]}\n" for name in order if name in lines)

    def remove_parts(self) -> None:
        """Remove the parts of the file that this process finds."""
        for file in self._files():
            if file != self.path:
                file.unlink(missing_ok=True)

    def _files(self) -> Sequence[Path]:
        parts = [file for file in self.path.parent.glob("*.part-*") if file.name.startswith(f"{self.path.name}.part-")]
        files = [file for file in (self.path, *sorted(parts)) if file.exists()]
        for file in files:
            check_regular(file, "file of predictions")
        return files


def _video(line: bytes, file: Path) -> str:
    try:
        name = json.loads(line)["video"]
    except (ValueError, KeyError, TypeError):
        name = None
    if not isinstance(name, str):
        raise InputError(f"--output {file}: a line is not a prediction; choose another file, or delete it")
    return name


def model_hash(model: VideoCLIP) -> str:
    """Return the SHA-256 of all weights and state of a model."""
    from clipvid.backbone.state_dicts import hash_tensors

    digest = hashlib.sha256()
    hash_tensors(digest, model.state_dict().items())
    return digest.hexdigest()
