"""Run `clipvid pretrain-clip`: `python scripts/pretrain_clip.py --config configs/pretrain/tiny_clip.yaml`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("pretrain-clip")
