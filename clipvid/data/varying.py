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

    found: dict[int, str] = field(default_factory=dict)
    _counted: int = 1

    def add(self, indices: Iterable[int], name_of: Callable[[int], str]) -> None:
        """Take up videos by index; those known already are ignored."""
        for index in indices:
            if index in self.found:
                continue
            self.found[index] = name_of(index)
            if len(self.found) == 1:
                warnings.warn(f"{self.found[index]}: its frame rate varies by more than 2x, and {_HINT}", stacklevel=2)

    def count(self, total: int) -> None:
        """Warn about the number of videos, if there are several and more than before."""
        if len(self.found) > self._counted:
            names = ", ".join(list(self.found.values())[:3])
            warnings.warn(
                f"{len(self.found)} of {total} videos have a frame rate that varies by more than 2x, such as {names}; "
                f"{_HINT}",
                stacklevel=2,
            )
        self._counted = max(self._counted, len(self.found))
