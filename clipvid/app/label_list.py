"""List of the labels of clips, a CSV file that `data.train` of `clipvid finetune` takes."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from clipvid import InputError
from clipvid.data.lists.tables import read_table
from clipvid.data.lists.text import clipped, is_number
from clipvid.files import printable, write_text

LONGEST_NAME = 300  # letters of a class name
MAX_CLASSES = 2000


class LabelList:
    """Labels by the path of the clip, in the order in which they were set. Every change replaces the file at once.

    Args:
        path: The file. It is read if it exists, and deleted with the last label.

    Raises:
        InputError: The file is not a list, has other columns than `path` and `label`, or a class name is refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._labels: dict[str, str] = {}
        if not path.exists():
            return
        for batch in read_table(path, ()):
            others = set(batch.schema.names) - {"path", "label", "line"}
            if others:
                raise InputError(
                    f"{path} has the column {min(others)!r}, which would be lost; expected only path and label"
                )
            for clip, label in zip(batch["path"].to_pylist(), batch["label"].to_pylist(), strict=True):
                self._labels[clip] = check_class_name(label)

    def __len__(self) -> int:
        return len(self._labels)

    def get(self, clip: str) -> str | None:
        """Return the label of a clip, or None."""
        return self._labels.get(clip)

    def copy(self) -> dict[str, str]:
        """Return the labels by clip."""
        return dict(self._labels)

    def set(self, clip: str, label: str | None) -> None:
        """Set the label of a clip, or remove it with None, and write the file.

        Raises:
            InputError: There would be too many classes.
        """
        changed = {name: own for name, own in self._labels.items() if name != clip}
        if label is not None:
            changed[clip] = label
        if len(set(changed.values())) > MAX_CLASSES:
            raise InputError(f"there would be {MAX_CLASSES + 1} classes; expected at most {MAX_CLASSES}")
        self._write(changed)
        self._labels = changed

    def _write(self, labels: dict[str, str]) -> None:
        if not labels:
            self.path.unlink(missing_ok=True)
            return
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("path", "label"), *labels.items()])
        write_text(self.path, text.getvalue())


def check_class_name(text: str) -> str:
    """Return a class name without spaces around it.

    Raises:
        InputError: It is empty, too long, a number, without letters and digits, or has control characters.
    """
    name = " ".join(text.split(" ")).strip()
    if len(name) > LONGEST_NAME:
        raise InputError(f"the class name has {len(name)} letters; expected at most {LONGEST_NAME}")
    if printable(name) != name:
        raise InputError(f"the class name {clipped(name)} has line ends or control characters; remove them")
    if not any(letter.isalnum() for letter in name) or is_number(name):
        raise InputError(f"{clipped(name)} is not a class name; expected letters, since lists read numbers as ids")
    return name
