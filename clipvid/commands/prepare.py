"""Manifests of a downloaded public data set: `clipvid prepare ucf101 --root /data/ucf101`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clipvid.data.leaks import check_splits
from clipvid.data.lists.public_datasets import READERS, located, read_public_dataset
from clipvid.data.lists.sources import find_videos
from clipvid.data.manifest import ManifestError, load_manifest
from clipvid.files import write_text
from clipvid.registry import check_option
from clipvid.runs.config_files import parse_config


@dataclass(frozen=True)
class PrepareConfig:
    """Options of `clipvid prepare`.

    Attributes:
        dataset: k400, k600, k700, ssv2, ucf101, hmdb51, diving48 or jester.
        root: Folder with the videos, or folders of frames, in any arrangement. They are found by name.
        annotations: Folder of the authors' annotation files. By default `root`.
        split: One of the three splits of ucf101 and hmdb51.
        output_dir: Folder for train.csv, val.csv and classes.csv, by default `root`/clipvid. Missing videos are listed
            in missing.txt.
    """

    dataset: str
    root: str = "."
    annotations: str | None = None
    split: int = 1
    output_dir: str | None = None


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    config = parse_config(PrepareConfig, args, "clipvid prepare", as_positional=True)
    check_option("prepare", "dataset", config.dataset, tuple(READERS))
    root = Path(config.root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; set --root to the folder of the videos")
    output = root / "clipvid" if config.output_dir is None else Path(config.output_dir)
    annotations = read_public_dataset(config.dataset, Path(config.annotations or root), config.split)
    output.mkdir(parents=True, exist_ok=True)
    _write(output / "classes.csv", ("id", "name"), enumerate(annotations.classes))
    videos, missing = list(find_videos(root)), []
    written = {}
    for split, rows in annotations.splits.items():
        there, absent = located(root, iter(videos), rows)
        print(f"{split}: {len(there)} of {len(rows)} videos", flush=True)
        missing += absent
        if there:
            _write(output / f"{split}.csv", ("path", "label"), there)
            absolute = output.absolute()
            written[split] = load_manifest(root, str(absolute / f"{split}.csv"), absolute / "classes.csv")
    write_text(output / "missing.txt", "".join(f"{name}\n" for name in missing))
    if not written:
        raise ManifestError(f"none of the videos of {config.dataset} was found below {root}; one is named {missing[0]}")
    if {"train", "val"} <= written.keys():
        check_splits(written["train"], written["val"])
    print(
        f"{len(annotations.classes)} classes -> {output}/classes.csv, {', '.join(f'{split}.csv' for split in written)}"
    )
    if missing:
        print(f"{len(missing)} videos are missing -> {output}/missing.txt")
    print(f"to check that every video can be read: clipvid check-videos {output}/train.csv --root {root}")


def _write(path: Path, header: tuple[str, ...], rows: Iterable[Iterable[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
