"""Run `clipvid search`: `python scripts/search.py outputs/index "a ball moving left"`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("search")
