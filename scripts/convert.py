"""Run `clipvid convert`: `python scripts/convert.py ila --checkpoint x.pth --num_frames 8 --output_dir outputs/ila`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("convert")
