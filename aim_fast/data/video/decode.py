"""Decoding with PyAV: the frames that a plan asks for, and nothing else.

Frames are numbered as they are shown: packets with size > 0, not discarded by an edit list, pts ≥ 0, in order of pts.
A clip needs few of them, so the file is demuxed once and only the stretches from a key frame to the last wanted frame
behind it are decoded. Pixels are converted exactly as DALI's CPU decoder does (BT.601, bilinear, full chroma, accurate
rounding), which makes the two decoders interchangeable bit for bit.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from aim_fast.data.video.frame_folder import decode_pictures
from aim_fast.data.video.source import file_state, video_source
from aim_fast.errors import DataError

__all__ = ["decode_frames", "reason", "shown", "stream_frames"]

_CONVERSION = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
# An AVI has no timestamps of its own: with B-frames the ones made up for it are not in the order of showing.
_ORDERED_BY_TIME = ("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2")
_HELD_IN_MEMORY = 256 * 2**20  # bytes of packets kept; a longer file is decoded from its start instead


def decode_frames(
    path: str, frames: Sequence[int] | np.ndarray, *, rotate: bool = False, threads: int = 1
) -> np.ndarray:
    """uint8 [len(frames), H, W, 3] RGB: the numbered frames of a video.

    Args:
        path: any file that FFmpeg reads, a member of a tar shard, or a folder of numbered pictures.
        frames: ascending, without repeats (gather them afterwards: repeats cost nothing then).
        rotate: turn the frames as the file's rotation metadata asks.
        threads: decoding threads within this file; leave at 1 where several files are decoded at once.

    Raises:
        DataError: the file cannot be opened or decoded, or has no such frame.
    """
    wanted = [int(frame) for frame in frames]
    try:
        out = None
        if os.path.isdir(path):
            return decode_pictures(path, wanted, threads=threads)
        if file_state(path)[0] <= _HELD_IN_MEMORY:
            with _opened(path, threads) as container:
                if container.format.name in _ORDERED_BY_TIME:
                    out = _by_key_frames(container, wanted, rotate)
        if out is None:
            with _opened(path, threads) as container:
                out = _from_start(container, wanted, rotate)
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise DataError(f"{path} cannot be decoded: {reason(error)}") from None
    if out is None:
        raise DataError(f"{path} has no frame {wanted[-1]}; index the data set again")
    return out


def stream_frames(path: str, *, threads: int = 1) -> Iterator[tuple[float | None, float, np.ndarray]]:
    """Every shown frame from the first to the last: (time in seconds or None, frames a second, uint8 [H, W, 3] RGB).

    Frames are turned as the file's rotation metadata asks, and valid until the next is asked for. Raises DataError
    where the file cannot be opened or decoded any further.
    """
    converter = _Converter(rotate=True)
    try:
        with _opened(path, threads) as container:
            rate = container.streams.video[0].average_rate or container.streams.video[0].guessed_rate or 25
            for frame in container.decode(video=0):
                if shown(frame):
                    yield frame.time, float(rate), converter.rgb(frame)
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        raise DataError(f"{path} cannot be decoded: {reason(error)}") from None


def shown(item: av.Packet | av.VideoFrame) -> bool:
    """Whether a packet or frame counts: discarded ones and those before time 0 are not shown."""
    return not getattr(item, "is_discard", False) and (item.pts is None or item.pts >= 0)


def reason(error: Exception) -> str:
    """What an exception of PyAV says, in a few words."""
    if isinstance(error, IndexError):
        return "it has no video stream"
    return str(getattr(error, "strerror", None) or error)


@contextlib.contextmanager
def _opened(path: str, threads: int) -> Iterator[av.container.InputContainer]:
    with av.open(video_source(path), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = threads
        stream.thread_type = "NONE" if threads == 1 else "AUTO"
        yield container


def _by_key_frames(container: av.container.InputContainer, wanted: list[int], rotate: bool) -> np.ndarray | None:
    """Decode only the needed stretches; None where timestamps cannot tell the frames apart."""
    stream = container.streams.video[0]
    packets = [packet for packet in container.demux(stream) if packet.size]
    times = sorted(packet.pts for packet in packets if packet.pts is not None and shown(packet))
    counted = sum(map(shown, packets))
    if counted != len(times) or len(set(times)) != counted or wanted[-1] >= counted:
        return None
    position = {packet.pts: i for i, packet in enumerate(packets) if shown(packet) and packet.pts is not None}
    keys = [(i, packet.pts) for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts is not None]
    places = {times[frame]: i for i, frame in enumerate(wanted)}
    sink = _Sink(len(wanted), rotate)
    for start, stop in _stretches([times[frame] for frame in wanted], position, keys):
        for frame in _decoded(stream.codec_context, packets[start : stop + 1]):
            if frame.pts in places:
                sink.put(places[frame.pts], frame)
        stream.codec_context.flush_buffers()
    return sink.out if sink.full else None


def _stretches(times: list[int], position: dict[int, int], keys: list[tuple[int, int]]) -> list[list[int]]:
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


def _decoded(context: av.VideoCodecContext, packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
    for packet in packets:
        yield from context.decode(packet)
    yield from context.decode(None)


def _from_start(container: av.container.InputContainer, wanted: list[int], rotate: bool) -> np.ndarray | None:
    sink = _Sink(len(wanted), rotate)
    places = {frame: i for i, frame in enumerate(wanted)}
    number = 0
    for frame in container.decode(video=0):
        if not shown(frame):
            continue
        if number in places:
            sink.put(places[number], frame)
            if sink.full:
                return sink.out
        number += 1
    return None


class _Converter:
    """Frames to RGB, all at the size of the first."""

    def __init__(self, rotate: bool) -> None:
        self.rotate = rotate
        self.converter = VideoReformatter()
        self.size: tuple[int, int] | None = None

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3]; a view of memory that the next call may overwrite."""
        width, height = self.size = self.size or (frame.width, frame.height)
        rgb = self.converter.reformat(
            frame, width, height, "rgb24", src_colorspace=Colorspace.ITU601, interpolation=_CONVERSION, threads=1
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        pixels = rows[:, : 3 * width].reshape(height, width, 3)
        return np.rot90(pixels, round(frame.rotation / 90)) if self.rotate and frame.rotation else pixels


class _Sink:
    """Collects converted frames in one array."""

    def __init__(self, count: int, rotate: bool) -> None:
        self.missing = set(range(count))
        self.count = count
        self.out: np.ndarray | None = None
        self.converter = _Converter(rotate)

    @property
    def full(self) -> bool:
        return not self.missing

    def put(self, place: int, frame: av.VideoFrame) -> None:
        pixels = self.converter.rgb(frame)
        if self.out is None:
            self.out = np.empty((self.count, *pixels.shape), np.uint8)
        self.out[place] = pixels
        self.missing.discard(place)
