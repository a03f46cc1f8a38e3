"""What one video file holds, found by decoding it from the first to the last frame.

A file is healthy when it ends where its header says, every packet that is shown decodes, and there is more than one
frame. Run as ``python -c "from aim_fast.data.video.probe import serve; serve()"`` it is the scan's worker: a path as
JSON a line in, a probe as JSON a line out, so that a file that hangs or crashes a decoder takes only this process
with it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from dataclasses import asdict, dataclass

import av

from aim_fast.data.video.decode import reason, shown
from aim_fast.data.video.frame_folder import CODEC, numbering_gap, picture_names, picture_size
from aim_fast.data.video.source import file_state, open_source, tar_member, video_source
from aim_fast.data.video.truncation import missing_bytes

__all__ = ["MISSING", "ONE_FRAME", "Probe", "file_state", "probe", "serve"]

MISSING = "missing"
_SEARCHED = 64 * 2**20  # bytes of a file that are searched for its codec's name
_AUDIO_TAGS = ("mp4a", "alac", "Opus", "sowt", "twos")

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


def probe(path: str) -> Probe:
    """Decode the whole file and report; never raises for what is in it."""
    found = Probe()
    found.size, found.mtime_ns = file_state(path)
    if found.size < 0:
        found.error = MISSING
    elif os.path.isdir(path):
        _decode_pictures(path, found)
    elif not os.path.isfile(path) and tar_member(path) is None:
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


def _decode_pictures(folder: str, found: Probe) -> None:
    names = picture_names(folder)
    found.codec, found.pixel_format = CODEC, "rgb24"
    if not names:
        found.error = "is a folder without pictures"
        return
    for name in names:
        try:
            size = picture_size(os.path.join(folder, name))
        except OSError as error:
            found.error = f"cannot be decoded ({error})"
            return
        if found.frames == 0:
            found.height, found.width = size
        elif size != (found.height, found.width):
            found.error = f"has pictures of different sizes ({name} is {size[1]}x{size[0]})"
            return
        found.frames += 1
    if gap := numbering_gap(names):
        found.error = f"lacks {gap}"
    elif found.frames == 1:
        found.error = ONE_FRAME


def _codec_tag(path: str) -> str:
    """How the container names its video's codec: FFmpeg says nothing about one that it does not know."""
    with open_source(path) as file:
        data = file.read(_SEARCHED)
    tags = re.findall(rb"stsd.{12}(\w{4})|(V_[A-Z0-9/]{2,20})|vids(\w{4})", data, re.DOTALL)
    names = [max(groups, key=len).decode() for groups in tags]
    return next((name for name in names if name not in _AUDIO_TAGS), "of no known name")


def _decode_all(path: str, found: Probe) -> None:
    with av.open(video_source(path), "r") as container:
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no"
            found.error = f"has no video stream ({kinds} streams only)"
            return
        stream = container.streams.video[0]
        context = stream.codec_context
        if context is None:
            found.error = (
                f"has codec {_codec_tag(path)}, which no decoder here reads; convert it with a program that does: "
                f"ffmpeg -i {shlex.quote(path)} -c:v libx264 -g 12 -pix_fmt yuv420p OUTPUT.mp4"
            )
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
