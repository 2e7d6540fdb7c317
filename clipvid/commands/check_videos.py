"""Check of every video in a list or folder: `clipvid check-videos train.csv --root videos`."""

from __future__ import annotations

import sys
from pathlib import Path

from clipvid import InputError
from clipvid.data.config import CheckVideosConfig
from clipvid.runs.config_files import parse_config


def main(args: list[str] | None = None) -> None:
    """Run the verb. Exit with code 1 if a video cannot be read."""
    config = parse_config(CheckVideosConfig, args, "clipvid check-videos", as_positional=True)

    from clipvid.data.broken import BadVideos, Failure
    from clipvid.data.lists.classes import read_classes
    from clipvid.data.lists.places import locate
    from clipvid.data.lists.sources import ListSource
    from clipvid.data.manifest import Manifest, checked_rows
    from clipvid.data.scan import AnyClass, EveryVideo, _source, _write_fixed, check_all
    from clipvid.files import json_text, printable, write_text
    from clipvid.runs.progress import Progress

    root, source = _source(config)
    if config.fix and not isinstance(source, ListSource | EveryVideo):
        raise InputError(f"--fix supports lists and folders, but not {source.title}")
    class_list = (
        AnyClass() if config.classes is None else read_classes(root / locate(root, config.classes, "list of classes"))
    )
    rows = checked_rows(source, root, class_list, allow_outside_root=config.allow_outside_root)
    manifest = Manifest(rows, class_list.classes, root)
    bad = BadVideos("check", len(manifest))
    failed: list[int] = []
    with Progress(len(manifest), 0, enabled=True) as progress:
        for done, (index, reason) in enumerate(check_all(manifest, config.frames, config.num_workers), 1):
            if reason is not None:
                failed.append(index)
                bad.add([Failure(manifest.samples[index].path, reason)])
            progress.figures = f"{len(failed)} bad"
            progress.advance(done)
    report = Path(config.report)
    entries = [{"path": path, "reason": reason} for path, reason in sorted(bad.reasons.items())]
    write_text(report, "".join(json_text(entry) + "\n" for entry in entries))
    print(f"{len(manifest)} checked, {len(failed)} cannot be read -> {printable(report)}")
    if config.fix and isinstance(source, ListSource | EveryVideo):
        lines = rows.table["line"]
        fixed = _write_fixed(source, root, {lines[i].as_py() for i in failed})
        print(f"list without them -> {printable(fixed)}")
    sys.exit(1 if failed else 0)
