"""Report of an inspection: one page, one JSON file and a table for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from clipvid.data.reader import open_video
from clipvid.data.sampling import uniform_indices
from clipvid.decoding.errors import VideoError
from clipvid.evaluation.clips import ClipStrip
from clipvid.evaluation.report import Block, Clips, Folded, Listing, Paragraph, Section
from clipvid.evaluation.tables import Table
from clipvid.inspection.cleanliness import Flag
from clipvid.inspection.clips import ClipList
from clipvid.inspection.duplicates import Duplicate
from clipvid.inspection.findings import Findings, LabelCheck

_FRAMES, _SIDE = 4, 96  # of a clip in the report, and pixels of its longer side
_ROWS = 200  # of a table in the page; inspect.json has all
KINDS = {
    "static": "nothing moves",
    "dark": "dark",
    "bars": "black bars",
    "short": "very short",
    "long": "very long",
    "rate": "odd frame rate",
}


def summary_table(findings: Findings, clips: ClipList) -> Table:
    """Return the number of each kind of finding."""
    counts = Counter(flag.kind for flag in findings.flags)
    changes = Counter(change for copy in findings.duplicates for change in copy.changes or ("equal pixels",))
    listed = ", ".join(f"{count} {change}" for change, count in changes.most_common())
    rows = [["cannot be read", str(len(findings.broken)), ""]]
    if len(clips.splits) > 1:
        rows.append(["copies across splits", str(len(findings.across(clips))), ""])
    rows.append(["copies, pairs of clips", str(len(findings.duplicates)), listed])
    conflicts = len(findings.conflicts(clips))
    if conflicts:
        rows.append(["copies with different labels", str(conflicts), ""])
    if findings.labels is not None:
        check = findings.labels
        detail = f"the probe agrees with {check.accuracy:.0%} of all labels"
        detail += "" if check.is_trusted else ", too few to leave clips out"
        rows.append(["labels that are likely wrong", str(len(check.flagged)), detail])
        rows.append(["pairs of classes that the probe cannot separate", str(len(check.pairs)), ""])
    rows += [[f"clips: {name}", str(counts[kind]), ""] for kind, name in KINDS.items()]
    return Table(["finding", "count", "detail"], rows, text_columns=1)


def clean_sections(findings: Findings, clips: ClipList, examples: int) -> list[Section]:
    """Return the sections about the cleanliness of the clips.

    Args:
        findings: The findings.
        clips: The clips.
        examples: Rows with pictures in each section.
    """
    overview: list[Block] = [summary_table(findings, clips), *(Paragraph(note) for note in findings.notes)]
    broken = [f"{clips.name(index)}: {reason}" for index, reason in sorted(findings.broken.items())]
    sections = [
        Section("Is it clean?", f"{len(clips)} clips.", overview),
        _copies_section(findings, clips, examples),
        Section("Unreadable videos", "Each with the reason.", [Listing(broken)] if broken else []),
        _flags_section(findings.flags, clips, examples),
    ]
    if findings.labels is not None:
        sections += [_labels_section(findings.labels, clips, examples), _pairs_section(findings.labels, clips)]
    return [*sections, _classes_section(clips)]


def _copies_section(findings: Findings, clips: ClipList, examples: int) -> Section:
    across = findings.across(clips)
    rest = [copy for copy in findings.duplicates if copy not in across]
    ordered = across + rest
    labels, names = clips.labels(), clips.class_names

    def row(copy: Duplicate) -> list[str]:
        same = labels[copy.first] == labels[copy.second]
        difference = "" if same else f"{names[labels[copy.first]]} and {names[labels[copy.second]]}"
        changes = ", ".join(copy.changes) or "equal pixels"
        return [clips.name(copy.first), clips.name(copy.second), changes, difference, f"{copy.residual:.4f}"]

    table = _table(["clip", "copy", "change", "labels that differ", "difference"], ordered, row, 4)
    strips = [
        strip
        for copy in ordered[:examples]
        for index in (copy.first, copy.second)
        if (strip := clip_strip(clips, index, note=" and ".join(copy.changes))) is not None
    ]
    note = (
        "Pairs of clips with the same content, those across splits first. The difference is that of matched frames, in "
        "units of their contrast; 0 means equal pixels. A copy in both splits makes accuracies look better."
    )
    return Section("Copies", note, [*table, *([Clips(strips)] if strips else [])])


def _labels_section(check: LabelCheck, clips: ClipList, examples: int) -> Section:
    names = clips.class_names
    rows = [
        [clips.name(own.place), names[own.label], names[own.suggested], f"{own.margin:.2f}"] for own in check.flagged
    ]
    table = _table(["clip", "label", "the probe suggests", "margin"], rows, list, 3)
    strips = []
    for own in check.flagged[:examples]:
        strip = clip_strip(clips, own.place, note=f"rather {names[own.suggested]}?")
        strips += [] if strip is None else [strip]
    note = (
        "A probe that has not seen a clip finds another class far more likely than for other clips with the label. The "
        "margin is its probability minus that of the label. The most suspicious come first. The probe agrees with "
        f"{check.accuracy:.0%} of all labels; the lower this is, the more of these are errors of the probe."
    )
    return Section("Labels that are likely wrong", note, [*table, *([Clips(strips)] if strips else [])])


def _pairs_section(check: LabelCheck, clips: ClipList) -> Section:
    names = clips.class_names
    rows = [[names[own.first], names[own.second], f"{own.accuracy:.2f}", str(own.count)] for own in check.pairs]
    note = (
        "Share of the clips of two classes that score their class above the other one; 0.50 is chance. Merge such "
        "classes, define them more sharply, or expect that only a trained model separates them."
    )
    table = _table(["class", "class", "accuracy", "clips"], rows, list, 2)
    return Section("Classes that the probe cannot separate", note, table)


def _flags_section(flags: Sequence[Flag], clips: ClipList, examples: int) -> Section:
    ordered = sorted(flags, key=lambda flag: list(KINDS).index(flag.kind))
    table = _table(
        ["clip", "finding", "detail"], ordered, lambda flag: [clips.name(flag.index), KINDS[flag.kind], flag.detail], 3
    )
    shown: dict[str, list[Flag]] = {}
    for flag in ordered:
        shown.setdefault(flag.kind, []).append(flag)
    picked = [flag for own in shown.values() for flag in own[: max(examples // max(len(shown), 1), 1)]]
    strips = [
        strip
        for flag in picked[:examples]
        if (strip := clip_strip(clips, flag.index, note=KINDS[flag.kind])) is not None
    ]
    note = "Clips that differ from what a model expects."
    return Section("Odd clips", note, [*table, *([Clips(strips)] if strips else [])])


def _classes_section(clips: ClipList) -> Section:
    if not clips.is_labeled:
        return Section("Classes", "", [])
    counts = {split: Counter(sample.label for sample in own.samples) for split, own in clips.splits.items()}
    rows = [[name, *(str(counts[split][label]) for split in counts)] for label, name in enumerate(clips.class_names)]
    return Section("Classes", "Clips of each class.", _table(["class", *counts], rows, list, 1))


def _table(headers: list[str], items: Sequence, row: Callable[..., list[str]], text_columns: int) -> list[Block]:  # type: ignore[type-arg]
    """Return a table of the first rows, or nothing without rows. Long tables are folded."""
    if not items:
        return []
    table = Table(headers, [row(item) for item in items[:_ROWS]], text_columns=text_columns)
    if len(items) <= 12:
        return [table]
    more = f", of which the first {_ROWS} are shown; inspect.json has all" if len(items) > _ROWS else ""
    return [Folded(f"{len(items)} rows{more}", [table])]


def clip_strip(clips: ClipList, index: int, note: str = "") -> ClipStrip | None:
    """Return some frames of a clip with its class and name; None if it cannot be read again."""
    sample = clips.sample(index)
    frames = _small_frames(clips, index)
    if frames is None:
        return None
    name = f"{clips.name(index)} ({note})" if note else clips.name(index)
    truth = clips.class_names[sample.label] if clips.is_labeled else ""
    return ClipStrip(frames, truth, {}, name)


def _small_frames(clips: ClipList, index: int) -> Tensor | None:
    """Return frames of a clip, uint8 [T, 3, H, W]."""
    _, manifest, place = clips.place(index)
    sample = manifest.samples[place]
    try:
        with open_video(manifest.video(place)) as video:
            part = video.frames_between(sample.start, sample.end)
            chosen = part.start + uniform_indices(len(part), min(_FRAMES, len(part)))
            pictures = [frame.permute(2, 0, 1) for _, frame in video.frames(chosen.unique().tolist())]
    except (VideoError, OSError, ValueError, RuntimeError):
        return None
    height, width = pictures[0].shape[1:]
    scale = min(_SIDE / max(height, width), 1.0)
    size = [max(round(height * scale), 1), max(round(width * scale), 1)]
    return torch.stack([F.resize(picture, size, antialias=True) for picture in pictures])
