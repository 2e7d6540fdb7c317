"""List or copy of the package's configs: `clipvid configs --copy DIR`."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from clipvid.runs.config_files import config_folder, copy_configs


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    parser = ArgumentParser(prog="clipvid configs", description="List the configs of the package, or copy them.")
    parser.add_argument("--copy", type=Path | None, help="folder to copy them to; edited files are kept")
    folder = parser.parse_args(args).copy
    if folder is not None:
        print(f"{copy_configs(folder)} files -> {folder}")
        return
    source = config_folder()
    for file in sorted(source.rglob("*.yaml")):
        print(f"configs/{file.relative_to(source).as_posix()}")
