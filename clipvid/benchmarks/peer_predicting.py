"""Prediction of a folder of videos beside transformers' pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState

from clipvid.benchmarks.data import make_videos
from clipvid.benchmarks.peers import OURS, PeerRow, PeersBenchmark, Sample
from clipvid.hub.loading import from_pretrained
from clipvid.inference.predictor import Predictor
from clipvid.model.factory import create_model

LABELS = ["a ball", "a box", "a star"]


def measure_predicting(config: PeersBenchmark) -> list[PeerRow]:
    """Measure videos per second of both, with the same model, in turns."""
    output = Path(config.output_dir)
    made = sorted(make_videos(output / "folder").glob("*.mp4"))
    videos = [made[number % len(made)] for number in range(config.videos)]
    folder = output / "model"
    create_model(config.predictor, adapter="ila", num_frames=config.num_frames, labels=LABELS).save_pretrained(folder)
    ways = {OURS: _stream(folder, videos), "transformers pipeline": _pipeline(folder, videos)}
    samples: dict[str, list[Sample]] = {tool: [] for tool in ways}
    for _ in range(config.repeats):
        for tool, run in ways.items():
            start = time.perf_counter()
            run()
            samples[tool].append(Sample(len(videos) / (time.perf_counter() - start)))
    case = f"{len(videos)} videos, {config.predictor}"
    return [PeerRow("predicting", case, tool, own, "videos/s") for tool, own in samples.items()]


def _stream(folder: Path, videos: list[Path]) -> Callable[[], None]:
    predictor = Predictor(from_pretrained(folder).eval().to(PartialState().device))

    def run() -> None:
        for item in predictor.stream(videos):
            if item.error is not None:
                raise item.error

    return run


def _pipeline(folder: Path, videos: list[Path]) -> Callable[[], None]:
    from transformers import AutoModelForVideoClassification, AutoVideoProcessor
    from transformers.pipelines.video_classification import VideoClassificationPipeline

    pipeline = VideoClassificationPipeline(
        model=AutoModelForVideoClassification.from_pretrained(folder),
        video_processor=AutoVideoProcessor.from_pretrained(folder),
        device=PartialState().device,
    )

    def run() -> None:
        pipeline([str(video) for video in videos])

    return run
