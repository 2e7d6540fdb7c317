"""The main job from end to end on the synthetic world: zero-shot, fine-tuning, evaluation, report."""

from __future__ import annotations

import time
from pathlib import Path

from clipvid.experiments.config import DemoConfig
from clipvid.runs.config_files import parse_config
from clipvid.training.config import FinetuneConfig


def main(args: list[str] | None = None) -> None:
    """Run the verb."""
    demo = parse_config(DemoConfig, args, "clipvid demo")

    from accelerate import Accelerator
    from rich.console import Console
    from rich.markdown import Markdown

    from clipvid.data.loader import FrameOrder
    from clipvid.data.splits import load_split
    from clipvid.evaluation.report import Row, render_rows
    from clipvid.experiments.demo import _clips, _finetune, _measure, _write

    started = time.monotonic()
    output = Path(demo.output_dir)
    adapter = parse_config(FinetuneConfig, ["--config", demo.adapter], "clipvid demo")
    manifest = load_split(adapter.data, "val")
    accelerator = Accelerator()

    outcomes = [_measure("zero-shot CLIP", output / "zero_shot", "tiny", adapter, manifest, accelerator)]
    for name, path in (("mean pooling, fine-tuned", demo.baseline), ("ILA, fine-tuned", demo.adapter)):
        outcomes.append(_finetune(name, path))
    controls: tuple[FrameOrder, ...] = ("reversed", "shuffled")
    for order in controls:
        folder, name = output / f"ila_{order}", f"ILA on {order} clips"
        outcomes.append(_measure(name, folder, adapter.output_dir, adapter, manifest, accelerator, order))

    rows = [Row(outcome.name, outcome.figures) for outcome in outcomes]
    clips = _clips(outcomes[:3], adapter, manifest, accelerator)
    _write(output, rows, clips, demo, manifest, time.monotonic() - started)
    Console().print(Markdown(render_rows(rows)))
    print(f"report: {output / 'report.html'}")
