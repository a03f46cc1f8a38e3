"""How long a container says that it is.

A webm cut off in the middle demuxes and decodes without an error up to the cut, so decoding cannot find it. The header
can: a Matroska segment, every MP4 box and every RIFF list of an AVI state their size, and a transport stream is made of
packets of one. A file shorter than that lost its end.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from aim_fast.data.video.source import open_source

__all__ = ["missing_bytes"]

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_MP4_TOP_LEVEL = {
    b"ftyp",
    b"moov",
    b"mdat",
    b"free",
    b"skip",
    b"wide",
    b"moof",
    b"mfra",
    b"uuid",
    b"styp",
    b"sidx",
    b"pnot",
}


def missing_bytes(path: str) -> int:
    """Bytes between the file's end and the end that its header declares; 0 where none is declared or none missing."""
    with open_source(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(12)
        if head[:4] == _EBML.to_bytes(4, "big"):
            declared = _matroska_size(file)
        elif head[4:8] in _MP4_TOP_LEVEL:
            declared = _mp4_size(file, size)
        elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            declared = _riff_size(file, size)
        elif packet := _transport_packet(file):
            start, length = packet
            declared = start + -(-(size - start) // length) * length
        else:
            declared = None
    return max(declared - size, 0) if declared is not None else 0


def _matroska_size(file: BinaryIO) -> int | None:
    """Offset of the segment's end: EBML header, then one segment, each an id and a size of variable length."""
    file.seek(0)
    while True:
        identity = _number(file, keep_marker=True)
        length = _number(file)
        if identity is None or length is None:  # cut off in the header, or a live stream of unknown length
            return None
        if identity == _SEGMENT:
            return file.tell() + length
        file.seek(length, os.SEEK_CUR)


def _number(file: BinaryIO, keep_marker: bool = False) -> int | None:
    """One EBML number (RFC 8794): as many leading zero bits as further bytes; all ones means unknown."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    count = 8 - first[0].bit_length()
    rest = file.read(count)
    if len(rest) < count:
        return None
    value = int.from_bytes(first + rest, "big")
    if keep_marker:
        return value
    mask = (1 << (7 * (count + 1))) - 1
    return None if value & mask == mask else value & mask


def _mp4_size(file: BinaryIO, size: int) -> int | None:
    """Offset where the last top-level box ends (ISO/IEC 14496-12)."""
    offset = 0
    while offset < size:
        file.seek(offset)
        head = file.read(16)
        if len(head) < 8 or head[4:8] not in _MP4_TOP_LEVEL:
            return None  # padding behind the last box is common and harmless
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # reaches to the end of the file
            return None
        if length < 8:
            return None
        offset += length
    return offset


def _riff_size(file: BinaryIO, size: int) -> int | None:
    """Offset where the last RIFF list ends: AVI files beyond a gigabyte have several (OpenDML)."""
    offset = 0
    while offset < size:
        file.seek(offset)
        head = file.read(12)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or head[8:] not in (b"AVI ", b"AVIX") or length in (0, 2**32 - 1):
            return None  # padding, or a writer that never came to fill in the length
        offset += 8 + length
    return None if offset == size + 1 else offset  # a list of odd length, whose padding was left out


def _transport_packet(file: BinaryIO) -> tuple[int, int] | None:
    """(where the first begins, bytes of each) of an MPEG transport stream's packets (ISO/IEC 13818-1, 2.4.3; 192 with
    a time before each as cameras and Blu-ray write them, 204 with error correction behind)."""
    file.seek(0)
    head = file.read(16 * 204)
    for length, before in ((188, 0), (192, 4), (204, 0)):
        for start in range(before, length + before):
            marks = head[start::length]
            if len(marks) >= 8 and set(marks) == {0x47}:
                return start - before, length
    return None
