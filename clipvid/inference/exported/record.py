"""Description of an exported model, stored in its file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from clipvid import InputError, __version__
from clipvid.data.preprocessing import Preprocessing
from clipvid.files import json_text, one_line

KEY = "clipvid"  # name of the description in the metadata of a file
MAX_BYTES = 16 << 20
PRECISIONS = ("float32", "float16", "int8")
_FORMAT = 1


@dataclass(frozen=True)
class ExportRecord:
    """Properties of an exported model.

    Attributes:
        classes: Names of the outputs, or None if text features are an input.
        embed_dim: Length E of a text feature.
        num_frames: Frames T of a clip for which the model was built.
        frame_range: Smallest and largest T that the graph takes.
        image_size: Side S of the frames.
        mean: Subtracted from each color inside the graph, on the scale 0..1.
        std: Divisor of each color inside the graph.
        preprocessing: Sampling and resizing that make clips from a video, outside the graph.
        precision: Type of the weights.
        multi_label: True if a clip may have several classes, each with a probability by itself.
        version: Version of clipvid that wrote the file.
    """

    classes: tuple[str, ...] | None
    embed_dim: int
    num_frames: int
    frame_range: tuple[int, int]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocessing: Preprocessing
    precision: str = "float32"
    multi_label: bool = False
    version: str = __version__

    def to_json(self) -> str:
        """Return the text that is stored."""
        return json_text(
            {
                "format": _FORMAT,
                "clipvid": self.version,
                "classes": None if self.classes is None else list(self.classes),
                "embed_dim": self.embed_dim,
                "num_frames": self.num_frames,
                "frame_range": list(self.frame_range),
                "image_size": self.image_size,
                "mean": list(self.mean),
                "std": list(self.std),
                **self.preprocessing.record(),
                "precision": self.precision,
            }
            | ({"multi_label": True} if self.multi_label else {})
        )

    @classmethod
    def from_json(cls, text: str | bytes, owner: str) -> ExportRecord:
        """Return the inverse of `to_json`.

        Args:
            text: The text.
            owner: Name of the file in messages.

        Raises:
            InputError: The text is not such a description, or is of a later version.
        """
        if len(text) > MAX_BYTES:
            raise InputError(f"{owner}: its description has {len(text):,} bytes; at most {MAX_BYTES:,} are read")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{owner}: its description is damaged ({one_line(error, 100)})") from None
        if not isinstance(content, dict) or not isinstance(content.get("format"), int):
            raise InputError(f"{owner}: its description is damaged; export the model again")
        if content["format"] > _FORMAT:
            raise InputError(f"{owner}: written by {content.get('clipvid')!r:.40}, which is newer; update clipvid")
        preprocessing = Preprocessing.from_record(content, owner)
        record = cls(
            classes=_classes(content, owner),
            embed_dim=_number(content, "embed_dim", owner),
            num_frames=_number(content, "num_frames", owner),
            frame_range=_range(content, owner),
            image_size=_number(content, "image_size", owner),
            mean=_colors(content, "mean", owner),
            std=_colors(content, "std", owner),
            preprocessing=preprocessing or Preprocessing(),
            precision=str(content.get("precision"))[:40],
            multi_label=content.get("multi_label") is True,
            version=str(content.get("clipvid"))[:40],
        )
        record.check_frames(record.num_frames, owner)
        return record

    def check_frames(self, num_frames: int, owner: str) -> None:
        """Raise InputError for a number of frames that the graph does not take."""
        least, most = self.frame_range
        if not least <= num_frames <= most:
            expected = f"{least}" if least == most else f"{least} to {most}"
            way_out = "; clipvid export --frames free makes it variable" if least == most else ""
            raise InputError(f"{owner}: clips of {num_frames} frames, but the model takes {expected}{way_out}")


def _wrong(owner: str, name: str, value: Any, expected: str) -> InputError:
    return InputError(f"{owner}: {name} is {value!r:.60} in its description; expected {expected}")


def _classes(content: dict[str, Any], owner: str) -> tuple[str, ...] | None:
    classes = content.get("classes")
    if classes is None:
        return None
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise _wrong(owner, "classes", classes, "class names, or null")
    return tuple(classes)


def _number(content: dict[str, Any], name: str, owner: str) -> int:
    value = content.get(name)
    if type(value) is not int or not 1 <= value <= 100_000:
        raise _wrong(owner, name, value, "a positive integer")
    return value


def _range(content: dict[str, Any], owner: str) -> tuple[int, int]:
    value = content.get("frame_range")
    if not isinstance(value, list) or len(value) != 2 or any(type(item) is not int for item in value):
        raise _wrong(owner, "frame_range", value, "two integers")
    return value[0], value[1]


def _colors(content: dict[str, Any], name: str, owner: str) -> tuple[float, ...]:
    value = content.get(name)
    numbers = isinstance(value, list) and len(value) == 3 and all(type(item) in (int, float) for item in value)
    if not isinstance(value, list) or not numbers or not all(map(math.isfinite, value)):
        raise _wrong(owner, name, value, "three numbers")
    return tuple(float(item) for item in value)
