"""Conditions of scores: model and order of frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Control = Literal["reversed", "shuffled", "single", "bag"]
ALL_CONTROLS: tuple[Control, ...] = ("reversed", "shuffled", "single", "bag")


@dataclass(frozen=True)
class Condition:
    """Model and order of frames of an evaluation. At most one field is set; none means the model on forward clips.

    Attributes:
        control: Order of frames other than forward.
        zero_shot: The plain CLIP instead of the model.
        alpha: The weight-space ensemble with this alpha instead of the model.
    """

    control: Control | None = None
    zero_shot: bool = False
    alpha: float | None = None

    def __str__(self) -> str:
        """Return the name in files and messages. It is never parsed."""
        if self.zero_shot:
            return "zero-shot"
        return f"alpha={self.alpha:g}" if self.alpha is not None else self.control or "forward"


FORWARD, ZERO_SHOT = Condition(), Condition(zero_shot=True)
