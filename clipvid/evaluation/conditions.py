"""Conditions: the model and the order of frames that scores belong to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Control = Literal["reversed", "shuffled", "single", "bag"]
ALL_CONTROLS: tuple[Control, ...] = ("reversed", "shuffled", "single", "bag")


@dataclass(frozen=True)
class Condition:
    """Model and order of frames of an evaluation. At most one field is set; none is the model on forward clips.

    Attributes:
        control: order of frames other than forward.
        zero_shot: the plain CLIP in place of the model.
        alpha: the weight-space ensemble with this alpha in place of the model.
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
