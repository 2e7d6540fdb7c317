"""Run `clipvid index`: `python scripts/index.py videos --model outputs/demo/ila`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("index")
