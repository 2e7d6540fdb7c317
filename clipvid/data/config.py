"""The `data` part of a run's config, and the config of `clipvid check-videos`.

Command lines import this module to print their help, so it imports no library that is slow to load. It has no
`TYPE_CHECKING` block either: jsonargparse runs those of modules whose classes it parses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from clipvid import InputError
from clipvid.data.preprocessing import Preprocessing
from clipvid.data.synthetic.world import WorldConfig
from clipvid.registry import FINITE, Choice, check_ranges


@dataclass(frozen=True)
class AugmentConfig:
    """How training clips are varied, the same way for all frames of a clip; see `clipvid.data.transforms`.

    flip: mirror half of the clips. A class whose name tells left from right, or clockwise from anticlockwise, takes the
        label of its opposite, and is never mirrored where there is none. label_map_flip: class names that a mirror
        exchanges, in place of what the names say.
    """

    scale: tuple[float, float] = (0.8, 1.0)
    flip: bool = False
    label_map_flip: dict[str, str] | None = None
    rand_augment: int = 0
    color_jitter: float = 0.0
    grayscale: float = 0.0
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise InputError(
                f"data.augment.scale={self.scale}: expected two shares of the area, 0 < least <= most <= 1"
            )
        check_ranges("data.augment", self, rand_augment=(0, 30), color_jitter=(0, 1))
        check_ranges("data.augment", self, grayscale=(0, 1), random_erasing=(0, 1))


@dataclass(frozen=True)
class DataConfig:
    """Where videos are and how clips are taken from them.

    root: folder that paths are relative to.
    train, val: lists `path label`; manifests in CSV, JSON, JSON lines or Parquet; folders with a folder per class;
        `shards-{000..009}.tar`; or `{name: datasets, path: ...}`. See `clipvid.data.manifest.load_manifest`.
    classes: names of the classes: one per line (.txt), CSV with `id,name`, or as data sets publish them; null for the
        names that `train` gives. The default means null if there is no such file.
    allow_outside_root: let lists and links name files outside of `root`.
    check_files: look that every file exists, and where links lead.
    world: a synthetic world to build in `root` first.
    group_pattern: regular expression whose first group, matched on a path, names the video's group (a person, ...).
    protocol: `holdout` trains on train and evaluates on val; `leave_one_group_out` pools both and holds out each
        group in turn.
    sampling, stride: `uniform` segments over the video, or a `dense` window with `stride` frames between.
    repeats: clips of each video in an epoch of training, side by side (repeated sampling).
    augment: random variations of training clips; null to train on the clips of the evaluation, the same ones in every
        epoch.
    resize: `shortest_center` or `squash`, for evaluation. test_clips, test_crops: views per video in evaluation.
    max_bad_fraction: share of the training videos that may be unreadable before the run stops; up to it, others are
        shown in their place. Unless it is 0, three may be, or a quarter of the videos if that is fewer. In evaluation
        an unreadable video counts as wrong.
    """

    root: str = "data"
    train: Choice = "train.csv"
    val: Choice = "val.csv"
    classes: str | None = "classes.csv"
    allow_outside_root: bool = False
    check_files: bool = True
    world: WorldConfig | None = None
    group_pattern: str | None = None
    protocol: Literal["holdout", "leave_one_group_out"] = "holdout"
    sampling: Literal["uniform", "dense"] = "uniform"
    stride: int = 1
    repeats: int = 1
    resize: Literal["shortest_center", "squash"] = "shortest_center"
    test_clips: int = 1
    test_crops: int = 1
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    num_workers: int = 2
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("stride", "repeats", "test_clips", "test_crops"), (1, FINITE))
        check_ranges("data", self, num_workers=(0, FINITE), max_bad_fraction=(0, 1), **counts)

    @property
    def preprocessing(self) -> Preprocessing:
        """How clips are taken for evaluation."""
        return Preprocessing(self.sampling, self.stride, self.resize)


@dataclass(frozen=True)
class CheckVideosConfig:
    """A scan of videos, several at a time.

    path: a list or manifest, a folder (of all videos below it), or another source of videos.
    root: folder that the paths start from; unset, the folder of the list.
    classes: class list, against which labels are checked; unset, labels may be anything.
    frames: frames to decode of each video, spread over it; 0 for every frame.
    report: JSON lines `{"path", "reason"}` of what cannot be read.
    fix: write the list without them, as `<name>.fixed.<suffix>` beside it (of a folder: `manifest.fixed.csv` in it).
    num_workers: processes; unset, one per core.
    """

    path: str
    root: str | None = None
    classes: str | None = None
    frames: int = 8
    report: str = "bad_videos.jsonl"
    fix: bool = False
    allow_outside_root: bool = False
    num_workers: int | None = None
