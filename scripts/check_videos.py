"""Run `clipvid check-videos`: `python scripts/check_videos.py train.csv --root /path/to/videos`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("check-videos")
