"""Run `clipvid completion`: `python scripts/completion.py bash`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("completion")
