"""Files of a session of `Teacher` beside the labels: which folder it may use, and what it records."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipvid import InputError
from clipvid.files import write_json

LABELS, RECORD = "labels.csv", "teaching.json"


@dataclass
class TeachingRecord:
    """Content of `teaching.json`. Every change replaces the file at once.

    Attributes:
        path: The file.
        checks: Class that was guessed, by clip that checks the guesses.
        repeats: First label by clip that was shown again.
        kept: Answers by clip of the model that is kept, empty if there is none.
        accuracy: Accuracy of that model and of the one before.
    """

    path: Path
    checks: dict[str, str] = field(default_factory=dict)
    repeats: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> TeachingRecord:
        """Return the record in a file, or a new one without a file.

        Raises:
            InputError: The file is damaged.
        """
        if not path.exists():
            return cls(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            content = None
        names = {item.name for item in dataclasses.fields(cls)} - {"path"}
        if not isinstance(content, dict) or content.keys() != names or not all(map(_is_mapping, content.values())):
            raise InputError(f"{path} is damaged; delete it: the labels are in {LABELS}")
        if not all(isinstance(text, str) for name in names - {"accuracy"} for text in content[name].values()):
            raise InputError(f"{path} is damaged; delete it: the labels are in {LABELS}")
        return cls(path, **content)

    def change(self, **values: dict[str, Any]) -> None:
        """Replace attributes, after the file."""
        changed = dataclasses.replace(self, **values)  # type: ignore[arg-type]
        content = {item.name: getattr(changed, item.name) for item in dataclasses.fields(self) if item.name != "path"}
        write_json(self.path, content)
        for name, value in values.items():
            setattr(self, name, value)

    def forget(self, clip: str) -> None:
        """Remove a clip from checks and repeats."""
        for name in ("checks", "repeats"):
            own = getattr(self, name)
            if clip in own:
                self.change(**{name: {other: text for other, text in own.items() if other != clip}})


def check_output(output: Path) -> None:
    """Raise InputError for a folder that is neither empty nor from an earlier session."""
    if output.exists() and not output.is_dir():
        raise InputError(f"--output_dir {output} is a file; expected a folder")
    others = [path.name for path in output.iterdir() if not path.name.startswith(".")] if output.is_dir() else []
    if others and not {LABELS, RECORD} & set(others):
        raise InputError(
            f"--output_dir {output} has no {LABELS} and contains {min(others)!r}; choose an empty or a new folder"
        )


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)
