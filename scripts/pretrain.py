"""Run `clipvid pretrain`: `accelerate launch scripts/pretrain.py --config configs/pretrain/video.yaml`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("pretrain")
