"""Run `clipvid prepare`: `python scripts/prepare.py ucf101 --root /path/to/ucf101`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("prepare")
