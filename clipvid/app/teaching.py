"""`Teacher`: labels for the clips of a folder, a head that is trained on them, and the model that is kept."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from clipvid import InputError
from clipvid.app.choosing import most_informative, sure_clip, uncertainty
from clipvid.app.clip_folder import ClipFolder
from clipvid.app.judging import Accuracy, Comparison, quick_probabilities, train_head
from clipvid.app.label_list import LabelList, check_class_name
from clipvid.app.shared_model import SharedModel
from clipvid.app.teaching_record import LABELS, RECORD, TeachingRecord, check_output
from clipvid.app.teaching_state import Session, Status, Trained
from clipvid.inspection.labels import rank_labels
from clipvid.model.config import ModelConfig
from clipvid.model.saving import CONFIG
from clipvid.runs.lock import locked

CHECK_EVERY = 6  # clips; one of them checks the guesses
MOST_NAMES_OF_MODEL = 30  # classes of the model that are offered before there are labels


class Teacher:
    """Labels, training and saving for all tabs of a page. Methods may run in several threads.

    Args:
        shared: The model.
        folder: Folder of the clips.
        output: Folder of the labels and the model, empty or from an earlier session. The caller holds its lock.

    Attributes:
        clips: The clips.
        output: Folder of the labels and the model.

    Raises:
        InputError: A folder cannot be used, or the files of an earlier session are damaged.
    """

    def __init__(self, shared: SharedModel, folder: Path, output: Path) -> None:
        self.clips, self.output, self._shared = ClipFolder(shared, folder), output, shared
        check_output(output)
        self._labels = LabelList(output / LABELS)
        self._record = TeachingRecord.read(output / RECORD)
        self._shown: dict[str, str] = {}  # clip by key of a session, the latest last
        self._doubtful: dict[str, str] = {}  # label by clip
        self._lock = threading.RLock()

    @property
    def model_config(self) -> ModelConfig:
        """Config of the loaded model."""
        return self._shared.model.config

    def class_names(self) -> list[str]:
        """Return the classes in a lasting order: those of the model if they are few, then by first label."""
        own = [name for name in self._shared.label_text.splitlines() if name]
        labels = self._labels.copy().values()
        return list(dict.fromkeys([*(own if len(own) <= MOST_NAMES_OF_MODEL else []), *labels]))

    def status(self) -> Status:
        """Return the state of the work."""
        with self._lock:
            labels, checks, repeats = self._labels.copy(), self._record.checks, self._record.repeats
        counts = Counter(labels.values())
        checked = [clip for clip in checks if clip in labels]
        changed = sum(labels.get(clip) != label for clip, label in repeats.items())
        return Status(
            self.clips.done(),
            len(self.clips.names),
            self.clips.failure,
            dict(self.clips.skipped),
            {name: counts[name] for name in self.class_names() if name in counts},
            len(labels.keys() - set(self.clips.names)),
            Accuracy.of([checks[clip] for clip in checked], [labels[clip] for clip in checked]) if checked else None,
            (len(repeats), changed),
        )

    def propose(self, session: Session) -> None:
        """Show the next clip in a session, or none if no clip is ready or all are labeled or skipped."""
        with self._lock:
            names, features = self.clips.ready()
            labels = self._labels.copy()
            self._shown.pop(session.key, None)
            session.clip, session.guess, session.is_repeat = None, None, False
            session.turn += 1
            is_labeled = torch.tensor([name in labels for name in names], dtype=torch.bool)
            elsewhere = set(self._shown.values())
            for hidden in (session.skipped | elsewhere, session.skipped):
                is_open = torch.tensor([name not in labels and name not in hidden for name in names], dtype=torch.bool)
                if is_open.any():
                    break
            else:
                return
            places = is_labeled.nonzero().flatten()
            quick = quick_probabilities(features, places, [labels[names[place]] for place in places.tolist()])
            doubt = None if quick is None else uncertainty(quick[1])
            if quick is not None and session.turn % CHECK_EVERY == 0:
                self._check(session, names, is_open, *quick)
            else:
                place = most_informative(features, is_labeled, is_open, doubt, len(labels))
                session.clip = None if place is None else names[place]
            self._remember(session)

    def label(self, session: Session, turn: int, text: str) -> None:
        """Label the shown clip and show the next one. Nothing happens if `turn` is not that of the shown clip.

        Raises:
            InputError: The class name cannot be used.
        """
        with self._lock:
            if session.clip is None or turn != session.turn:
                return
            name = check_class_name(text)
            same = {own.casefold(): own for own in self.class_names()}
            clip, former = session.clip, self._labels.get(session.clip)
            self._labels.set(clip, same.get(name.casefold(), name))
            if session.guess is not None:
                self._record.change(checks=self._record.checks | {clip: session.guess})
            if session.is_repeat and former is not None:
                self._record.change(repeats=self._record.repeats | {clip: former})
            session.history.append((clip, former))
            self.propose(session)

    def skip(self, session: Session, turn: int) -> None:
        """Show another clip instead of the shown one in this session."""
        with self._lock:
            if session.clip is not None and turn == session.turn:
                session.skipped.add(session.clip)
                self.propose(session)

    def undo(self, session: Session) -> None:
        """Restore the former label of the clip that was labeled last in a session, and show that clip."""
        with self._lock:
            if not session.history:
                return
            clip, former = session.history.pop()
            self._labels.set(clip, former)
            self._record.forget(clip)
            session.clip, session.guess, session.is_repeat = clip, None, False
            session.turn += 1
            self._remember(session)

    def train(self) -> Trained:
        """Train a head on the labeled clips, and compare it with the loaded and the kept model.

        Raises:
            InputError: There are too few labels.
        """
        with self._lock:
            names, features = self.clips.ready()
            labels = {name: own for name in names if (own := self._labels.get(name)) is not None}
            order = self.class_names()
        places = torch.tensor([place for place, name in enumerate(names) if name in labels], dtype=torch.long)
        if not len(places):
            raise InputError("no clip is labeled; label two clips of two classes")
        clips, targets = list(labels), list(labels.values())
        head = train_head(features[places], targets, order)
        videos = [str(self.clips.path(name)) for name in clips]
        current = self._shared.best_classes(features[places], head.labels, videos)
        guesses = dict(zip(names, head.answers(features), strict=True)) | dict(zip(clips, head.guesses, strict=True))
        ranked = rank_labels(head.held_out, torch.tensor([head.labels.index(own) for own in targets]))
        with self._lock:
            self._doubtful = {clips[each.place]: targets[each.place] for each in ranked if each.is_flagged}
        return Trained(
            head, labels, guesses, Comparison.of(head.guesses, current, targets), self._against_kept(labels, guesses)
        )

    def save(self, trained: Trained) -> None:
        """Write the model folder with a new head, if it is better.

        Raises:
            InputError: It is not better than the loaded or the kept model.
        """
        with self._lock:
            kept = self._against_kept(trained.labels, trained.guesses)
            if not trained.current.is_better or (kept is not None and not kept.is_better):
                raise InputError("the new head is not better, so the model is not saved; label more clips")
            head = trained.head
            self._shared.save_with_head(head.weight, head.bias, head.labels, self.output)
            accuracy = {"held_out": asdict(trained.current.new), "before": asdict(trained.current.other)}
            self._record.change(kept=trained.guesses, accuracy=accuracy)

    def _check(
        self, session: Session, names: Sequence[str], is_open: torch.Tensor, classes: list[str], shares: torch.Tensor
    ) -> None:
        """Show a clip whose label is doubtful, or one that the labels so far leave little doubt about."""
        doubtful = [
            clip
            for clip, label in self._doubtful.items()
            if clip not in self._record.repeats and self._labels.get(clip) == label and clip not in session.skipped
        ]
        if doubtful:
            session.clip, session.is_repeat = doubtful[0], True
            return
        place = sure_clip(uncertainty(shares), is_open, len(self._labels))
        if place is not None:
            session.clip, session.guess = names[place], classes[int(shares[place].argmax())]

    def _remember(self, session: Session) -> None:
        """Store the clip of a session, which other tabs then avoid. Only the latest eight tabs count."""
        if session.clip is not None:
            self._shown[session.key] = session.clip
        for key in list(self._shown)[:-8]:
            del self._shown[key]

    def _against_kept(self, labels: dict[str, str], guesses: dict[str, str]) -> Comparison | None:
        former = self._record.kept if (self.output / CONFIG).is_file() else {}
        clips = [clip for clip in labels if clip in former]
        if not clips:
            return None
        return Comparison.of(*([source[clip] for clip in clips] for source in (guesses, former, labels)))


@contextmanager
def opened_teacher(shared: SharedModel, folder: Path, output: Path) -> Iterator[Teacher]:
    """Yield a `Teacher`, and hold the lock of its output folder during the block.

    Raises:
        InputError: See `Teacher`.
        RunError: Another process uses the output folder.
    """
    check_output(output)
    with locked(output):
        yield Teacher(shared, folder, output)
