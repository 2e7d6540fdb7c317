"""The tables of a ladder, in Markdown and as an HTML report, and its picture: accuracy against cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipvid.benchmarks.seed_statistics import FORWARD, PAIRS, TOP1
from clipvid.evaluation.charts import GRID, PALETTE, chart_text, picture
from clipvid.evaluation.clips import INK
from clipvid.evaluation.report import Block, Page, Paragraph, Pictures, Section
from clipvid.evaluation.tables import Cell, Strong, Table
from clipvid.files import markdown_code, markdown_text, replacing

MEASURES = {PAIRS: "motion pairs", TOP1: "top-1"}
CONTROLS = ("reversed", "shuffled", "single")
MARKERS = "osD^vPX<>"


def render_ladder(results: dict[str, Any]) -> str:
    """Return Markdown: the rows, the pairs one by one, the hypotheses, and the settings."""
    tables = [_main_table(results), _pair_table(results["rows"]), _hypotheses(results["predictions"])]
    blocks = [table.markdown().rstrip() for table in tables if table is not None]
    return "\n\n".join([*blocks, "\n".join(map(_note_markdown, _notes(results)))]) + "\n"


def ladder_page(results: dict[str, Any]) -> Page:
    """Return the report: the picture, the tables and the settings."""
    figure = ladder_figure(results)
    alt = "Accuracy with its 95% interval over the GFLOPs of a clip; the numbers are in the table below."
    drawn: list[Block] = [] if figure is None else [Pictures([picture(figure, "accuracy over cost", alt)])]
    pairs, hypotheses = _pair_table(results["rows"]), _hypotheses(results["predictions"])
    return Page(
        "Adapters under one recipe",
        ["Every row is trained by the same recipe with several seeds, and measured on the same videos."],
        [
            Section("Accuracy and cost", "Points to the upper left are better.", drawn),
            Section(
                "Rows",
                "Means and intervals over seeds and videos. A clip is what the model sees at once.",
                [_main_table(results)],
            ),
            Section(
                "Motion pairs",
                "Share of clips that are distinguished from their reverse.",
                [] if pairs is None else [pairs],
            ),
            Section(
                "Hypotheses",
                "Written down before the trials ran, unless a row says otherwise.",
                [] if hypotheses is None else [hypotheses],
            ),
            Section("Details", "", _notes(results)),
        ],
    )


def _main_table(results: dict[str, Any]) -> Table:
    rows = results["rows"]
    measures = _measured(rows)
    settings = list(dict.fromkeys(key for row in rows.values() for key in row["settings"]))
    controlled = measures[0]
    heads = ["", *(MEASURES[measure] for measure in measures)]
    heads += [f"{MEASURES[controlled]} less none", f"{MEASURES[controlled]}, {' / '.join(CONTROLS)}"]
    heads += ["trained", "GFLOPs", "clips/s forward", "clips/s training", "peak memory", *settings]
    lines: list[list[Cell]] = []
    for name, row in rows.items():
        cells = [_accuracy(row["figures"].get(FORWARD, {}).get(measure)) for measure in measures]
        cells += [_difference(row["less_none"].get(controlled))]
        controls = [row["figures"].get(control, {}).get(controlled) for control in CONTROLS]
        cells += [" / ".join("-" if each is None else f"{each['mean']:.2f}" for each in controls)]
        chosen = [_setting(row["settings"].get(key)) for key in settings]
        lines.append([name, *cells, *_costs(row["cost"]), *chosen])
    return Table(heads, lines, last_text_columns=len(settings))


def _measured(rows: dict[str, Any]) -> list[str]:
    figures = [row["figures"].get(FORWARD, {}) for row in rows.values()]
    return [measure for measure in MEASURES if any(measure in own for own in figures)] or [TOP1]


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


def _difference(figure: dict[str, Any] | None) -> str:
    return "-" if figure is None else f"{figure['mean']:+.3f} ({figure['low']:+.2f} to {figure['high']:+.2f})"


def _costs(cost: dict[str, Any]) -> list[str]:
    def shown(value: float | None, unit: float, text: str) -> str:
        return "-" if value is None else text.format(value / unit)

    ratio = shown(cost["memory_ratio"], 1, " ({:.2f})")
    return [
        shown(cost["parameters"], 1e6, "{:.2f} M"),
        shown(cost["gflops"], 1, "{:.3g}"),
        *(shown(cost[name], 1, "{:.2f}") for name in ("forward", "training")),
        shown(cost["memory"], 2**20, "{:.0f} MiB") + (ratio if cost["memory"] is not None else ""),
    ]


def _pair_table(rows: dict[str, Any]) -> Table | None:
    figures = {name: row["figures"].get(FORWARD, {}) for name, row in rows.items()}
    pairs = list(dict.fromkeys(key for own in figures.values() for key in own if key not in MEASURES))
    if not pairs:
        return None
    lines: list[list[Cell]] = [
        [name, *(f"{own[pair]['mean']:.2f}" if pair in own else "-" for pair in pairs)] for name, own in figures.items()
    ]
    return Table(["motion distinguished from its reverse", *pairs], lines)


def _hypotheses(hypotheses: list[dict[str, Any]]) -> Table | None:
    if not hypotheses:
        return None
    held: dict[bool | None, Cell] = {None: None, True: "yes", False: Strong("no")}
    lines: list[list[Cell]] = []
    for each in hypotheses:
        figure = each["found"]
        value = None if figure is None else f"{figure['mean']:.3f} ({figure['low']:.2f} to {figure['high']:.2f})"
        late = f" (written after {each['written_after']} trials)" if each["written_after"] else ""
        lines.append([each["text"] + late, held[each["held"]], value, each["why"]])
    return Table(["hypothesis", "held", "measured", "why it was expected"], lines, text_columns=4)


def _notes(results: dict[str, Any]) -> list[Paragraph]:
    seeds, machine = results["config"]["seeds"], ", ".join(results["machine"].values())
    apart = results["clusters"] < results["videos"]
    whom = f"{results['videos']} videos of {results['clusters']} groups, a group taken as one draw"
    whom = whom if apart else f"{results['videos']} videos"
    notes = [
        f"Mean ± standard deviation over the seeds {', '.join(map(str, seeds))}; in brackets the 95% interval of the "
        f"mean over seeds and {whom}. Less none: the difference on the same seeds and videos.",
        "Controls: means on reversed clips, shuffled clips, the first frame repeated. GFLOPs: of one clip's forward "
        "pass, two for a multiply-add. clips/s relative to none, and memory (of a training step, beyond weights and "
        "frames; relative to none in brackets), measured in one run.",
    ]
    lines = list(map(Paragraph, notes))
    if results["repeat"] is not None:
        name = results["repeat"]["cell"]
        same = Paragraph(f"The second run of {name} gave the same scores to the bit.")
        other = Paragraph(f"the second run of {name}", lead="other scores than the first")
        lines.append(same if results["repeat"]["same"] else other)
    lines += [Paragraph(error, lead=f"{name} failed") for name, error in results["failed"].items()]
    trials = f"{results['finished']} of {results['cells']} trials"
    jobs = f"{results['config']['jobs'] or 1} trials at a time"
    minutes = f"{results['seconds'] / 60:.0f} min of trials, {jobs}"
    lines.append(Paragraph(f"{trials}, {minutes}; {results['date']}, {machine}:", code=results["command"]))
    return lines


def _note_markdown(note: Paragraph) -> str:
    lead = f"**{markdown_text(note.lead)}**: " if note.lead else ""
    return f"- {lead}{markdown_text(note.text)}{f' {markdown_code(note.code)}' if note.code else ''}"


def draw_ladder(results: dict[str, Any], file: Path) -> None:
    """Write the picture as PNG; nothing without trials."""
    figure = ladder_figure(results)
    if figure is not None:
        with replacing(file) as aside:
            figure.savefig(aside, format="png", dpi=144)


def ladder_figure(results: dict[str, Any]) -> Figure | None:
    """Return a chart for each measure: accuracy with its interval over the GFLOPs of a clip; None without trials."""
    rows = {name: row for name, row in results["rows"].items() if row["figures"]}
    if not rows:
        return None
    measures = _measured(rows)
    figure = Figure(figsize=(5.2 * len(measures) + 1.4, 4), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        _draw(axes, measure, rows)
    legend = figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may hold a dollar sign
    return figure


def _draw(axes: Axes, measure: str, rows: dict[str, Any]) -> None:
    points = sorted((row["cost"]["gflops"], name, row["figures"][FORWARD][measure]) for name, row in rows.items())
    axes.set_ylim(0, 1.04)
    if measure == PAIRS:
        axes.axhline(0.5, color="#a3adc2", linewidth=1, linestyle="dashed")
        axes.annotate("chance", (1, 0.5), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    nearest = 0.025 * (points[-1][0] - points[0][0] or points[0][0])
    at = -math.inf
    for place, (cost, name, figure) in enumerate(points):
        at = max(cost, at + nearest)  # rows of equal cost stand side by side
        error = [[figure["mean"] - figure["low"]], [figure["high"] - figure["mean"]]]
        look: Any = {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)]}
        axes.errorbar(
            at, figure["mean"], yerr=error, linestyle="none", capsize=3, markersize=6, label=chart_text(name), **look
        )
    axes.set_title(f"{MEASURES[measure]}, 95% interval", fontsize=11, color=INK)
    axes.set_xlabel("GFLOPs of a clip's forward pass", fontsize=9)
    axes.grid(axis="y", color=GRID, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
