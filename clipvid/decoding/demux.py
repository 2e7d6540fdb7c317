"""Stream, packets and frame times of a video file, read without decoding.

`scan` walks the packets and decides whether time stamps distinguish frames (a `FrameTimes`) or frames must be counted
by decoding. The reader decodes through `opened`, `packets` and `decoded`.
"""

import contextlib
import errno
import functools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from clipvid import InputError
from clipvid.decoding.boxes import check_boxes
from clipvid.decoding.files import ALLOWED_FORMATS, NamelessFile, opened_binary
from clipvid.decoding.frame_times import FrameTimes, Keyframe, Packet, order_frames
from clipvid.decoding.limits import Clock, Limits

Opened: TypeAlias = tuple[InputContainer, VideoStream]

# Containers that store the time of every frame and an index of keyframes: seeking in them is exact.
INDEXED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# Containers with true frame time stamps, apart from the exceptions below. In others they may be estimated.
TIMED_FORMATS = (*INDEXED_FORMATS, "mpegts", "flv", "avi", "gif")
# An MPEG-4 packet of at most this size has no picture and repeats the previous one.
EMPTY_MPEG4_BYTES = 16

# No protocols: the file is already open, and it must not open others.
_CLOSED = {"format_whitelist": ALLOWED_FORMATS, "protocol_whitelist": ""}
# Text that is not UTF-8 is ignored. PyAV 19 has no such option: it ignores it itself.
METADATA_OPTIONS: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
# PyAV raises IndexError if a damaged file adds a stream during demuxing.
_DEMUX_ERRORS = (av.FFmpegError, IndexError)


@dataclass(frozen=True)
class Scan:
    """Results of the walk.

    Attributes:
        width: Width of a frame with square pixels, before rotation. 0 if unknown.
        height: Height of a frame with square pixels, before rotation. 0 if unknown.
        fps: Frames per second, or None if unknown.
        checked: True if the headers of all packets were parsed.
        frame_times: Times of the frames, or None if frames must be counted by decoding.
    """

    format: str
    stream_index: int
    num_streams: int
    bits: int
    width: int
    height: int
    fps: float | None
    checked: bool
    frame_times: FrameTimes | None


@contextlib.contextmanager
def opened(source: str | bytes) -> Iterator[Opened]:
    """Open a container (path or bytes) and its main video stream, with decoding in one thread.

    Only regular files in an allowed container format are opened, and none of the files that they reference.

    Raises:
        InputError: The file is not a video, has no video stream, or exceeds the limits.
        av.FFmpegError: FFmpeg cannot open it.
    """
    limits = Limits.current()
    with opened_binary(source) as file:
        check_boxes(file, limits)
        file.seek(0)
        with _container(NamelessFile(file.read, file.seek, file.tell)) as container:
            stream = _main_stream(container)
            limits.check_size(stream.codec_context.width, stream.codec_context.height)
            stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
            stream.codec_context.thread_count = 1
            yield container, stream


def _container(file: NamelessFile) -> InputContainer:
    try:
        return av.open(file, "r", container_options=_CLOSED, **METADATA_OPTIONS)
    except av.FFmpegError as error:
        if error.errno == errno.EINVAL:  # FFmpeg's error for a format that is not allowed
            raise InputError("its container format is not supported for videos") from None
        raise


def _main_stream(container: InputContainer) -> VideoStream:
    streams = _video_streams(container)
    if not streams:
        raise InputError("it has no video stream")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    # PyAV annotates it as never None, but a codec without a decoder has none.
    context: VideoCodecContext | None = stream.codec_context
    if context is None:
        raise InputError("FFmpeg has no decoder for its video codec")
    return stream


def packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet | None]:
    """Yield the packets of the stream in decode order from the container's position, and None as final flush.

    Raises:
        InputError: Reading takes more time than the limits allow.
    """
    clock = Clock(Limits.current().max_seconds)
    # A truncated file ends in an error. Earlier packets are kept.
    with contextlib.suppress(*_DEMUX_ERRORS):
        for packet in container.demux(stream):
            if packet.size:
                clock.check()
                yield packet
    yield None


def skipped_to(keyframe: Keyframe, stream_packets: Iterable[av.Packet | None]) -> Iterator[av.Packet | None]:
    """Yield packets from `keyframe` on, or nothing if they begin after it."""
    remaining = iter(stream_packets)
    for packet in remaining:
        if packet is None or (packet.is_keyframe and (packet.pts is None or packet.pts > keyframe.pts)):
            return
        if packet.is_keyframe and packet.pts == keyframe.pts:
            yield packet
            yield from remaining


def decoded(stream: VideoStream, stream_packets: Iterable[av.Packet | None]) -> Iterator[av.VideoFrame]:
    """Yield frames in presentation order. Packets that cannot be decoded are skipped."""
    for packet in stream_packets:
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            continue
        yield from frames


def scan(source: str | bytes) -> Scan:
    """Scan the packets of a file. The scans of the last 8,192 files (a few KiB each) are cached. Errors as `opened`."""
    if isinstance(source, bytes):
        return walk(source)
    stat = os.stat(source)
    return scan_unchanged(source, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(8192)
def scan_unchanged(path: str, size: int, changed: int) -> Scan:
    """Return `walk` of a file, cached until the file changes."""
    return walk(path)


def walk(source: str | bytes) -> Scan:
    """Walk the packets of a file. Errors as `opened`."""
    with opened(source) as (container, stream):
        context = stream.codec_context
        width, height = _shown_size(stream)
        Limits.current().check_size(width, height)
        parser = _header_parser(stream)
        packets, intact = _walk(container, stream, parser)
        if not packets:
            raise InputError("its video stream is empty")
        reorders_unsaid = container.format.name == "avi" and context.has_b_frames
        countable = context.name != "mpeg4" or min(packet.size for packet in packets) > EMPTY_MPEG4_BYTES
        trusted = intact and countable and not reorders_unsaid and container.format.name in TIMED_FORMATS
        rate = stream.average_rate or stream.guessed_rate
        return Scan(
            format=container.format.name,
            stream_index=stream.index,
            num_streams=len(container.streams.video),
            bits=max((part.bits for part in context.format.components), default=8) if context.format else 8,
            width=width,
            height=height,
            fps=float(rate) if rate else None,
            checked=parser is not None,
            frame_times=order_frames(packets, float(stream.time_base or 0)) if trusted and context.format else None,
        )


def _shown_size(stream: VideoStream) -> tuple[int, int]:
    """Return width and height of frames with square pixels. As in players, only the width changes."""
    context, aspect = stream.codec_context, stream.sample_aspect_ratio
    if not aspect or aspect < 0 or not context.width:
        return context.width, context.height
    return max(round(context.width * aspect), 1), context.height


def _video_streams(container: InputContainer) -> list[VideoStream]:
    """Return video streams, without the cover pictures of audio files."""
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def _header_parser(stream: VideoStream) -> BitStreamFilterContext | None:
    """Return FFmpeg's `<codec>_metadata` filter, which parses every packet header, or None if the codec has none.

    Decoders silently drop packets that it refuses, which shifts all later frames by one. It costs a few microseconds
    per packet.
    """
    with contextlib.suppress(av.FFmpegError):
        return BitStreamFilterContext(f"{stream.codec_context.codec.canonical_name}_metadata", stream)
    return None


def _walk(
    container: InputContainer, stream: VideoStream, parser: BitStreamFilterContext | None
) -> tuple[list[Packet], bool]:
    """Return packets in decode order, and True if no damage is visible without decoding."""
    packets: list[Packet] = []
    intact, context = True, stream.codec_context
    limits = Limits.current()
    clock = Clock(limits.max_seconds)
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            clock.check()
            limits.check_frames(len(packets) + 1)
            resets = packet.is_keyframe and (context.name != "h264" or _has_idr_slice(packet, context.extradata))
            hidden = context.name == "vp8" and not bytes(packet)[0] & 0x10  # decoded but never shown
            flags = (packet.is_keyframe, packet.is_discard or hidden, resets)
            packets.append(Packet(packet.pts, packet.dts, packet.size, *flags))
            intact = intact and not packet.is_corrupt
            if parser is not None and intact:
                parser.filter(packet)
    except _DEMUX_ERRORS:
        intact = False
    return packets, intact


def _has_idr_slice(packet: av.Packet, extradata: bytes | None) -> bool:
    """Return True if an H.264 keyframe resets the decoder.

    Other keyframes are open: later frames depend on frames before them. With gradual refresh, the keyframe does too.
    """
    data = bytes(packet)
    if not extradata or extradata[0] != 1:
        return any(unit[0] & 31 == 5 for unit in data.split(b"\0\0\1")[1:] if unit)
    start, width = 0, (extradata[4] & 3) + 1 if len(extradata) > 4 else 4
    while start + width < len(data):
        if data[start + width] & 31 == 5:
            return True
        start += width + int.from_bytes(data[start : start + width], "big")
    return False
