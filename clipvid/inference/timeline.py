"""Files of a timeline: the scores of a video over time as JSON and as a picture, and its events."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from clipvid.evaluation.charts import chart_text
from clipvid.files import file_name, json_text, replacing, write_text
from clipvid.inference.events import events_table, find_events
from clipvid.inference.outputs import Timeline
from clipvid.inference.video_names import STDIN


def write_timeline(
    folder: Path,
    name: str,
    timeline: Timeline,
    labels: list[str],
    window: float,
    hop: float,
    top_k: int,
    threshold: float = 0.5,
) -> tuple[Path, Path, Path]:
    """Write the scores of all classes, a picture with the curves of the `top_k` highest, and a table of events.

    Args:
        folder: Output folder.
        name: Name of the video. The files are named after it, see `timeline_stem`.
        timeline: The scores.
        labels: Class names.
        window: Length of a window in seconds.
        hop: Distance between windows in seconds.
        top_k: Number of curves in the plot.
        threshold: See `find_events`.

    Returns:
        The JSON file with scores and events, the PNG file, and the CSV file of the events.
    """
    stem = timeline_stem(name)
    scores, picture, table = (folder / f"{stem}.{suffix}" for suffix in ("json", "png", "csv"))
    events = find_events(timeline, labels, threshold)
    record = {"video": name, "window": window, "hop": hop, "labels": labels, "times": timeline.times}
    record |= {"scores": timeline.scores.tolist(), "threshold": threshold}
    write_text(scores, json_text(record | {"events": [event.record() for event in events]}) + "\n")
    write_text(table, events_table(events))
    figure = timeline_figure(name, timeline, labels, top_k)
    with replacing(picture) as aside:
        figure.savefig(aside, format="png", dpi=100)
    return scores, picture, table


def timeline_figure(name: str, timeline: Timeline, labels: list[str], top_k: int) -> Figure:
    """Draw the curves of the `top_k` highest classes of a timeline over the seconds of the video."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    for index in timeline.scores.amax(dim=0).topk(min(top_k, len(labels))).indices.tolist():
        axes.plot(timeline.times, timeline.scores[:, index], marker=".", label=chart_text(labels[index]))
    axes.set(xlabel="seconds", ylabel="probability", ylim=(0, 1))
    for text in (axes.set_title(chart_text(name, 100)), *axes.legend(loc="upper right").get_texts()):
        text.set_parse_math(False)  # names may contain a dollar sign
    return figure


def timeline_stem(name: str) -> str:
    """Return the name of the files of a video, without suffix; two videos never share it.

    A file in the current folder keeps its name. Others have the parts of their path joined by `_`, printable and cut,
    with the first digits of a hash of the path.
    """
    if name == STDIN:
        return "stdin"
    path = str(Path(name))
    joined = "_".join(part for part in Path(name).parts if part not in ("/", ".", ".."))
    return file_name(joined, of="./stdin" if path == "stdin" else path)
