"""Sentences, tables and sections about the need of motion."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from clipvid.evaluation.report import Block, Folded, Listing, Paragraph, Section
from clipvid.evaluation.tables import Bar, Cell, Figure, Table
from clipvid.inspection.motion import MotionResult, Share
from clipvid.inspection.signatures import ClipFacts
from clipvid.inspection.time import BAG, ORDERED, SINGLE

_COLOR = "#2456d6"
_SHOWN = 12  # rows of a table that is not folded
_OPEN = 0.05  # gain by order that is worth a training
_ENOUGH = 0.01  # loss of accuracy that fewer frames may cost
_SLOPE = 0.02  # gain of the last doubling of clips that makes more clips worth while


def verdict(result: MotionResult) -> str:
    """Return the answer in one sentence, and a second one where the clips are too few to exclude that order counts."""
    gain = result.differences[f"{ORDERED} − {BAG}"]
    is_open = result.need in ("frames", "one frame") and gain.high > _OPEN
    doubt = f" These {result.count} clips do not exclude a gain by order of up to {100 * gain.high:.0f} points."
    return _answer(result) + (doubt if is_open else "")


def _answer(result: MotionResult) -> str:
    names = {name: f"{share.value:.0%}" for name, share in result.accuracy.items()}
    gain = result.differences[f"{ORDERED} − {BAG}"]
    if result.need == "order":
        return (
            f"This data needs the order of frames: ordered frames reach {names[ORDERED]}, a bag of frames {names[BAG]} "
            f"({_points(gain)})."
        )
    if result.need == "frames":
        return (
            f"This data needs several frames, but not their order: a single frame reaches {names[SINGLE]}, a bag of "
            f"frames {names[BAG]}, and ordered frames {names[ORDERED]}."
        )
    if result.need == "one frame":
        return (
            f"This data does not need motion: a single frame reaches {names[SINGLE]}, a bag of frames {names[BAG]}, "
            f"and ordered frames {names[ORDERED]}."
        )
    return (
        f"The probes are at chance ({result.chance:.0%}), so they cannot say what this data needs; use a stronger "
        "tower or more clips."
    )


def advise(result: MotionResult, facts: Sequence[ClipFacts]) -> list[str]:
    """Return recommendations, each in a sentence or two.

    Args:
        result: The answer.
        facts: Facts of the clips.
    """
    if result.need == "unclear":
        return []
    advice = []
    if result.need == "order":
        advice.append(
            "Train an adapter, such as the default, temporal_conv; clipvid finetune compares it with mean pooling."
        )
    else:
        advice.append(
            "Mean pooling may be enough: clipvid finetune compares it with the default adapter, temporal_conv. On two "
            "sets of real video, the mean of temporal_conv over seeds was higher."
        )
    best = max(share.value for share in result.frames.values())
    count = min(number for number, share in result.frames.items() if share.value >= best - _ENOUGH)
    largest = max(result.frames)
    more = " More may help still: set num_frames higher and inspect again." if count == largest > 1 else ""
    advice.append(f"Use model.num_frames={count}, the fewest of 1 to {largest} that reach {best:.0%} to a point.{more}")
    advice.append(_sampling(facts, count))
    doubling = result.last_doubling
    order_gain = result.differences[f"{ORDERED} − {BAG}"].value
    if doubling.value >= _SLOPE:
        word = "More clips are worth it" if doubling.value > order_gain else "More clips help, though less than order"
        advice.append(f"{word}: the last doubling of the training clips gained {_points(doubling)}.")
    else:
        advice.append(f"More clips of this kind would gain little: the last doubling gained {_points(doubling)}.")
    return advice


def motion_table(result: MotionResult, with_bars: bool = False) -> Table:
    """Return the accuracies of the probes and their differences."""
    rows: list[list[Cell]] = [
        [name, _figure(share, with_bars, result.chance)] for name, share in result.accuracy.items()
    ]
    rows += [[name, _figure(share, False, 0)] for name, share in result.differences.items()]
    return Table(["probe", "top-1"], rows)


def motion_sections(result: MotionResult, advice: Sequence[str], class_names: Sequence[str]) -> list[Section]:
    """Return the sections of the report."""
    note = (
        f"Linear probes of frozen features, each {result.unit} held out in turn, {result.count} clips. Chance is "
        f"{result.chance:.2f}. Ranges are 95% intervals over resampled groups. Ordered frames are also scored on "
        f"clips that are played in another order."
    )
    blocks: list[Block] = [
        Paragraph(verdict(result)),
        Listing(advice),
        motion_table(result, with_bars=True),
    ]
    sections = [Section("Does it need motion?", note, blocks), _pairs_section(result, class_names)]
    return [*sections, _curves_section(result), _classes_section(result, class_names)]


def pair_sentences(result: MotionResult, class_names: Sequence[str]) -> list[str]:
    """Return a sentence for each pair of classes that differ only in order."""
    return [
        f"{class_names[pair.first]!r} and {class_names[pair.second]!r} differ only in order: {pair.bag:.0%} of "
        f"{pair.count} clips without it, {pair.ordered:.0%} with it."
        for pair in result.pairs
    ]


def _pairs_section(result: MotionResult, class_names: Sequence[str]) -> Section:
    note = (
        "Share of the clips of two classes that score their class above the other one. Chance is 0.50. At most 5% of "
        "these pairs are expected to be named by chance."
    )
    rows: list[list[Cell]] = [
        [class_names[pair.first], class_names[pair.second], f"{pair.bag:.2f}", f"{pair.ordered:.2f}", str(pair.count)]
        for pair in result.pairs
    ]
    table = Table(["class", "class", BAG, ORDERED, "clips"], rows, text_columns=2)
    return Section("Classes that differ only in order", note, _folded(table))


def _curves_section(result: MotionResult) -> Section:
    frames: list[list[Cell]] = [[str(count), _figure(share, True, None)] for count, share in result.frames.items()]
    clips: list[list[Cell]] = [[f"{share:.0%}", _figure(own, True, None)] for share, own in result.clips.items()]
    note = "The probe that fits the answer above, with fewer frames of each clip, and with fewer clips to learn from."
    tables = [Table(["frames", "top-1"], frames), Table(["training clips", "top-1"], clips)]
    return Section("How many frames and clips?", note, tables)


def _classes_section(result: MotionResult, class_names: Sequence[str]) -> Section:
    names = list(result.classes)
    rows: list[list[Cell]] = [
        [name, *(None if value is None else Figure(value, digits=2) for value in values)]
        for name, *values in zip(class_names, *result.classes.values(), strict=True)
    ]
    return Section("Probes by class", "Share of the clips of each class.", _folded(Table(["class", *names], rows)))


def _folded(table: Table) -> list[Block]:
    if not table.rows:
        return []
    return [table] if len(table.rows) <= _SHOWN else [Folded(f"{len(table.rows)} rows", [table])]


def _figure(share: Share, with_bar: bool, chance: float | None) -> Figure:
    bar = Bar(share.value, max(share.low, 0.0), min(share.high, 1.0), _COLOR, chance) if with_bar else None
    return Figure(share.value, (share.low, share.high), 3, bar)


def _points(share: Share) -> str:
    return f"{100 * share.value:+.1f} points, 95% interval {100 * share.low:+.1f} to {100 * share.high:+.1f}"


def _sampling(facts: Sequence[ClipFacts], count: int) -> str:
    """Return a sentence about the sampling of frames."""
    lengths = [own.seconds for own in facts if own.seconds]
    if sum(own.varying_rate for own in facts) > 0.05 * len(facts):
        return "Draw frames by time, since rates vary: data.sampling='{name: uniform, by: time}'."
    if not lengths:
        return "Draw frames evenly over the clip: data.sampling=uniform."
    length = statistics.median(lengths)
    apart = f"{count} frames of the median clip of {length:.1f} s are {length / count:.1f} s apart"
    return f"Draw frames evenly over the clip, data.sampling=uniform: {apart}."
