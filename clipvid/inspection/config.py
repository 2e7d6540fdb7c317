"""Options of `clipvid inspect`, without slow imports, since command lines import them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from clipvid import InputError
from clipvid.registry import FINITE, Choice, check_option, check_ranges

Dropped = Literal["broken", "duplicate", "label", "static", "dark", "short", "long", "rate", "bars"]
DROPPED = ("broken", "duplicate", "label", "static", "dark", "short", "long", "rate", "bars")


@dataclass(frozen=True)
class InspectConfig:
    """Options of `clipvid inspect`.

    Attributes:
        path: Videos to inspect, anything that `data.train` of `clipvid finetune` takes: a list or manifest, a folder
            with one folder per class, shards, or `{name: datasets, path: ...}`. A folder without folders of classes
            has no labels.
        val: Validation videos in the same forms. Duplicates between both are reported first.
        root: Folder that paths are relative to. By default the folder of the list.
        classes: List of classes. By default `classes.csv` in the root if it exists, otherwise the labels.
        group_pattern: Regular expression whose first group is the video's group, such as a person or a source video. It
            is searched in a path as the list has it, or in the part below a folder with one folder per class. Groups
            are never divided between training and test videos of a probe.
        allow_outside_root: Allow lists and links to files outside `root`.
        model: Plain CLIP (`tiny`, `ViT-B-16`), or a model folder, whose image tower is used without its adapters.
        pretrained: Weights of a plain CLIP.
        image_size: Side of the images in pixels, if it differs from the pretrained one.
        num_frames: Frames per clip that the tower encodes. Three times as many are compared between clips.
        folds: Folds of the cross-validation of the probes.
        seed: Seed of folds and intervals.
        batch_size: Clips per pass of the tower.
        num_workers: Processes that read videos.
        cache_gib: Size limit of the stored features in `$CLIPVID_CACHE/inspection`, in GiB.
        examples: Rows with pictures in each section of the report.
        fix: CSV file to write, with all videos but the flagged ones. With `val` it has a column `split`.
        drop: Findings whose videos `fix` leaves out. Of copies, one stays: that of `val` if there is one. `label`
            leaves out nothing if the probe agrees with less than 80% of the labels.
        output_dir: Folder of report.html and inspect.json.
    """

    path: Choice
    val: Choice | None = None
    root: str | None = None
    classes: str | None = None
    group_pattern: str | None = None
    allow_outside_root: bool = False
    model: str = "tiny"
    pretrained: str | None = None
    image_size: int | None = None
    num_frames: int = 8
    folds: int = 5
    seed: int = 0
    batch_size: int = 16
    num_workers: int = 2
    cache_gib: float = 10.0
    examples: int = 12
    fix: str | None = None
    drop: list[Dropped] = field(default_factory=lambda: ["broken", "duplicate", "label"])
    output_dir: str = "outputs/inspect"

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("num_frames", "batch_size"), (1, FINITE))
        check_ranges("inspect", self, folds=(2, FINITE), num_workers=(0, FINITE), cache_gib=(0, FINITE), **counts)
        check_ranges("inspect", self, examples=(0, FINITE))
        for name in self.drop:
            check_option("inspect", "drop", name, DROPPED)
        if self.fix is not None and not self.fix.endswith(".csv"):
            raise InputError(f"fix={self.fix}: expected the name of a new CSV file, such as clean.csv")
