"""Run `clipvid app`: `python scripts/app.py --model outputs/my_videos`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("app")
