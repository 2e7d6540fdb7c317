"""Run `clipvid finetune`: `accelerate launch scripts/finetune.py --config configs/demo.yaml`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("finetune")
