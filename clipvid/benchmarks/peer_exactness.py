"""Frames at asked times beside PyAV, decord and torchcodec, on videos that show the number of each frame."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from clipvid.benchmarks.numbered_videos import RATE, Encoding, number_of, write_numbered
from clipvid.benchmarks.peer_reading import DECORD, TORCHCODEC, file_name, read_pyav, reason
from clipvid.benchmarks.peers import OURS, PeerRow, PeersBenchmark, Sample
from clipvid.data.reader import Video, open_video

ASKED = 20  # times


def measure_exactness(config: PeersBenchmark) -> list[PeerRow]:
    """Count how many of the frames at asked times are those that a player shows."""
    rows = []
    for case, (times, encoding) in timed_videos().items():
        path = Path(config.output_dir) / "videos" / f"{file_name(case)}.mp4"
        write_numbered(path, times, encoding)
        seconds = [float(moment - times[0]) for moment in times]
        asked = np.linspace(0, seconds[-1], ASKED + 1)[:-1] + 0.003
        right = [bisect_right(seconds, moment) - 1 for moment in asked]
        for tool, read in READERS_BY_TIME.items():
            try:
                numbers = [number_of(frame) for frame in read(path, asked.tolist())]
            except Exception as error:  # any reason why a peer cannot read a file is a result
                rows.append(PeerRow("frames at asked times", case, tool, [], f"of {ASKED}", reason(error), True))
                continue
            hits = float(sum(one == other for one, other in zip(numbers, right, strict=True)))
            rows.append(PeerRow("frames at asked times", case, tool, [Sample(hits)], f"of {ASKED}", is_count=True))
    return rows


def timed_videos() -> dict[str, tuple[list[Fraction], Encoding]]:
    """Return times of frames and encoding of each case. The times of an edit list do not start at 0."""
    even = [Fraction(number, RATE) for number in range(100)]
    slow = [Fraction(number) for number in range(10)]
    varying = [*slow, *(slow[-1] + Fraction(number, 30) for number in range(1, 61))]
    b_frames = {"preset": "veryfast", "bf": "3", "g": "50"}
    return {
        "constant rate, B-frames": (even, Encoding("libx264", options=b_frames)),
        "10 s at 1 frame/s, then 2 s at 30": (varying, Encoding("libx264", options=b_frames)),
        "start at 1.5 s (edit list)": (
            [moment + Fraction(3, 2) for moment in even],
            Encoding("libx264", options=b_frames),
        ),
    }


def _ours_by_time(path: Path, asked: Sequence[float]) -> np.ndarray:
    with open_video(path) as video:
        assert isinstance(video, Video)
        assert video.times is not None
        return video.read([bisect_right(video.times, moment) - 1 for moment in asked]).numpy()


def _pyav_by_time(path: Path, asked: Sequence[float]) -> Iterator[np.ndarray]:
    """Seek to the keyframe before the time, and decode up to it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        start = stream.start_time or 0
        for moment in asked:
            goal = start + int(moment / (stream.time_base or 1))
            container.seek(goal, stream=stream)
            shown = None
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts > goal:
                    break
                shown = frame
            assert shown is not None
            yield shown.to_ndarray(format="rgb24")


def _decord_by_time(path: Path, asked: Sequence[float]) -> np.ndarray:
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    starts = reader.get_frame_timestamp(list(range(len(reader))))[:, 0]
    numbers = [max(int(np.searchsorted(starts, moment + starts[0], "right")) - 1, 0) for moment in asked]
    frames: np.ndarray = reader.get_batch(numbers).asnumpy()
    return frames


def _average_rate(path: Path, asked: Sequence[float]) -> np.ndarray:
    """Take frame number time x rate, as most data sets do."""
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate or RATE)
    return read_pyav(path, [int(moment * rate) for moment in asked])


def _torchcodec_by_time(path: Path, asked: Sequence[float]) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    begin = decoder.metadata.begin_stream_seconds or 0.0
    frames: np.ndarray = decoder.get_frames_played_at([begin + moment for moment in asked]).data.numpy()
    return frames


READERS_BY_TIME: dict[str, Callable[[Path, Sequence[float]], Iterable[np.ndarray]]] = {
    OURS: _ours_by_time,
    "PyAV, seek and decode": _pyav_by_time,
    "PyAV, number = time x rate": _average_rate,
    DECORD: _decord_by_time,
    TORCHCODEC: _torchcodec_by_time,
}
