"""Run `clipvid configs`: `python scripts/configs.py --copy DIR`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("configs")
