"""Blocks of the tab *Teach*: the clip, the state of the work, and results in words. No gradio."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from clipvid.app.judging import Accuracy, Comparison
from clipvid.app.teaching import Teacher
from clipvid.app.teaching_record import LABELS
from clipvid.app.teaching_state import Session, Status, Trained
from clipvid.data.reader import VideoError, open_video
from clipvid.evaluation.report import Block, Definitions, Folded, Paragraph, Thumbnail, Thumbnails
from clipvid.evaluation.tables import Figure, Table
from clipvid.files import cut, printable
from clipvid.inference.thumbnails import small_frames, strip_uri

_FRAMES, _HEIGHT, _WIDEST = 16, 300, 480  # of the clip; pixels
_LISTED = 50  # skipped files
_LONGEST = 200  # letters of a name
_FILLS_BATCHES = 64  # labels from which the batch of a training run by default is filled, also in cross-validation


def clip_block(teacher: Teacher, session: Session, status: Status) -> Block:
    """Return the clip of a session as frames that play, or why there is none."""
    if session.clip is None:
        if status.done < status.total and status.failure is None:
            return Paragraph("The first clips are being read.")
        return Paragraph("All clips are labeled or skipped. Skipped clips return when the page is loaded again.")
    name = cut(session.clip, _LONGEST)
    try:
        with open_video(str(teacher.clips.path(session.clip))) as video:
            frames = small_frames(video, range(len(video)), _FRAMES, _HEIGHT, _WIDEST)
    except VideoError as error:
        return Thumbnails([Thumbnail("", [name, f"not readable any more: {error.reason}"])])
    return Thumbnails([Thumbnail("", [name], "", strip_uri(frames), len(frames), frames[0].size)])


def status_blocks(status: Status) -> Iterator[Block]:
    """Yield the progress, the labels by class, checks and skipped files."""
    if status.failure is not None:
        yield Paragraph(f"{status.failure}. The other clips are not read; start clipvid app again.", "Stopped")
    elif status.done < status.total:
        yield Paragraph(f"{status.done} of {status.total} clips are read.")
    else:
        yield Paragraph(f"All {status.total} clips are read.")
    labeled = sum(status.counts.values())
    yield Paragraph(f"{_count(labeled, 'clip')} labeled.")
    if status.counts:
        yield Definitions({cut(name, _LONGEST): str(count) for name, count in status.counts.items()})
    if status.checks is not None:
        yield Paragraph(f"The labels before them predicted {_in_words(status.checks)}.", "Checks")
    repeated, changed = status.repeats
    if repeated:
        yield Paragraph(f"{_count(repeated, 'doubtful label')} shown again, {changed} changed.")
    if status.missing:
        yield Paragraph(f"{_count(status.missing, 'label')} of clips that are not in the folder. They are kept.")
    if status.skipped:
        listed = dict(list(status.skipped.items())[:_LISTED])
        reasons = Definitions({printable(cut(name, _LONGEST)): reason for name, reason in listed.items()})
        yield Folded(f"{_count(len(status.skipped), 'file')} skipped", [reasons])


def trained_blocks(trained: Trained) -> Iterator[Block]:
    """Yield the accuracies of a new head and of the models that it is compared with."""
    rows = [_row("new head, held out", trained.current.new), _row("loaded model", trained.current.other)]
    if trained.kept is not None:
        if trained.kept.new.count < trained.current.new.count:
            rows.append(_row("new head, on the clips of the kept model", trained.kept.new))
        rows.append(_row("kept model, held out", trained.kept.other))
    yield Table(["", "right", "accuracy"], rows)
    yield Paragraph(_sentence("the loaded model", trained.current))
    if trained.kept is not None:
        yield Paragraph(_sentence("the kept model", trained.kept))
    alone = sorted(name for name in trained.head.labels if list(trained.labels.values()).count(name) == 1)
    if alone:
        names = ", ".join(cut(name, _LONGEST) for name in alone[:5])
        yield Paragraph(f"Classes with one clip count as wrong, since nothing else shows them: {names}.")


def saved_blocks(teacher: Teacher) -> Iterator[Block]:
    """Yield the commands that use what was saved."""
    output, folder = _shortest(teacher.output), _shortest(teacher.clips.folder)
    config = teacher.model_config
    backbone = [f"--model.backbone={config.backbone}"]
    backbone += [] if config.pretrained is None else [f"--model.pretrained={config.pretrained}"]
    labels, count = _shortest(teacher.output / LABELS), sum(teacher.status().counts.values())
    batch = [] if count >= _FILLS_BATCHES else [f"--training.per_device_train_batch_size={max(count // 4, 1)}"]
    yield Paragraph("The model is saved.")
    yield Paragraph("", "Classify videos", shlex.join(["clipvid", "predict", "--model", output, folder]))
    train = ["clipvid", "finetune", "--data.root", folder, "--data.train", labels, *backbone, *batch]
    yield Paragraph("", "Train adapters on the labels", shlex.join([*train, "--output_dir", f"{output}-finetuned"]))
    push = ["clipvid", "push", "--model", output, "--repo_id", "user/name"]
    yield Paragraph("", "Publish the model", shlex.join(push))


def _shortest(path: Path) -> str:
    """Return the path from the working folder if it is below, and otherwise the whole path."""
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path.resolve())


def _row(name: str, accuracy: Accuracy) -> list[str | Figure]:
    return [name, f"{accuracy.hits} of {accuracy.count}", Figure(accuracy.value, (accuracy.low, accuracy.high), 2)]


def _sentence(other: str, comparison: Comparison) -> str:
    if not comparison.is_better:
        return f"The new head is not better than {other}. Label more clips."
    gain = comparison.won - comparison.lost
    text = f"The new head is right about {_count(gain, 'clip')} more than {other}."
    return f"{text} This may be chance; more labels make it certain." if comparison.may_be_chance else text


def _in_words(accuracy: Accuracy) -> str:
    low, high = f"{100 * accuracy.low:.0f}%", f"{100 * accuracy.high:.0f}%"
    return f"{accuracy.hits} of {accuracy.count} ({100 * accuracy.value:.0f}%, 95% interval {low} to {high})"


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
