"""What one video file holds, found by decoding it from the first to the last frame.

A file is healthy when it ends where its header says, nothing behind its first key frame is lost or fails to decode, and
there is more than one frame. Run as ``python -c "from aim_fast.data.video.probe import serve; serve()"`` it is the
scan's worker: a path as JSON a line in, a probe as JSON a line out, so that a file that hangs or crashes a decoder
takes only this process with it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from dataclasses import asdict, dataclass

import av
from av.video.reformatter import Colorspace

from aim_fast.data.video.damage import Damage
from aim_fast.data.video.decode import ORDERED_BY_TIME, reason
from aim_fast.data.video.frame_folder import CODEC, numbering_gap, picture_names, picture_size
from aim_fast.data.video.picture import colorspace, display_matrix, mirrored, pixel_aspect, rotation
from aim_fast.data.video.source import file_state, open_source, tar_member
from aim_fast.data.video.stream import NoDecoder, decoded, opened, several_videos
from aim_fast.data.video.truncation import missing_bytes

__all__ = ["MISSING", "ONE_FRAME", "Probe", "file_state", "probe", "serve"]

MISSING = "missing"
_SEARCHED = 64 * 2**20  # bytes of a file that are searched for its codec's name
_AUDIO_TAGS = ("mp4a", "alac", "Opus", "sowt", "twos")

ONE_FRAME = "has only one frame, no video"
_TRUNCATED = "is truncated"
_MATRICES = {
    Colorspace.ITU709: "BT.709",
    Colorspace.BT2020: "BT.2020",
    Colorspace.FCC: "FCC",
    Colorspace.SMPTE240M: "SMPTE 240M",
}


@dataclass(slots=True)
class Probe:
    """Facts about one file; ``error`` says in a few words why it cannot be used, None for a healthy file.

    Attributes:
        height, width: as coded.
        rotation: that the metadata asks for, degrees counter-clockwise.
        aspect: how wide a pixel is, its height being 1.
        seekable: whether the times of packets tell which frames come of them, so that any may be decoded by itself.
        special: what a decoder that knows ordinary files alone would get wrong, in a few words; empty for those.
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
    aspect: float = 1.0
    seekable: bool = True
    special: str = ""


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
            lost = missing_bytes(path)
            _decode_all(path, found)
        except IndexError as error:
            found.error = f"has {error}"
        except NoDecoder:
            found.error = (
                f"has codec {_codec_tag(path)}, which no decoder here reads; convert it with a program that does: "
                f"ffmpeg -i {shlex.quote(path)} -c:v libx264 -g 12 -pix_fmt yuv420p OUTPUT.mp4"
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            found.error = f"cannot be decoded ({reason(error)})"
        if lost and not (found.error or "").startswith(_TRUNCATED):
            found.error = f"{_TRUNCATED}: {lost} bytes are missing at its end"
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
    with opened(path) as (container, stream):
        context = stream.codec_context
        found.codec, found.height, found.width = context.name, context.height, context.width
        found.pixel_format, found.aspect = context.pix_fmt or "", pixel_aspect(stream)
        damage = Damage(container, stream)
        special = {"one of several video streams"} if several_videos(container) else set()
        with damage.watched():
            try:
                for frame in decoded(container, stream, damage.packet):
                    if found.frames == 0:
                        if frame.pts is not None and frame.pts < 0:
                            special.add("times below 0")
                        matrix = display_matrix(frame)
                        found.rotation = rotation(matrix)
                        special |= {"mirrored"} if mirrored(matrix) else set()
                    if (frame.height, frame.width) != (found.height, found.width):
                        found.pixel_format = "varying"
                    if frame.interlaced_frame:
                        special.add("interlaced")
                    if (matrix_name := _MATRICES.get(colorspace(frame))) is not None:
                        special.add(matrix_name)
                    found.frames += 1
                    damage.frame(frame)
            except av.FFmpegError as error:
                found.error = f"cannot be decoded behind frame {found.frames} ({reason(error)})"
                return
        untimed = container.format.name not in ORDERED_BY_TIME and found.frames == len(damage.times)
        found.seekable = damage.in_step() or untimed
        special |= set() if found.seekable else {"frames apart from packets"}
        found.special = ", ".join(sorted(special))
        if found.frames == 0:
            found.error = "has no frame that decodes"
        elif (fault := damage.found()) is not None:
            found.error = fault
        elif found.frames == 1:
            found.error = ONE_FRAME
