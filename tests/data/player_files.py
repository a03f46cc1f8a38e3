"""Files of cameras, cutters and discs, written by PyAV packet by packet."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from aim_fast.data.video.decode import decode_frames, stream_frames
from aim_fast.data.video.probe import probe
from tests.data.conftest import write_video

RED, GREEN, BLUE = (200, 30, 30), (30, 160, 30), (30, 30, 200)


def remux(
    source: Path, path: Path, change: Callable[[list[av.Packet]], list[av.Packet]] = lambda packets: packets,
    options: dict[str, str] | None = None,
) -> Path:  # fmt: skip
    """``source`` copied packet by packet."""
    with av.open(str(source)) as original, av.open(str(path), "w", options=options or {}) as copy:
        stream = copy.add_stream_from_template(original.streams.video[0])
        packets = [packet for packet in original.demux(video=0) if packet.size]
        for packet in change(packets):
            packet.stream = stream
            copy.mux(packet)
    return path


def streamed(path: Path) -> np.ndarray:
    return np.stack([frame.pixels.copy() for frame in stream_frames(str(path))])


def check(path: Path, frames: int | None = None) -> np.ndarray:
    """The frames of a healthy file, which the index counts and chosen ones are of."""
    found = probe(str(path))
    assert found.error is None
    whole = streamed(path)
    assert found.frames == len(whole)
    assert frames is None or found.frames == frames
    draw = np.random.default_rng(0)
    for count in (1, 1, 3, 3, len(whole)):
        picks = np.sort(draw.choice(len(whole), min(count, len(whole)), replace=False))
        assert np.array_equal(decode_frames(str(path), picks, rotate=True, seek=found.seekable), whole[picks])
    return whole


def write_fields(path: Path, colours: list[tuple[int, int, int]], *, side: int = 64, frames: int = 6, **tags) -> Path:
    """A stream of each colour; keywords are attributes of the codec context."""
    with av.open(str(path), "w") as container:
        streams = []
        for _ in colours:
            stream = container.add_stream("libx264" if path.suffix in (".mp4", ".mkv") else "libvpx-vp9", rate=12)
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            for name, value in tags.items():
                setattr(stream.codec_context, name, value)
            streams.append(stream)
        for _ in range(frames):
            for stream, colour in zip(streams, colours):
                image = np.full((side, side, 3), colour, np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                if "colorspace" in tags:
                    frame = frame.reformat(format="yuv420p", dst_colorspace=tags["colorspace"])
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(pixels.astype(int).reshape(-1, 3).mean(0) - colour).max() < 4)


def write_matrix(source: Path, path: Path, a: int, b: int, c: int, d: int) -> Path:
    """``source``, an mp4, shown by a display matrix whose turning part is a b c d (ISO/IEC 14496-12)."""
    data = bytearray(source.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    data[place : place + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def write_packed(path: Path) -> Path:
    """An AVI of DivX's packed bitstream: a B-frame comes with the frame that it refers to, and an empty one for it."""
    plain = write_video(path.with_name("plain.avi"), "mpeg4", frames=20, options={"bf": "1", "g": "100"})
    mark = b"\0\0\1\xb2DivX503b1393p"

    def packed(packets: list[av.Packet]) -> list[av.Packet]:
        kinds = [bytes(packet)[bytes(packet).index(b"\0\0\1\xb6") + 4] >> 6 for packet in packets]
        out, held = [], None
        for packet, kind, following in zip(packets, kinds, [*kinds[1:], None]):
            data = bytes(packet)
            if kind == 2:  # comes with the one before
                data = held or b""
                held = None
            elif following == 2:
                after = bytes(packets[len(out) + 1])
                data, held = data + after, _empty(after)
            if not out:
                data = data.replace(b"\0\0\1\xb6", mark + b"\0\0\1\xb6", 1)
            new = av.Packet(data)
            new.pts, new.dts, new.time_base = packet.dts, packet.dts, packet.time_base
            new.is_keyframe = packet.is_keyframe
            out.append(new)
        return out

    return remux(plain, path, packed)


def _empty(vop: bytes) -> bytes:
    """A picture that says only that nothing is coded (ISO/IEC 14496-2, 6.2.5), seven bytes as DivX writes it."""
    return b"\0\0\1\xb6\x50\x00\x7f"
