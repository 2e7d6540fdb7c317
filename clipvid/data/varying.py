"""Warnings about videos whose frame rate varies, where frames are drawn by number."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_HINT = "frames are drawn evenly by number, not by time; data.sampling='{name: uniform, by: time}' draws them by time"


@dataclass
class VaryingRates:
    """Videos of one split whose frame rate varies by more than 2x.

    The first one is warned about when it is met, and their number after a pass over the data in which it grew.
    """

    names: dict[int, str] = field(default_factory=dict)
    _counted: int = 1

    def add(self, indices: Iterable[int], name_of: Callable[[int], str]) -> None:
        """Take up videos by index; those known already are ignored."""
        for index in indices:
            if index in self.names:
                continue
            self.names[index] = name_of(index)
            if len(self.names) == 1:
                warnings.warn(f"{self.names[index]}: its frame rate varies by more than 2x, and {_HINT}", stacklevel=2)

    def count(self, total: int) -> None:
        """Warn about the number of videos, if there are several and more than before."""
        if len(self.names) > self._counted:
            names = ", ".join(list(self.names.values())[:3])
            warnings.warn(
                f"{len(self.names)} of {total} videos have a frame rate that varies by more than 2x, such as {names}; "
                f"{_HINT}",
                stacklevel=2,
            )
        self._counted = max(self._counted, len(self.names))
