"""State of teaching: the tabs of the browser, the progress, and a trained head."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from clipvid.app.judging import Accuracy, Comparison, TrainedHead


@dataclass
class Session:
    """One tab of a browser: the clip that it shows, and what its user has done.

    Attributes:
        key: Random name.
        clip: Name of the clip, or None.
        turn: Number of the clip that is shown. An answer to an earlier one is ignored.
        guess: Class that the labels so far suggest for a clip that checks it, or None.
        is_repeat: True for a clip whose label is doubtful.
        skipped: Clips that are not shown again.
        history: Labeled clips with their former labels.
    """

    key: str = field(default_factory=lambda: secrets.token_hex(8))
    clip: str | None = None
    turn: int = 0
    guess: str | None = None
    is_repeat: bool = False
    skipped: set[str] = field(default_factory=set)
    history: list[tuple[str, str | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Status:
    """State of the work.

    Attributes:
        done: Clips that are encoded or skipped.
        total: Clips in the folder.
        failure: Error that ended the encoding, or None.
        skipped: Reason by name of each file that cannot be used.
        counts: Number of labeled clips by class.
        missing: Number of labels whose clip is not in the folder.
        checks: Agreement of the guesses with the labels of checked clips, or None.
        repeats: Clips that were shown again, and how many of them have another label now.
    """

    done: int
    total: int
    failure: str | None
    skipped: dict[str, str]
    counts: dict[str, int]
    missing: int
    checks: Accuracy | None
    repeats: tuple[int, int]


@dataclass(frozen=True)
class Trained:
    """A new head and its comparisons on the labeled clips. Its own answers are from cross-validation.

    Attributes:
        head: The head.
        labels: Labels by clip.
        guesses: Answer by clip. For a labeled one it is that of a head that has not seen it.
        current: Comparison with the model that was loaded.
        kept: Comparison with the model that was kept before, on the clips that it answered before they were labeled
            or in cross-validation. None if there is none.
    """

    head: TrainedHead
    labels: dict[str, str]
    guesses: dict[str, str]
    current: Comparison
    kept: Comparison | None

    @property
    def is_better(self) -> bool:
        """True if the head is right about more clips than the loaded and the kept model."""
        return self.current.is_better and (self.kept is None or self.kept.is_better)
