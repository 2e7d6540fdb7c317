"""Files of a timeline: the scores of a video over time, as JSON and as a plot."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from clipvid.files import replacing, write_text
from clipvid.inference.predictor import Timeline
from clipvid.inference.video_names import STDIN


def write_timeline(
    folder: Path, name: str, timeline: Timeline, labels: list[str], window: float, hop: float, top_k: int
) -> tuple[Path, Path]:
    """Write the scores of all classes, and a plot of the `top_k` highest.

    Args:
        folder: Output folder.
        name: Name of the video, from which the file names are derived.
        timeline: The scores.
        labels: Class names.
        window: Length of a window in seconds.
        hop: Distance between windows in seconds.
        top_k: Number of curves in the plot.

    Returns:
        The JSON file and the PNG file.
    """
    stem = "stdin" if name == STDIN else "_".join(part for part in Path(name).parts if part not in ("/", ".", ".."))
    scores, picture = folder / f"{stem}.json", folder / f"{stem}.png"
    record = {"video": name, "window": window, "hop": hop, "labels": labels, "times": timeline.times}
    write_text(scores, json.dumps(record | {"scores": timeline.scores.tolist()}) + "\n")
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    for index in timeline.scores.amax(dim=0).topk(min(top_k, len(labels))).indices.tolist():
        axes.plot(timeline.times, timeline.scores[:, index], marker=".", label=labels[index])
    axes.set(xlabel="seconds", ylabel="probability", ylim=(0, 1))
    for text in (axes.set_title(name), *axes.legend(loc="upper right").get_texts()):
        text.set_parse_math(False)  # names may contain a dollar sign
    with replacing(picture) as aside:
        figure.savefig(aside, format="png", dpi=100)
    return scores, picture
