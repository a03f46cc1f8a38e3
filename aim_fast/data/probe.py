"""What one video file holds, found by decoding it from the first to the last frame.

A file is healthy when it ends where its header says, every packet that is shown decodes, and there is more than one
frame. Run as ``python -c "from aim_fast.data.probe import serve; serve()"`` it is the scan's worker: a path as JSON a
line in, a probe as JSON a line out, so that a file that hangs or crashes a decoder takes only this process with it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass

import av

from aim_fast.data.decode import reason, shown
from aim_fast.data.truncation import missing_bytes

__all__ = ["MISSING", "ONE_FRAME", "Probe", "file_state", "probe", "serve"]

MISSING = "missing"
ONE_FRAME = "has only one frame, no video"


@dataclass(slots=True)
class Probe:
    """Facts about one file; ``error`` says in a few words why it cannot be used, None for a healthy file.

    ``height`` and ``width`` are the coded ones; ``rotation`` is what the metadata asks for, degrees counter-clockwise.
    """

    frames: int = 0
    height: int = 0
    width: int = 0
    codec: str = ""
    pixel_format: str = ""
    rotation: int = 0
    size: int = -1
    mtime_ns: int = 0
    error: str | None = None


def file_state(path: str) -> tuple[int, int]:
    """(bytes, modification time in ns), or (-1, 0) for a file that is not there."""
    try:
        state = os.stat(path)
    except OSError:
        return -1, 0
    return state.st_size, state.st_mtime_ns


def probe(path: str) -> Probe:
    """Decode the whole file and report; never raises for what is in it."""
    found = Probe()
    found.size, found.mtime_ns = file_state(path)
    if found.size < 0:
        found.error = MISSING
    elif not os.path.isfile(path):
        found.error = "is not a file"
    elif found.size == 0:
        found.error = "is empty (0 bytes)"
    else:
        try:
            _decode_all(path, found)
            lost = missing_bytes(path)
            if lost and found.error is None:
                found.error = f"is truncated: {lost} bytes are missing at its end"
        except (av.FFmpegError, OSError, ValueError) as error:
            found.error = f"cannot be decoded ({reason(error)})"
    return found


def serve() -> None:
    """Answer probes on standard input and output until the input ends."""
    av.logging.set_level(av.logging.PANIC)
    for line in sys.stdin:
        print(json.dumps(asdict(probe(json.loads(line)))), flush=True)


def _decode_all(path: str, found: Probe) -> None:
    with av.open(path) as container:
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no"
            found.error = f"has no video stream ({kinds} streams only)"
            return
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None:
            found.error = "has a codec that no decoder here reads"
            return
        stream.thread_type = "NONE"
        found.codec, found.height, found.width = context.name, context.height, context.width
        found.pixel_format = context.pix_fmt or ""
        announced = stream.frames if container.format.name == "avi" else 0
        packets = counted = 0
        try:
            for packet in container.demux(stream):
                packets += 1
                counted += bool(packet.size) and shown(packet)
                for frame in packet.decode():
                    if not shown(frame):
                        continue
                    if found.frames == 0:
                        found.rotation = frame.rotation
                    if (frame.height, frame.width) != (found.height, found.width):
                        found.pixel_format = "varying"
                    found.frames += 1
        except av.FFmpegError as error:
            found.error = f"cannot be decoded behind frame {found.frames} ({reason(error)})"
            return
        if found.frames == 0:
            found.error = "has no frame that decodes"
        elif found.frames < counted:
            found.error = f"decodes only {found.frames} of {counted} frames"
        elif packets - 1 < announced - max(2, announced // 50):  # the last packet only flushes the decoder
            found.error = f"is truncated: {packets - 1} of {announced} frames are there"
        elif found.frames == 1:
            found.error = ONE_FRAME
