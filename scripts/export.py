"""Run `clipvid export`: `python scripts/export.py --model outputs/my_videos --format onnx --output my_videos.onnx`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("export")
