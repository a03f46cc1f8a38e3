"""Encoding one video anew for training: short side, key frames, pixel format and timestamps as decoders like them.

Every frame that is shown in the source becomes one frame of the target, upright and of square pixels, at its time
counted from 0. Key frames come every ``gop`` frames and nowhere else, no frame refers to a later one, so frames are
decoded in the order of showing. H.264 goes without CABAC and deblocking: a sixth more bytes for half the time to
decode. The YUV values of BT.601 pass unchanged but for the scaling, those of other matrices become BT.601's: both files
decode to the same colours.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from aim_fast.data.video.decode import reason
from aim_fast.data.video.frame_folder import decode_pictures, picture_names
from aim_fast.data.video.picture import (
    UPRIGHT,
    Matrix,
    colorspace,
    display_matrix,
    display_size,
    pixel_aspect,
    rotation,
    turned,
)
from aim_fast.data.video.probe import Probe, probe
from aim_fast.data.video.stream import Clock, decoded, frame_rate, opened
from aim_fast.errors import DataError
from aim_fast.files import replacing

__all__ = ["CODECS", "DISK_FULL", "Encoding", "encode_file", "encoder_available", "serve"]

DISK_FULL = "disk full"
_PICTURE_RATE = 12  # of Something-Something v1 and Jester, frames a second


@dataclass(frozen=True, slots=True)
class _Codec:
    encoder: str
    container: str
    quality: int
    options: dict[str, str]


CODECS = {
    "h264": _Codec(
        "libx264",
        "mp4",
        23,
        {"preset": "fast", "tune": "fastdecode", "bf": "0", "sc_threshold": "0", "x264-params": "open-gop=0"},
    ),
    "vp9": _Codec(
        "libvpx-vp9",
        "webm",
        31,
        {"b": "0", "deadline": "good", "cpu-used": "4", "lag-in-frames": "0", "auto-alt-ref": "0"},
    ),
}


@dataclass(frozen=True, slots=True)
class Encoding:
    """How files are encoded.

    Attributes:
        short_side: pixels; smaller videos keep their size, but for odd sides, which lose a pixel.
        gop: frames from one key frame to the next.
        codec: "h264" (mp4) or "vp9" (webm).
        quality: the encoder's CRF, lower is better and larger.
    """

    short_side: int = 256
    gop: int = 12
    codec: str = "h264"
    quality: int = 23

    @property
    def extension(self) -> str:
        return f".{CODECS[self.codec].container}"

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the target, both even, for a source of this size."""
        factor = min(1.0, self.short_side / min(height, width))
        return tuple(max(2, int(side * factor / 2 + (0.5 if factor < 1 else 0)) * 2) for side in (height, width))  # type: ignore[return-value]


def encoder_available(codec: str) -> bool:
    """Whether this FFmpeg has the encoder."""
    try:
        av.codec.Codec(CODECS[codec].encoder, "w")
    except ValueError:
        return False
    return True


def encode_file(source: str, target: str, encoding: Encoding, frames: int) -> Probe:
    """Encode ``source`` into ``target``, which appears only when it is whole, decodes, and has ``frames`` frames.

    Returns:
        What a full decode of the target found.

    Raises:
        DataError: the source does not decode, or the target came out with other frames. OSError: it cannot be written.
    """
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with replacing(Path(target)) as temporary:
        _encode(source, str(temporary), encoding)
        found = probe(str(temporary))
        if found.error is not None or found.frames != frames:
            what = found.error or f"has {found.frames} frames instead of {frames}"
            raise DataError(f"{source} is not encoded right: the new file {what}")
    return found


def serve() -> None:
    """Answer jobs on standard input and output until the input ends: a probe, or what went wrong."""
    av.logging.set_level(av.logging.PANIC)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            found = encode_file(job["source"], job["target"], Encoding(**job["encoding"]), job["frames"])
            answer: dict[str, Any] = {"probe": asdict(found)}
        except DataError as error:
            answer = {"error": str(error)}
        except (av.FFmpegError, OSError, ValueError) as error:
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            answer = {"error": DISK_FULL if full else f"{job['source']} cannot be encoded: {reason(error)}"}
        print(json.dumps(answer), flush=True)


def _encode(source: str, target: str, encoding: Encoding) -> None:
    codec = CODECS[encoding.codec]
    options = dict(codec.options)
    options.update(crf=str(encoding.quality), g=str(encoding.gop), keyint_min=str(encoding.gop))
    flags: dict[str, str] = {"movflags": "faststart"} if codec.container == "mp4" else {}
    converter = VideoReformatter()
    stream: Any = None  # a video stream, once the size is known
    with av.open(target, "w", format=codec.container, options=flags) as output:
        for frame, matrix, aspect, rate in _frames(source):
            if stream is None:
                across = rotation(matrix) % 180
                height, width = encoding.size(*display_size(frame.height, frame.width, aspect, across))
                coded = (width, height) if across else (height, width)
                stream = output.add_stream(codec.encoder, rate=rate, options=options)
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.codec_context.time_base = frame.time_base
                stream.codec_context.thread_count = 1  # a file a process
            pts, time_base = frame.pts, frame.time_base or 1 / rate
            frame = converter.reformat(
                frame,
                coded[1],
                coded[0],
                "yuv420p",
                src_colorspace=colorspace(frame),
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
                threads=1,
            )
            frame = _turned(frame, matrix) if matrix != UPRIGHT else frame
            frame.pts, frame.time_base, frame.pict_type = pts, time_base, PictureType.NONE
            output.mux(stream.encode(frame))
        if stream is None:
            raise DataError(f"{source} has no frame that decodes")
        output.mux(stream.encode(None))


def _frames(source: str) -> Iterator[tuple[av.VideoFrame, Matrix, float, Fraction]]:
    """(frame with its time from 0 on, matrix that makes it upright, width of its pixels, frames a second)."""
    if os.path.isdir(source):
        rate = Fraction(_PICTURE_RATE)
        for number in range(len(picture_names(source))):
            frame = av.VideoFrame.from_ndarray(decode_pictures(source, [number])[0], format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            yield frame, UPRIGHT, 1.0, rate
        return
    with opened(source) as (container, stream):
        clock, aspect, rate = Clock(container, stream), pixel_aspect(stream), frame_rate(stream)
        first = matrix = None
        for frame in decoded(container, stream, clock.packet):
            now = clock.tick(frame)
            first = now if first is None else first
            matrix = matrix or display_matrix(frame)
            frame.pts, frame.time_base = now - first, clock.base
            yield frame, matrix, aspect, rate


def _turned(frame: av.VideoFrame, matrix: Matrix) -> av.VideoFrame:
    """A yuv420p frame as its matrix shows it."""
    planes = frame.to_ndarray()  # [3/2 H, W]: Y, then U and V of half the sides
    height, width = frame.height, frame.width
    y = turned(planes[:height], matrix)
    quarter = height * width // 4
    chroma = planes[height:].reshape(-1)
    u, v = (
        turned(part.reshape(height // 2, width // 2), matrix).reshape(-1)
        for part in (chroma[:quarter], chroma[quarter:])
    )
    rows = np.concatenate([np.ascontiguousarray(y).reshape(-1), u, v]).reshape(-1, y.shape[1])
    return av.VideoFrame.from_ndarray(rows, format="yuv420p")
