"""Run `clipvid benchmark`: `python scripts/benchmark.py adapters --backbone ViT-B-32`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("benchmark")
