"""Damage is found and named in every container; times and windows are those of a player."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from aim_fast.data import Sampling
from aim_fast.data.video.decode import stream_frames
from aim_fast.data.video.probe import probe
from aim_fast.data.windows import read_windows
from tests.data.conftest import write_video
from tests.data.player_files import (
    check,
    remux,
)


def _gone(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) // 8) + data[len(data) // 2 + len(data) // 8 :]


def _taken(data: bytes) -> bytes:
    return data[: len(data) // 2] + data[len(data) // 2 + len(data) // 8 :]


def _cut(data: bytes) -> bytes:
    return data[: len(data) * 3 // 4]


KINDS = {
    "webm": ("libvpx-vp9", {"g": "10"}),
    "mkv": ("libx264", {"g": "10", "bf": "2", "preset": "ultrafast"}),
    "avi": ("mpeg4", {"g": "10"}),
    "ts": ("libx264", {"g": "10", "bf": "2", "preset": "ultrafast"}),
    "mpg": ("mpeg2video", {"g": "10", "bf": "2"}),
    "vob": ("mpeg2video", {"g": "10", "bf": "2"}),
}


@pytest.mark.parametrize("change", [_gone, _taken, _cut])
@pytest.mark.parametrize("extension", KINDS)
def test_frames_lost_in_the_middle_or_at_the_end_are_found(tmp_path, extension, change):
    codec, options = KINDS[extension]
    whole = write_video(tmp_path / f"whole.{extension}", codec, frames=60, rate=25, options=options)
    assert probe(str(whole)).error is None
    assert probe(str(whole)).frames == 60
    path = tmp_path / f"damaged.{extension}"
    path.write_bytes(change(whole.read_bytes()))
    found = probe(str(path))
    assert found.error is not None
    assert re.match("is damaged|is truncated|cannot be decoded behind frame [1-9]", found.error)


def test_one_lost_frame_of_an_avi_is_found_and_repeated_ones_are_none(tmp_path, videos):
    data = bytearray(videos["mpeg4"].read_bytes())
    places = [at for at in range(len(data)) if data[at : at + 4] == b"00dc" and at < data.rindex(b"idx1")]
    data[places[20] : places[20] + 4] = b"zzzz"
    path = tmp_path / "one.avi"
    path.write_bytes(data)
    assert "1 of 40 frames" in (probe(str(path)).error or "")

    def thinned(packets: list[av.Packet]) -> list[av.Packet]:
        return [packet for number, packet in enumerate(packets) if number < 10 or number % 4 == 0]

    source = write_video(tmp_path / "source.avi", "mjpeg", frames=30, pixel_format="yuvj420p")
    path = remux(source, tmp_path / "thinned.avi", thinned)
    check(path, 15)
    times = [frame.time for frame in stream_frames(str(path))]
    assert times[-1] == pytest.approx(28 / 12, abs=0.01)


@pytest.mark.parametrize("kind", ["frames last", "index last", "avi", "ts"])
def test_a_truncated_file_says_so_before_anything_else(tmp_path, videos, kind):
    if kind == "frames last":
        data = remux(videos["h264"], tmp_path / "fast.mp4", options={"movflags": "faststart"}).read_bytes()
        path, data = tmp_path / "cut.mp4", data[: len(data) * 6 // 10]
    elif kind == "index last":
        path, data = tmp_path / "cut.mp4", videos["h264"].read_bytes()[:-600]
    elif kind == "avi":
        path, data = tmp_path / "cut.avi", videos["mpeg4"].read_bytes()[:-300]
    else:
        data = remux(videos["h264"], tmp_path / "whole.ts").read_bytes()
        path, data = tmp_path / "cut.ts", data[:-100]
    path.write_bytes(data)
    error = probe(str(path)).error
    assert error is not None
    assert error.startswith("is truncated: ")


def write_uneven_rate(path: Path) -> Path:
    """Ten seconds at 24 frames a second, then ten at 4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 24)
        for tick in [*range(240), *range(240, 480, 6)]:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), tick // 2, np.uint8), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("stride", [1.0, 2.0])
def test_windows_are_of_equal_length_whatever_the_frame_rate_does(tmp_path, stride):
    windows = list(read_windows(write_uneven_rate(tmp_path / "v.mp4"), Sampling(4), 32, seconds=2, stride=stride))
    lengths = [window.end - window.start for window in windows]
    assert np.allclose(lengths, 2, atol=0.1)
    starts = [window.start for window in windows]
    assert np.allclose(np.diff(starts)[:-1], stride, atol=0.1)
    assert np.diff(starts).min() > 0
    assert windows[-1].end == pytest.approx(20, abs=0.5)
    for window in windows:  # the frame on the screen at each moment is as grey as the moment is late
        moments = window.start + (np.arange(4) + 0.5) * (window.end - window.start) / 4
        assert np.abs(window.frames.float().mean((1, 2, 3)).numpy() - moments * 12).max() < 8


def test_windows_of_a_recording_that_begins_late_begin_at_nought(tmp_path):
    source = write_video(tmp_path / "v.ts", "libx264", frames=36)

    def later(packets: list[av.Packet]) -> list[av.Packet]:
        for packet in packets:
            packet.pts += 40000 * 90000
            packet.dts += 40000 * 90000
        return packets

    (window,) = read_windows(remux(source, tmp_path / "late.ts", later), Sampling(4), 32, seconds=3)
    assert (window.start, window.end) == pytest.approx((0, 3), abs=0.01)


def test_a_video_behind_a_longer_sound_keeps_its_delay(tmp_path):
    path = tmp_path / "delayed.mkv"
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("libx264", rate=12), container.add_stream("aac", rate=16000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 12)
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 64000), np.int16), format="s16", layout="mono")
        wave.sample_rate, wave.pts = 16000, 0
        container.mux(sound.encode(wave))
        container.mux(sound.encode(None))
        for number in range(24):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = number + 18, Fraction(1, 12)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    (window,) = read_windows(path, Sampling(4), 32, seconds=2)
    assert (window.start, window.end) == pytest.approx((1.5, 3.5), abs=0.05)
