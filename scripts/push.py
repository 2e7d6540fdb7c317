"""Run `clipvid push`: `python scripts/push.py --model outputs/demo/ila --repo_id user/name`."""

from clipvid.commands import run

if __name__ == "__main__":
    run("push")
