"""The video stream of a file, and its frames: those that FFmpeg's command line shows, in its order.

A frame is what the decoder gives: it leaves out what an edit list discards, placeholders of packed bitstreams, and what
refers to frames before the file's beginning. A file with several video streams has its default one shown, of several of
these (or none) the largest, of equal ones the first; cover pictures are none. Metadata is not looked at.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from aim_fast.data.video.source import open_source, video_source

__all__ = ["Clock", "NoDecoder", "decoded", "frame_rate", "opened", "several_videos", "tick_rate", "video_stream"]

_TEXTS = ("ansi", "bintext", "xbin", "idf")  # drawn by FFmpeg, by a file's extension
_PLAYLISTS = ("hls", "concat", "dash", "sdp", "imf")
_PICTURES = ("image2", "ico", "fits")  # and all pipes
_HEAD = 65536  # bytes, in which a picture says that others follow
_DEFAULT = 5_000_000  # pixels that a default stream is worth more, as FFmpeg counts
_BACK = 0.5  # seconds that times go back where recordings were joined
# seconds that times leap ahead there, in containers whose times may, and in all others
_AHEAD, _FAR_AHEAD = 10.0, 6 * 3600.0
_LEAPING = ("mpegts", "mpeg", "rtsp", "video4linux2,v4l2", "avfoundation", "dshow")
_UNTIMED = ("avi", "h264", "hevc", "m4v", "mpegvideo")  # times are in the order of packets, or none
_TICKS = 120  # a second, at most
# metadata that is no UTF-8 never matters: PyAV 19 takes it as it is, those before have to be told
_ANY_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


class NoDecoder(ValueError):
    """The file's codec is known to no decoder here."""


@contextlib.contextmanager
def opened(path: str, threads: int = 1) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video stream, to decode with ``threads``.

    Raises:
        IndexError: there is none. NoDecoder: no decoder for it. av.FFmpegError, OSError: the file cannot be opened.
    """
    with av.open(video_source(path), "r", **_ANY_METADATA) as container:
        if (other := _no_video(container, path)) is not None:
            raise IndexError(other)
        stream = video_stream(container)
        if stream is None:
            kinds = {_kind(stream) for stream in container.streams}
            raise IndexError(f"no video stream ({', '.join(sorted(kinds)) or 'no'} streams only)")
        if stream.codec_context is None:
            raise NoDecoder("no decoder here reads its codec")
        stream.codec_context.thread_count = threads
        stream.thread_type = "NONE" if threads == 1 else "AUTO"
        yield container, stream


def _no_video(container: InputContainer, path: str) -> str | None:
    """What a file is that FFmpeg makes frames of and that is no video: pictures, or a text that names other files."""
    name = container.format.name
    if name in _PLAYLISTS:
        return f"no video but a text that names others ({name})"
    if name not in _PICTURES and not name.endswith(("_pipe", "mjpeg")):
        return None
    with open_source(path) as file:
        head = file.read(_HEAD)
    if name in ("jpeg_pipe", "mjpeg"):  # a film of JPEGs, unless the first says that it is a picture with others
        return None if head[:2] == b"\xff\xd8" and b"MPF\0" not in head else "no video but a file of pictures"
    if name == "webp_pipe" and head[12:16] == b"VP8X" and head[20] & 2:
        return "an animation in WebP, which FFmpeg does not read here; convert it to GIF or MP4"
    return f"no video but a picture ({name.removesuffix('_pipe')})"


def video_stream(container: InputContainer) -> VideoStream | None:
    """The stream that is shown."""

    def worth(stream: VideoStream) -> int:
        context = stream.codec_context
        area = context.width * context.height if context is not None else -1
        return area + _DEFAULT * bool(stream.disposition & Disposition.default)

    return max(_videos(container), key=worth, default=None)


def _videos(container: InputContainer) -> list[VideoStream]:
    return [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
        and (stream.codec_context is None or stream.codec_context.name not in _TEXTS)
    ]


def _kind(stream: Stream) -> str:
    if stream.type != "video":
        return stream.type
    return "picture" if stream.disposition & Disposition.attached_pic else "text"


def several_videos(container: InputContainer) -> bool:
    """Whether there is more than one video stream to choose from."""
    return len(_videos(container)) > 1


def frame_rate(stream: VideoStream) -> Fraction:
    """Frames a second, 25 where nothing says; some containers' average is nonsense, and far above what is guessed."""
    average, guessed = stream.average_rate, stream.guessed_rate
    return (guessed if average and guessed and average > 2 * guessed else average) or guessed or Fraction(25)


def tick_rate(stream: VideoStream) -> Fraction:
    """The rate of a clock that frames of uneven rate come by; of others their own."""
    average, guessed = frame_rate(stream), stream.guessed_rate
    return guessed if guessed and 1.05 * average < guessed <= _TICKS else average


def decoded(
    container: InputContainer,
    stream: VideoStream,
    seen: Callable[[av.Packet], None] = lambda packet: None,
) -> Iterator[av.VideoFrame]:
    """Every frame from the first to the last; ``seen`` is called with each packet before it is decoded.

    Packets before the first key frame, in the order of decoding or of showing, may fail: a recording or a cut begins
    where it happens to. So may those behind a place where times go back, where another recording was joined.

    Raises:
        av.FFmpegError: any other packet fails, or all do.
    """
    key: int | None = None  # time of the recording's first key frame
    before: int | None = None
    begun = given = False
    grace, failure = 0, None
    threads = stream.codec_context.thread_count
    for packet in container.demux(stream):
        seen(packet)
        if packet.dts is not None:
            if before is not None and (before - packet.dts) * packet.time_base > _BACK:
                begun, key = False, None
            before = packet.dts
        if packet.is_keyframe and not begun:
            begun, key = True, packet.pts
        early = not begun or (key is not None and packet.pts is not None and packet.pts < key)
        grace = threads if early else grace - 1  # threads report a failure that many packets late
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            if not early and (threads == 1 or grace < 0):
                raise
            failure = error
            continue
        given = given or bool(frames)
        yield from frames
    if failure is not None and not given:
        raise failure


class Clock:
    """Times of frames as a player counts them, in ticks of ``base`` seconds: from the container's start (a sound that
    begins before the video counts), on through joined recordings, never back, never twice the same."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        rate = frame_rate(stream)
        self.base = stream.time_base or 1 / rate
        self.step = max(1, round(1 / (rate * self.base)))
        self.untimed = container.format.name in _UNTIMED
        self.leap = (_AHEAD if container.format.name in _LEAPING else _FAR_AHEAD) / self.base
        self.offset = -round(Fraction(container.start_time or 0, av.time_base) / self.base)
        self.last: int | None = None
        self.waiting: deque[int] = deque()  # times of packets whose frames are to come, where frames have none

    def packet(self, packet: av.Packet) -> None:
        """Note a packet that is to be decoded."""
        if self.untimed and packet.size and packet.dts is not None:
            self.waiting.append(packet.dts)

    def tick(self, frame: av.VideoFrame) -> int:
        """The time of the next frame."""
        following = 0 if self.last is None else self.last + self.step
        now = following
        pts = frame.pts
        if self.untimed:
            pts = self.waiting.popleft() if self.waiting else None
        if pts is not None:
            now = pts + self.offset
            if self.last is None:
                now = max(now, 0)
            elif self.last - now > _BACK / self.base or now - self.last > self.leap:
                self.offset += following - now
                now = following
            else:
                now = max(now, self.last + 1)
        self.last = now
        return now
