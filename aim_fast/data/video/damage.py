"""Signs, seen while a file is decoded from its start to its end, that frames of it are lost.

A decoder says itself what it cannot decode. What is lost before it, only the container knows: Matroska's reader skips
what it cannot read to the next cluster and writes a line about it; an AVI has an index of its frames; the packets of a
transport stream are counted, and in program and elementary streams, which have nothing of the kind, the picture at the
gap does not decode without an error. Where another recording was joined, and before the first key frame of each, things
are missing that never were there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import av
from av.container import InputContainer
from av.video.stream import VideoStream

__all__ = ["Damage"]

_TOLD_BY_PICTURES = ("mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v")
_LAST = 8  # frames that may be put in order at the end
_KEY_TYPES = (0, 1, 5, 7)  # pictures that need no other: of unknown type, I, SI, BI


class Damage:
    """What is wrong with one file. ``packet`` is called with every packet before it is decoded, ``frame`` with every
    frame, inside ``watched``; then ``found`` says."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream = container, stream
        self._written = len(stream.index_entries)  # all frames of an AVI with its index, else those that are read yet
        self.times: list[int | None] = []  # of packets that are shown
        self._keys: set[int | None] = set()
        self._false_key = False
        self._packets = self._frames = 0
        self._shown: list[int | None] = []
        # (packets, frames) before one that is marked as incomplete, which may be one too early, and how many are
        self._flagged: tuple[int, int, int] | None = None
        self._torn: int | None = None  # frames before the first gap
        self._before: int | None = None
        self._key: int | None = None
        self._openings: list[list[int]] = []  # from the first time of a recording to that of its first key frame
        self._wrong: list[tuple[int, int | None]] = []  # (frames before, time) of pictures with errors
        self._lines: Sequence[tuple[int, str, str]] = ()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """A block in which what the container's reader writes is heard."""
        if not self.container.format.name.startswith("matroska"):
            yield
            return
        level, repeats = av.logging.get_level(), av.logging.get_skip_repeated()
        av.logging.set_level(av.logging.ERROR)
        av.logging.set_skip_repeated(False)
        try:
            with av.logging.Capture() as self._lines:
                yield
        finally:
            av.logging.set_level(level)
            av.logging.set_skip_repeated(repeats)

    def packet(self, packet: av.Packet) -> None:
        """Note one packet; the last one, without data, ends the file."""
        back = packet.dts is not None and self._before is not None and packet.dts < self._before
        if self._flagged is not None:
            packets, frames, marks = self._flagged
            joined = self.container.format.name == "mpegts" and (back or (packet.is_keyframe and marks == 1))
            if joined:
                self._flagged = None
            elif self._packets > packets or not packet.size:
                self._torn = frames if self._torn is None else self._torn
                self._flagged = None
        if packet.dts is None and not packet.size:
            return
        self._packets += 1
        if self._heard() and self._torn is None:
            self._torn = self._frames
        if self._before is None or back:
            if packet.pts is not None:
                self._openings.append([packet.pts, packet.pts])
            self._key = None
        self._before = packet.dts if packet.dts is not None else self._before
        if packet.is_keyframe and self._key is None and packet.pts is not None and self._openings:
            self._key = self._openings[-1][1] = packet.pts
        if packet.is_corrupt and self._key is not None:
            packets, frames, marks = self._flagged or (self._packets, self._frames, 0)
            self._flagged = (packets, frames, marks + 1)
        if packet.size and not packet.is_discard:
            self.times.append(packet.pts)
            if packet.is_keyframe:
                self._keys.add(packet.pts)

    def frame(self, frame: av.VideoFrame) -> None:
        """Note one frame."""
        self._frames += 1
        self._shown.append(frame.pts)
        if frame.is_corrupt:
            self._wrong.append((self._frames - 1, frame.pts))
        if frame.pts in self._keys and frame.pict_type not in _KEY_TYPES:
            self._false_key = True

    def in_step(self) -> bool:
        """Whether the times of the frames are those of the packets in order, key frames are what they are said to be,
        and no picture has errors, which spread to those behind it."""
        times = self._shown
        if None in times or None in self.times or self._false_key or self._wrong:
            return False
        return times == sorted(set(times)) and times == sorted(self.times)  # type: ignore[type-var]

    def found(self) -> str | None:
        """What is lost, in a few words."""
        name = self.container.format.name
        if name == "avi":
            if self._packets < self._written:
                return f"is damaged: {self._written - self._packets} of {self._written} frames are lost"
            announced = self.stream.frames  # with those that repeat the one before, which are no packets
            if self._packets > self._written and self._packets < announced - max(2, announced // 50):
                return f"is truncated: {self._packets} of {announced} frames are there"
        torn = self._torn
        if torn is None and self._heard():
            torn = self._frames
        if torn is None and name in _TOLD_BY_PICTURES:
            torn = next((before for before, time in self._wrong if not self._opening(time)), self._gap_at_end())
        return f"is damaged behind frame {torn}: frames are lost or incomplete" if torn is not None else None

    def _gap_at_end(self) -> int | None:
        """Frames before a gap among the last ones, of a video that has none before: those missing were to refer on."""
        times = [time for time in self._shown if time is not None]
        steps = [after - before for before, after in pairwise(times)]
        head, tail = steps[:-_LAST], steps[-_LAST:]
        if not head or max(head) > min(head) + 1 or max(tail) < 1.5 * max(head):
            return None
        return len(head) + tail.index(max(tail)) + 1

    def _heard(self) -> bool:
        return any(level <= av.logging.ERROR and "matroska" in name for level, name, _ in self._lines)

    def _opening(self, time: int | None) -> bool:
        return time is not None and any(first <= time < key for first, key in self._openings)
