"""Evaluation on labeled video under a protocol: `clipvid evaluate --model outputs/demo/ila --data.root ...`.

`clipvid evaluate --suite configs/eval/suite.yaml` measures several models under several protocols.
"""

from __future__ import annotations

import sys

from clipvid.experiments.config import EvaluateConfig
from clipvid.runs.config_files import parse_config


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    args = sys.argv[1:] if args is None else args
    if any(arg.split("=")[0] == "--suite" for arg in args):
        from clipvid.experiments.suite import run_suite

        run_suite(args)
        return
    config = parse_config(EvaluateConfig, args, "clipvid evaluate")

    from clipvid.experiments.python_api import run_evaluation

    run_evaluation(config)
