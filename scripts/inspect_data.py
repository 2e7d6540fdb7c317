"""Run `clipvid inspect`: `python scripts/inspect_data.py train.csv --root /path/to/videos`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("inspect")
