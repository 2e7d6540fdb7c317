"""Markdown table of a ladder, and its plot of accuracy against cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipvid.benchmarks.seed_statistics import FORWARD, PAIRS, TOP1
from clipvid.evaluation.report import INK, PALETTE
from clipvid.evaluation.tables import markdown_table
from clipvid.files import replacing

MEASURES = {PAIRS: "motion pairs", TOP1: "top-1"}
CONTROLS = ("reversed", "shuffled", "single")
MARKERS = "osD^vPX<>"


def render_ladder(results: dict[str, Any]) -> str:
    """Return Markdown: the rows, the pairs one by one, the predictions, and the settings."""
    rows = results["rows"]
    blocks = [_main_table(results), _pair_table(rows), _hypotheses(results["predictions"]), _notes(results)]
    return "\n\n".join(block.rstrip() for block in blocks if block) + "\n"


def _main_table(results: dict[str, Any]) -> str:
    rows = results["rows"]
    measures = _measured(rows)
    settings = list(dict.fromkeys(key for row in rows.values() for key in row["settings"]))
    controlled = measures[0]
    heads = ["", *settings, *(MEASURES[measure] for measure in measures)]
    heads += [f"{MEASURES[controlled]}, {' / '.join(CONTROLS)}"]
    heads += ["trained", "GFLOPs", "clips/s forward", "clips/s training", "peak memory"]
    lines = []
    for name, row in rows.items():
        cells = [_setting(row["settings"].get(key)) for key in settings]
        cells += [_accuracy(row["figures"].get(FORWARD, {}).get(measure)) for measure in measures]
        controls = [row["figures"].get(control, {}).get(controlled) for control in CONTROLS]
        cells += [" / ".join("-" if each is None else f"{each['mean']:.2f}" for each in controls)]
        lines.append([name, *cells, *_costs(row["cost"])])
    return markdown_table(heads, lines, text_columns=1 + len(settings))


def _measured(rows: dict[str, Any]) -> list[str]:
    found = [row["figures"].get(FORWARD, {}) for row in rows.values()]
    return [measure for measure in MEASURES if any(measure in figures for figures in found)] or [TOP1]


def _setting(value: Any) -> str:
    if value is None:
        return ""
    if value == []:
        return "none"
    if isinstance(value, dict):
        options = [f"{key}={option}" for key, option in value.items() if key != "name"]
        return " ".join([str(value.get("name", "")), *options]).strip()
    return ", ".join(map(_setting, value)) if isinstance(value, list) else str(value)


def _accuracy(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "-"
    spread = "" if figure["std"] is None else f" ± {figure['std']:.3f}"
    return f"{figure['mean']:.3f}{spread} ({figure['low']:.2f} to {figure['high']:.2f})"


def _costs(cost: dict[str, Any]) -> list[str]:
    def told(value: float | None, unit: float, text: str) -> str:
        return "-" if value is None else text.format(value / unit)

    ratio = told(cost["memory_ratio"], 1, " ({:.2f})")
    return [
        told(cost["parameters"], 1e6, "{:.2f} M"),
        told(cost["gflops"], 1, "{:.3g}"),
        *(told(cost[name], 1, "{:.2f}") for name in ("forward", "training")),
        told(cost["memory"], 2**20, "{:.0f} MiB") + (ratio if cost["memory"] is not None else ""),
    ]


def _pair_table(rows: dict[str, Any]) -> str:
    figures = {name: row["figures"].get(FORWARD, {}) for name, row in rows.items()}
    pairs = list(dict.fromkeys(key for own in figures.values() for key in own if key not in MEASURES))
    if not pairs:
        return ""
    lines = [
        [name, *(f"{own[pair]['mean']:.2f}" if pair in own else "-" for pair in pairs)] for name, own in figures.items()
    ]
    return markdown_table(["motion against its reverse", *pairs], lines, text_columns=1)


def _hypotheses(hypotheses: list[dict[str, Any]]) -> str:
    if not hypotheses:
        return ""
    lines = []
    for each in hypotheses:
        found, held = each["found"], {None: "-", True: "yes", False: "**no**"}[each["held"]]
        told = "-" if found is None else f"{found['mean']:.3f} ({found['low']:.2f} to {found['high']:.2f})"
        late = f" (written after {each['written_after']} trials)" if each["written_after"] else ""
        lines.append([each["text"] + late, held, told, each["why"]])
    return markdown_table(["prediction", "held", "found", "why it was expected"], lines, text_columns=4)


def _notes(results: dict[str, Any]) -> str:
    seeds, machine = results["config"]["seeds"], ", ".join(results["machine"].values())
    apart = results["clusters"] < results["videos"]
    whom = f"{results['videos']} videos of {results['clusters']} groups, a group taken as one draw"
    whom = whom if apart else f"{results['videos']} videos"
    lines = [
        f"Mean ± standard deviation over the seeds {', '.join(map(str, seeds))}; in brackets the 95% interval of the "
        f"mean over seeds and {whom}.",
        "Controls: means on reversed clips, shuffled clips, the first frame repeated. GFLOPs: of one clip's forward "
        "pass, two for a multiply-add. clips/s relative to `none`, and memory (of a training step, beyond weights and "
        "frames; relative to `none` in brackets), measured in one run.",
    ]
    if results["repeat"] is not None:
        same = "the same scores to the bit" if results["repeat"]["same"] else "**other scores than the first**"
        lines.append(f"The second run of {results['repeat']['cell']} gave {same}.")
    for name, error in results["failed"].items():
        lines.append(f"**{_escaped(name)} failed**: {_escaped(error)}")
    trials = f"{results['finished']} of {results['cells']} trials"
    jobs = f"{results['config']['jobs'] or 1} trials at a time"
    minutes = f"{results['seconds'] / 60:.0f} min of trials, {jobs}"
    lines.append(f"{trials}, {minutes}; {results['date']}, {machine}: `{results['command']}`")
    return "\n".join(f"- {line}" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def draw_ladder(results: dict[str, Any], file: Path) -> None:
    """Plot accuracy with its interval against the GFLOPs of a clip, one panel per measure. Nothing without trials."""
    rows = {name: row for name, row in results["rows"].items() if row["figures"]}
    if not rows:
        return
    measures = _measured(rows)
    figure = Figure(figsize=(5.2 * len(measures) + 1.4, 4), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        _draw(axes, measure, rows)
    legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may hold a dollar sign
    with replacing(file) as aside:
        figure.savefig(aside, format="png", dpi=144)


def _draw(axes: Axes, measure: str, rows: dict[str, Any]) -> None:
    points = sorted((row["cost"]["gflops"], name, row["figures"][FORWARD][measure]) for name, row in rows.items())
    axes.set_ylim(0, 1.04)
    if measure == PAIRS:
        axes.axhline(0.5, color="#a3adc2", linewidth=1, linestyle="dashed")
        axes.annotate("chance", (1, 0.5), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    for place, (cost, name, found) in enumerate(points):
        error = [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
        look: Any = {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)]}
        axes.errorbar(cost, found["mean"], yerr=error, linestyle="none", capsize=3, markersize=6, label=name, **look)
    axes.set_title(f"{MEASURES[measure]}, 95% interval", fontsize=11, color=INK)
    axes.set_xlabel("GFLOPs of a clip's forward pass", fontsize=9)
    axes.grid(axis="y", color="#e2e6ee")
    axes.spines[["top", "right"]].set_visible(False)
