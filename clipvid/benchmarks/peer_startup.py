"""First answer of commands: seconds of a new process until the help is printed."""

from __future__ import annotations

import subprocess
import sys
import time

from clipvid.benchmarks.peers import OURS, PeerRow, PeersBenchmark, Sample

CASES = {
    "list of commands": {OURS: ["-m", "clipvid", "--help"], "accelerate": ["-m", "accelerate.commands.accelerate_cli"]},
    "help of training": {
        OURS: ["-m", "clipvid", "finetune", "--help"],
        "accelerate launch": ["-m", "accelerate.commands.launch", "--help"],
        "open_clip_train.main": ["-m", "open_clip_train.main", "--help"],
        "import torch": ["-c", "import torch"],
    },
}


def measure_startup(config: PeersBenchmark) -> list[PeerRow]:
    """Measure the commands in turns, after a first turn that is not counted."""
    samples = {(case, tool): list[Sample]() for case, tools in CASES.items() for tool in tools}
    for turn in range(config.repeats + 1):
        for case, tool in samples:
            start = time.perf_counter()
            subprocess.run([sys.executable, *CASES[case][tool]], stdin=subprocess.DEVNULL, capture_output=True)
            if turn:
                samples[case, tool].append(Sample(time.perf_counter() - start))
    return [PeerRow("start-up", case, tool, own, "s") for (case, tool), own in samples.items()]
