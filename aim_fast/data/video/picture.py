"""From a decoded frame to the RGB picture that a player shows.

Colours are converted by the frame's tags, BT.709 and BT.2020 among them; without a tag by BT.601, as published data
sets were decoded. Range is by its tag too. Frames are turned and mirrored by their display matrix (ISO/IEC 14496-12,
6.2.2).
The filter is DALI's CPU decoder's (bilinear, full chroma, accurate rounding), which makes the two interchangeable bit
for bit where there are no tags.
"""

from __future__ import annotations

import struct
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

__all__ = [
    "CONVERSION",
    "UPRIGHT",
    "Converter",
    "Matrix",
    "colorspace",
    "display_matrix",
    "display_size",
    "mirrored",
    "pixel_aspect",
    "rotation",
    "turned",
]

Matrix = tuple[int, int, int, int]  # signs of a, b, c, d: (x, y) is shown at (ax + cy, bx + dy)

UPRIGHT: Matrix = (1, 0, 0, 1)
CONVERSION = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
# matrix coefficients (ITU-T H.273) -> swscale's; all others are BT.601's
_COLORSPACES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}


def colorspace(frame: av.VideoFrame) -> Colorspace:
    """The matrix that a frame's tag names, BT.601 without one."""
    return _COLORSPACES.get(frame.colorspace, Colorspace.ITU601)


def display_matrix(frame: av.VideoFrame) -> Matrix:
    """How the frame is turned and mirrored to be shown, to the nearest quarter turn. Ask for it once a file: a frame
    whose side data were looked at is freed no sooner than Python collects its cycles."""
    known: Any = frame.side_data  # typed as no more than motion vectors
    try:
        data = known["DISPLAYMATRIX"]
    except KeyError:
        return UPRIGHT
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def pixel_aspect(stream: VideoStream) -> float:
    """How wide a pixel is, its height being 1."""
    return float(stream.sample_aspect_ratio or 1)


def rotation(matrix: Matrix) -> int:
    """Degrees counter-clockwise of the matrix without its mirroring."""
    a, b, *_ = matrix
    return -90 * b if b else 180 * (a < 0)


def mirrored(matrix: Matrix) -> bool:
    """Whether the picture is another than by turning."""
    a, b, c, d = matrix
    return a * d - b * c < 0


def display_size(height: int, width: int, aspect: float, rotation: int) -> tuple[int, int]:
    """(height, width) on a screen of square pixels, of a coded picture with pixels ``aspect`` as wide as high."""
    shown = (height, max(round(width * aspect), 1))
    return shown[::-1] if rotation % 180 else shown


def turned(pixels: np.ndarray, matrix: Matrix) -> np.ndarray:
    """A view of [H, W, ...] as it is shown."""
    a, b, c, d = matrix
    if b:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if (b or d) < 0 else 1, :: -1 if (c or a) < 0 else 1]


class Converter:
    """Frames of a stream to RGB, all at the size that the stream begins with and, with ``rotate``, turned as the first
    asks."""

    def __init__(self, stream: VideoStream, rotate: bool) -> None:
        self.matrix = None if rotate else UPRIGHT
        self.converter = VideoReformatter()
        self.size = (stream.codec_context.width, stream.codec_context.height)

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3]; a view of memory that the next call may overwrite."""
        width, height = self.size = self.size if all(self.size) else (frame.width, frame.height)
        rgb = self.converter.reformat(
            frame, width, height, "rgb24", src_colorspace=colorspace(frame), interpolation=CONVERSION, threads=1
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        pixels = rows[:, : 3 * width].reshape(height, width, 3)
        if self.matrix is None:
            self.matrix = display_matrix(frame)
        return turned(pixels, self.matrix)
