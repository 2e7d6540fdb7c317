"""The `data` section of a run's config, and the config of `clipvid check-videos`.

Command lines import this module to print their help, so it imports no slow libraries. It has no `TYPE_CHECKING` block
either, since jsonargparse executes those of modules whose classes it parses.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from clipvid import InputError
from clipvid.data.preprocessing import Preprocessing, Resize
from clipvid.data.synthetic.world import WorldConfig
from clipvid.registry import FINITE, Choice, check_option, check_ranges


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training clips, the same for all frames unless `per_frame`; see `clipvid.data.transforms`.

    Attributes:
        fixed: Train on the clips of the evaluation, the same ones in every epoch. No other option may be set.
        crop: `area` takes a random share of the area, see `scale`. `multi_scale` takes one of four shares of the short
            side in each direction, at a corner or the center, see `MultiScaleCrop`.
        scale: Minimum and maximum share of the area that the crop `area` takes.
        flip: Mirror half of the clips. A class with left, right or a direction of rotation in its name takes the label
            of its opposite. It is never mirrored if there is none.
        label_map_flip: Class names that a mirror exchanges, instead of the opposites found in the names.
        rand_augment: Magnitude of RandAugment, 1 to 30, or 0 for none.
        color_jitter: Strength of random changes of brightness, contrast and saturation, and a quarter of it for hue. A
            list sets the four strengths.
        color_jitter_probability: Probability of changing the colors of a clip.
        per_frame: Draw the change of colors for each frame, instead of one for the clip.
        grayscale: Probability of converting a clip to grayscale.
        random_erasing: Probability of one rectangle in a clip that is filled with `erase_color`.
        erase_color: Red, green and blue, 0 to 255.
    """

    fixed: bool = False
    crop: Literal["area", "multi_scale"] = "area"
    scale: tuple[float, float] = (0.8, 1.0)
    flip: bool = False
    label_map_flip: dict[str, str] | None = None
    rand_augment: int = 0
    color_jitter: float | tuple[float, float, float, float] = 0.0
    color_jitter_probability: float = 1.0
    per_frame: bool = False
    grayscale: float = 0.0
    random_erasing: float = 0.0
    erase_color: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise InputError(
                f"data.augment.scale={self.scale}: expected two shares of the area, 0 < minimum <= maximum <= 1"
            )
        shares = ("grayscale", "random_erasing", "color_jitter_probability")
        check_ranges("data.augment", self, rand_augment=(0, 30), **dict.fromkeys(shares, (0, 1)))
        check_option("data.augment", "crop", self.crop, ("area", "multi_scale"))
        self._check_colors()
        if self.crop != "area" and self.scale != AugmentConfig.scale:
            raise InputError("data.augment.scale is the share of crop: area; leave it out with crop: multi_scale")
        if self.fixed and replace(self, fixed=False) != AugmentConfig():
            raise InputError("data.augment.fixed=true varies no clip: leave out the other options of data.augment")

    def _check_colors(self) -> None:
        strengths = self.color_jitter if isinstance(self.color_jitter, tuple) else (self.color_jitter,)
        hue = strengths[3] if len(strengths) == 4 else 0.0
        if not (all(0 <= strength <= 1 for strength in strengths) and hue <= 0.5):
            raise InputError(
                f"data.augment.color_jitter={self.color_jitter}: expected a number from 0 to 1, or four of brightness, "
                "contrast, saturation and hue, the last at most 0.5"
            )
        if not all(0 <= value <= 255 for value in self.erase_color):
            raise InputError(f"data.augment.erase_color={self.erase_color}: expected three values from 0 to 255")
        for option, owner, used in (
            ("per_frame", "color_jitter", any(strengths)),
            ("color_jitter_probability", "color_jitter", any(strengths)),
            ("erase_color", "random_erasing", self.random_erasing > 0),
        ):
            if not used and getattr(self, option) != getattr(AugmentConfig, option):
                raise InputError(f"data.augment.{option} has no effect without {owner}; set {owner} too, or remove it")


@dataclass(frozen=True)
class DataConfig:
    """Videos, and how clips are sampled from them.

    Attributes:
        root: Folder that paths are relative to.
        train: Training videos. Lists `path label`; manifests in CSV, JSON, JSON lines or Parquet; folders with one
            folder per class; `shards-{000..009}.tar`; or `{name: datasets, path: ...}`. See
            `clipvid.data.manifest.load_manifest`.
        val: Validation videos, in the same forms. Null holds out a share of `train`. So does the default in
            `clipvid finetune`, if that file does not exist.
        val_share: Share of `train` that is held out, at most a half: whole groups if there are groups, otherwise a
            share of each class.
        split_seed: Seed of this division.
        classes: Names of the classes: one per line (.txt), CSV with `id,name`, or the published file of a data set.
            Null takes the names in `train`. The default means null if the file does not exist.
        allow_outside_root: Allow lists and links to files outside `root`.
        check_files: Check that every file exists, and where links lead.
        check_leaks: Refusal of videos that are in `train` and `val`. `path` finds the same file under any name and in
            any kind of source. `content` also finds equal bytes, and reads the files whose sizes are in both. `none`
            checks nothing.
        world: Synthetic world to build in `root` first.
        group_pattern: Regular expression whose first group is the video's group (such as a person). It is searched in
            a path as the list has it, or in the part below a folder with one folder per class.
        protocol: `holdout` trains on train and evaluates on val. `leave_one_group_out` pools both and holds out each
            group in turn.
        sampling: `uniform` segments over the video, or a `dense` window. `{name: uniform, by: time}` makes the
            segments equal in presentation time instead of number of frames.
        stride: Distance between frames of a `dense` window.
        repeats: Clips of each video in an epoch of training, in the same batch (repeated sampling).
        balance: Show every class equally often in training. Videos of rare classes are repeated, and some of frequent
            classes left out, other ones in each epoch.
        resize: `shortest_center`, `squash` or `bilinear_center`, for evaluation.
        test_clips: Clips per video in evaluation.
        test_crops: Crops per clip in evaluation.
        test_sampling: `fixed` takes evenly spread frames in evaluation. `random` draws frames as in training, the same
            ones in every evaluation.
        augment: Augmentation of training clips.
        num_workers: Worker processes of each loader.
        max_bad_fraction: Share of unreadable training videos at which the run stops. Below it, they are replaced by
            other videos. Unless it is 0, three are allowed, or a quarter of the videos if that is fewer. In evaluation
            an unreadable video counts as wrong.
        check_videos: Videos of each split that are opened before training, spread over it. A smaller split is opened
            whole. 0 for none.
    """

    root: str = "data"
    train: Choice = "train.csv"
    val: Choice | None = "val.csv"
    classes: str | None = "classes.csv"
    allow_outside_root: bool = False
    check_files: bool = True
    check_leaks: Literal["path", "content", "none"] = "path"
    world: WorldConfig | None = None
    group_pattern: str | None = None
    protocol: Literal["holdout", "leave_one_group_out"] = "holdout"
    sampling: Choice = "uniform"
    stride: int = 1
    repeats: int = 1
    resize: Resize = "shortest_center"
    test_clips: int = 1
    test_crops: int = 1
    test_sampling: Literal["fixed", "random"] = "fixed"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    num_workers: int = 2
    max_bad_fraction: float = 0.01
    check_videos: int = 1000
    val_share: float = 0.2
    split_seed: int = 0
    balance: bool = False

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("stride", "repeats", "test_clips", "test_crops"), (1, FINITE))
        check_ranges("data", self, num_workers=(0, FINITE), check_videos=(0, FINITE), max_bad_fraction=(0, 1), **counts)
        check_ranges("data", self, val_share=(0.01, 0.5), split_seed=(0, FINITE))
        check_option("data", "test_sampling", self.test_sampling, ("fixed", "random"))
        self.preprocessing.frame_sampling(1)

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of clips in evaluation."""
        return Preprocessing.from_options(self.sampling, self.stride, self.resize)


@dataclass(frozen=True)
class CheckVideosConfig:
    """Options of `clipvid check-videos`.

    Attributes:
        path: List, manifest, folder (with all videos below it), or another source of videos.
        root: Folder that paths are relative to. By default the folder of the list.
        classes: Class list to check labels against. By default any label is accepted.
        frames: Number of frames to decode in each video, spread over it, or 0 for all frames.
        report: JSON lines file `{"path", "reason"}` of unreadable videos.
        fix: Write the list without unreadable videos, as `<name>.fixed.<suffix>` (for a folder, `manifest.fixed.csv`).
        allow_outside_root: Allow lists and links to files outside `root`.
        num_workers: Number of processes. By default one per core.
    """

    path: str
    root: str | None = None
    classes: str | None = None
    frames: int = 8
    report: str = "bad_videos.jsonl"
    fix: bool = False
    allow_outside_root: bool = False
    num_workers: int | None = None
