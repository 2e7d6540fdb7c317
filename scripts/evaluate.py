"""Run `clipvid evaluate`: `python scripts/evaluate.py --model outputs/demo/ila --data.root outputs/demo/world ...`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("evaluate")
