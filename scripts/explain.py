"""Run `clipvid explain`: `python scripts/explain.py --model outputs/demo/ila clip.mp4`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("explain")
