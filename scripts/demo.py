"""Run `clipvid demo`: `python scripts/demo.py`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("demo")
