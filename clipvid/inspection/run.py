"""`clipvid inspect` from a config to the files in the output folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipvid.evaluation.report import Page, Paragraph, Section, write_page
from clipvid.files import write_json
from clipvid.inspection.clips import ClipList, check_fixable, read_clips, write_fixed
from clipvid.inspection.config import InspectConfig
from clipvid.inspection.features import FrozenTower, Readings, load_tower, read_all
from clipvid.inspection.findings import Findings, find_all, find_copies
from clipvid.inspection.motion import MotionResult, measure_motion
from clipvid.inspection.motion_report import advise, motion_sections
from clipvid.inspection.report import clean_sections
from clipvid.inspection.tasks import ProbeTask, probe_task
from clipvid.runs.config_files import config_record
from clipvid.runs.lock import locked

REPORT, RECORD = "report.html", "inspect.json"


@dataclass(frozen=True)
class Inspection:
    """Results of an inspection.

    Attributes:
        clips: The clips.
        readings: Their features and signatures.
        findings: Findings about the cleanliness.
        task: Clips for probes, or the reason why there are none.
        motion: Answer to whether the classes need motion, or None without labels.
        fixed: Sentence about the fixed list; empty without one.
    """

    clips: ClipList
    readings: Readings
    findings: Findings
    task: ProbeTask | str
    motion: MotionResult | None
    fixed: str = ""


def run_inspection(config: InspectConfig, tower: FrozenTower | None = None, enabled: bool = True) -> Inspection:
    """Inspect videos, and write report.html and inspect.json.

    Clips are read once: their features are stored, and an interrupted inspection continues after them.

    Args:
        config: The config.
        tower: The tower of the config, if it is loaded already.
        enabled: Show the progress.

    Raises:
        InputError: A list or an option is invalid, or no video can be read.
    """
    clips = read_clips(config)
    target = None if config.fix is None else Path(config.fix)
    if target is not None:
        check_fixable(clips, target)
    output = Path(config.output_dir)
    with locked(output):
        inspection = examine(clips, tower or load_tower(config), config, enabled)
        if target is not None:
            dropped = inspection.findings.dropped(clips, config.drop)
            base = write_fixed(clips, dropped, target)
            kept = f"{target} lists the {len(clips) - len(dropped)} clips without these findings, relative to {base}"
            inspection = replace(inspection, fixed=kept)
        write_results(inspection, config, output)
    return inspection


def examine(
    clips: ClipList, tower: FrozenTower, config: InspectConfig, enabled: bool = True, folder: Path | None = None
) -> Inspection:
    """Return the results of an inspection, without writing any.

    Args:
        clips: The clips of the config.
        tower: The tower of the config.
        config: The config.
        enabled: Show the progress.
        folder: Folder of stored features, by default that of the cache.

    Raises:
        InputError: No video can be read.
    """
    readings = read_all(clips, tower, config, enabled, folder)
    copies = find_copies(readings)
    task = probe_task(clips, readings, copies, config.folds, config.seed)
    findings = find_all(clips, readings, copies, task, config.num_frames)
    motion = None if isinstance(task, str) else measure_motion(task, config.seed)
    return Inspection(clips, readings, findings, task, motion)


def write_results(inspection: Inspection, config: InspectConfig, folder: Path) -> None:
    """Write report.html and inspect.json."""
    write_page(folder / REPORT, build_page(inspection, config))
    write_json(folder / RECORD, record(inspection, config))


def record(inspection: Inspection, config: InspectConfig) -> dict[str, Any]:
    """Return the content of inspect.json."""
    clips = inspection.clips
    facts = zip(inspection.readings.places, inspection.readings.facts, strict=True)
    return {
        "clips": len(clips),
        "config": config_record(config),
        "motion": None if inspection.motion is None else inspection.motion.record(clips.class_names),
        "clean": inspection.findings.record(clips),
        "facts": [{"path": clips.name(index)} | own.record() for index, own in facts],
    }


def build_page(inspection: Inspection, config: InspectConfig) -> Page:
    """Return the report."""
    clips = inspection.clips
    sections = clean_sections(inspection.findings, clips, config.examples)
    if inspection.motion is not None:
        advice = advise(inspection.motion, inspection.readings.facts)
        sections = motion_sections(inspection.motion, advice, clips.class_names) + sections
    if inspection.fixed:
        sections.append(Section("Fixed list", "", [Paragraph(inspection.fixed)]))
    introduction = [f"{len(clips)} clips of {len(clips.class_names)} classes, seen by the frozen tower {config.model}."]
    if not clips.is_labeled:
        introduction = [f"{len(clips)} clips without labels."]
    return Page("Inspection of the videos", introduction, sections)
