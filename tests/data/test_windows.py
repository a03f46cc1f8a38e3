"""Sliding windows: full coverage, the frames of evaluation, constant memory."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch

from aim_fast.data import Sampling, load_views
from aim_fast.data.windows import Length, read_windows
from aim_fast.errors import DataError, UsageError
from tests.data.conftest import write_video


@pytest.mark.parametrize("frames", [5, 16, 17, 40, 43])
@pytest.mark.parametrize(("sampling", "seconds"), [(Sampling(4, interval=4), None), (Sampling(4), 16 / 12)])
def test_every_frame_is_in_a_window_and_each_window_has_the_models_span(frames, sampling, seconds, tmp_path):
    video = write_video(tmp_path / "v.webm", "libvpx-vp9", frames=frames)
    windows = list(read_windows(video, sampling, 48, seconds=seconds))
    spans = [(window.first, window.last) for window in windows]
    assert {at for first, last in spans for at in range(first, last + 1)} == set(range(frames))
    assert all(last - first + 1 == min(16, frames) for first, last in spans)
    assert spans == sorted(set(spans))
    assert [first for first, _ in spans][:-1] == list(range(0, max(frames - 15, 0), 8))[: len(spans) - 1]
    for window in windows:
        assert window.start == pytest.approx(window.first / 12, abs=0.01)
        assert window.end == pytest.approx((window.last + 1) / 12, abs=0.01)


def test_a_window_over_the_whole_video_is_its_evaluation_view(videos):
    (window,) = read_windows(videos["h264"], Sampling(4), 48, seconds=60 / 12)
    assert torch.equal(window.frames, load_views(videos["h264"], Sampling(4), 48)[0])


def test_a_window_holds_what_a_video_cut_to_it_would(videos, tmp_path):
    windows = list(read_windows(videos["vp9_gop"], Sampling(4, interval=2), 48, stride=4 / 12))
    assert [window.first for window in windows] == list(range(0, 33, 4))
    cut = tmp_path / "cut.webm"  # from the key frame at 8 on
    with av.open(str(videos["vp9_gop"])) as source, av.open(str(cut), "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size][8:]
        for packet in packets:
            packet.pts = packet.dts = packet.pts - round(8 / 12 / packet.time_base)
            packet.stream = stream
            copy.mux(packet)
    theirs = list(read_windows(cut, Sampling(4, interval=2), 48, stride=4 / 12))
    assert all(torch.equal(ours.frames, other.frames) for ours, other in zip(windows[2:], theirs, strict=True))


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "audio"])
def test_files_that_are_no_whole_video_are_named(kind, broken):
    with pytest.raises(DataError, match=str(broken[kind])):
        list(read_windows(broken[kind], Sampling(4), 48))


def test_lengths_that_cannot_be_are_refused(videos):
    for options in ({"seconds": 0}, {"stride": -1}, {"seconds": float("nan")}):
        with pytest.raises(UsageError):
            next(read_windows(videos["vp9"], Sampling(4), 48, **options))
    with pytest.raises(UsageError, match="every 2 frames"):
        next(read_windows(videos["vp9"], Sampling(4, interval=2), 48, seconds=3))
    with pytest.raises(DataError, match="does not exist"):
        next(read_windows(Path("nowhere.mp4"), Sampling(4), 48))


def test_aligned_windows_start_on_the_grid_and_repeat_the_last_frame(tmp_path):
    video = write_video(tmp_path / "v.webm", "libvpx-vp9", frames=21)
    windows = list(read_windows(video, Sampling(8, interval=1), 48, stride=Length(6, "frames"), aligned=True))
    assert [window.first for window in windows] == [window.tick for window in windows] == [0, 6, 12, 18]
    assert [window.ticks for window in windows] == [8, 8, 8, 3]
    assert (windows[-1].last, windows[-1].end) == (20, pytest.approx(21 / 12, abs=0.01))
    (whole,) = read_windows(video, Sampling(21, interval=1), 48)
    assert torch.equal(windows[1].frames, whole.frames[6:14])
    assert all(torch.equal(frame, whole.frames[20]) for frame in windows[-1].frames[2:])
