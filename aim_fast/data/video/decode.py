"""Decoding with PyAV: the frames that a plan asks for, and nothing else.

Frames are numbered as they are shown (see ``aim_fast.data.video.stream``). A clip needs few of them, so where the time
of a packet tells which frame comes of it, the file is demuxed once and only the stretches from a key frame to the last
wanted frame behind it are decoded. The probe finds out whether it does; other files are decoded from their start.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from aim_fast.data.video.frame_folder import decode_pictures
from aim_fast.data.video.picture import UPRIGHT, Converter, display_size, pixel_aspect, rotation
from aim_fast.data.video.source import file_state
from aim_fast.data.video.stream import Clock, decoded, opened, tick_rate
from aim_fast.errors import DataError

__all__ = ["ORDERED_BY_TIME", "ShownFrame", "decode_frames", "each_frame", "reason", "shown_frames", "stream_frames"]

# Others have no times of packets that could be relied on, or none at all.
ORDERED_BY_TIME = ("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2")
_HELD_IN_MEMORY = 256 * 2**20  # bytes of packets kept; a longer file is decoded from its start instead
_PICTURES_AT_ONCE = 16
_FAILURES = (av.FFmpegError, OSError, IndexError, ValueError)


class ShownFrame(NamedTuple):
    """A frame of a video that is read from its start.

    Attributes:
        time: seconds, as a player counts them.
        rate: ticks a second of the clock that the frames come by.
        size: (height, width) on a screen of square pixels.
        pixels: uint8 [H, W, 3] RGB.
    """

    time: float
    rate: float
    size: tuple[int, int]
    pixels: np.ndarray


def decode_frames(
    path: str, frames: Sequence[int] | np.ndarray, *, rotate: bool = False, threads: int = 1, seek: bool = True
) -> np.ndarray:
    """uint8 [len(frames), H, W, 3] RGB: the numbered frames of a video. Arguments and errors as of ``each_frame``."""
    out: np.ndarray | None = None
    for place, pixels in each_frame(path, frames, rotate=rotate, threads=threads, seek=seek):
        if out is None:
            out = np.empty((len(frames), *pixels.shape), np.uint8)
        out[place] = pixels
    assert out is not None
    return out


def each_frame(
    path: str, frames: Sequence[int] | np.ndarray, *, rotate: bool = False, threads: int = 1, seek: bool = True
) -> Iterator[tuple[int, np.ndarray]]:
    """(place in ``frames``, uint8 [H, W, 3] RGB, valid until the next is asked for) of each, as they are decoded.

    Args:
        path: any file that FFmpeg reads, a member of a tar shard, or a folder of numbered pictures.
        frames: ascending, without repeats (gather them afterwards: repeats cost nothing then).
        rotate: turn and mirror the frames as the file's display matrix asks.
        threads: decoding threads within this file; leave at 1 where several files are decoded at once.
        seek: decode only what is needed, as the index says is right for the file.

    Raises:
        DataError: the file cannot be opened or decoded, or has no such frame.
    """
    places = {int(frame): place for place, frame in enumerate(frames)}
    if os.path.isdir(path):
        numbers = list(places)
        for start in range(0, len(numbers), _PICTURES_AT_ONCE):
            pictures = decode_pictures(path, numbers[start : start + _PICTURES_AT_ONCE], threads=threads)
            yield from enumerate(pictures, start)
        return
    missing = dict(places)
    try:
        if seek and file_state(path)[0] <= _HELD_IN_MEMORY:
            with opened(path, threads) as (container, stream):
                if container.format.name in ORDERED_BY_TIME:
                    converter = Converter(stream, rotate)
                    for number, frame in _by_key_frames(container, stream, list(places)):
                        if number in missing:
                            yield missing.pop(number), converter.rgb(frame)
        if missing:
            with opened(path, threads) as (container, stream):
                converter = Converter(stream, rotate)
                for number, frame in enumerate(decoded(container, stream)):
                    if number in missing:
                        yield missing.pop(number), converter.rgb(frame)
                    if not missing:
                        break
    except _FAILURES as error:
        raise DataError(f"{path} cannot be decoded: {reason(error)}") from None
    if missing:
        raise DataError(f"{path} has no frame {max(missing)}; index the data set again")


def stream_frames(path: str, *, threads: int = 1) -> Iterator[ShownFrame]:
    """Every shown frame from the first to the last, turned as the file's display matrix asks, its pixels valid until
    the next is asked for. Raises DataError where the file cannot be opened or decoded any further."""
    try:
        with opened(path, threads) as (container, stream):
            clock = Clock(container, stream)
            yield from shown_frames(stream, clock, decoded(container, stream, clock.packet))
    except _FAILURES as error:
        raise DataError(f"{path} cannot be decoded: {reason(error)}") from None


def shown_frames(stream: VideoStream, clock: Clock, frames: Iterable[av.VideoFrame]) -> Iterator[ShownFrame]:
    """Decoded frames of a stream as they are shown, timed by a clock that was told of their packets."""
    converter, rate, aspect = Converter(stream, rotate=True), float(tick_rate(stream)), pixel_aspect(stream)
    for frame in frames:
        pixels = converter.rgb(frame)
        width, height = converter.size
        size = display_size(height, width, aspect, rotation(converter.matrix or UPRIGHT))
        yield ShownFrame(float(clock.tick(frame) * clock.base), rate, size, pixels)


def reason(error: Exception) -> str:
    """What an exception of PyAV says, in a few words."""
    if isinstance(error, IndexError):
        return f"it has {error}"
    return str(getattr(error, "strerror", None) or error)


def _by_key_frames(
    container: InputContainer, stream: VideoStream, wanted: list[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(number, frame) from the needed stretches alone; not all of them where times cannot tell the frames apart."""
    packets = [packet for packet in container.demux(stream) if packet.size]
    shown = [packet for packet in packets if not packet.is_discard]
    times = sorted(packet.pts for packet in shown if packet.pts is not None)
    if len(set(times)) != len(shown) or wanted[-1] >= len(shown) or not packets[0].is_keyframe:
        return
    position = {packet.pts: i for i, packet in enumerate(packets) if not packet.is_discard}
    keys = [(i, packet.pts) for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts is not None]
    numbers = {times[number]: number for number in wanted}
    try:
        for start, stop in _stretches([times[number] for number in wanted], position, keys):
            for frame in _run(stream.codec_context, packets[start : stop + 1]):
                if frame.pts in numbers:
                    yield numbers[frame.pts], frame
            stream.codec_context.flush_buffers()
    except av.FFmpegError:  # whether the file is damaged, decoding from its start says
        return


def _stretches(times: list[int], position: dict[int | None, int], keys: list[tuple[int, int]]) -> list[list[int]]:
    """[first packet, last packet] runs in decoding order. A wanted frame starts at the last key frame that is neither
    decoded nor shown after it: frames shown before a key frame but decoded behind it may refer to what came before."""
    stretches: list[list[int]] = []
    for time in times:
        stop = position[time]
        start = max((i for i, key_time in keys if i <= stop and key_time <= time), default=0)
        if stretches and start <= stretches[-1][1] + 1:
            stretches[-1][1] = max(stretches[-1][1], stop)
        else:
            stretches.append([start, stop])
    return stretches


def _run(context: av.VideoCodecContext, packets: Sequence[av.Packet]) -> Iterator[av.VideoFrame]:
    for packet in packets:
        yield from context.decode(packet)
    yield from context.decode(None)
