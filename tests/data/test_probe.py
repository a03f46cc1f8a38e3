"""Probing and scanning: counts by decoding, and what is wrong with a file in a few words."""

from __future__ import annotations

import os
import re
import resource

import pytest

from aim_fast.data.index.scan import Prober, scan
from aim_fast.data.video.probe import MISSING, probe
from aim_fast.data.video.truncation import missing_bytes

EXPECTED = {
    "vp9": (30, 96, 171, "vp9"),
    "vp9_other": (23, 98, 160, "vp9"),
    "vp8": (24, 96, 128, "vp8"),
    "mjpeg": (24, 96, 128, "mjpeg"),
    "h264": (60, 96, 128, "h264"),
    "mpeg4": (40, 96, 128, "mpeg4"),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_healthy_files_are_counted_and_measured(videos, kind):
    found = probe(str(videos[kind]))
    assert (found.frames, found.height, found.width, found.codec) == EXPECTED[kind]
    assert found.error is None
    assert found.rotation == 0
    assert found.size == videos[kind].stat().st_size
    assert found.mtime_ns == videos[kind].stat().st_mtime_ns


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "0 bytes"),
        ("text", "cannot be decoded"),
        ("truncated", "truncated: [0-9]+ bytes"),
        ("truncated_mp4", "cannot be decoded behind frame|truncated"),
        ("truncated_avi", "truncated: [0-9]+ of 40 frames|cannot be decoded behind frame"),
        ("audio", "no video stream"),
        ("one_frame", "only one frame"),
    ],
)
def test_broken_files_say_what_is_wrong(broken, kind, said):
    error = probe(str(broken[kind])).error
    assert error is not None
    assert re.search(said, error), error


def test_a_file_that_is_not_there_is_missing_and_a_folder_without_pictures_is_no_video(tmp_path):
    assert probe(str(tmp_path / "nothing.mp4")).error == MISSING
    assert probe(str(tmp_path)).error == "is a folder without pictures"


def test_rotation_is_read(rotated):
    assert probe(str(rotated)).rotation in (-90, 270)


def test_a_cut_webm_decodes_without_an_error_and_is_found_by_its_header(broken, videos):
    assert missing_bytes(str(broken["truncated"])) == videos["vp9"].stat().st_size - broken["truncated"].stat().st_size
    assert probe(str(broken["truncated"])).frames > 1


@pytest.mark.parametrize("kind", ["vp9", "vp8", "h264", "mpeg4", "mjpeg"])
def test_a_whole_file_misses_nothing(videos, kind):
    assert missing_bytes(str(videos[kind])) == 0


@pytest.mark.parametrize("cut", [0, 1, 4, 5, 20, 60])
def test_headers_cut_at_any_place_are_read_without_a_crash(videos, tmp_path, cut):
    for kind in ("vp9", "h264"):
        path = tmp_path / f"{kind}{cut}"
        path.write_bytes(videos[kind].read_bytes()[:cut])
        assert missing_bytes(str(path)) >= 0
        assert probe(str(path)).error is not None


def test_a_scan_gives_in_order_what_probing_each_gives(videos, broken):
    paths = [str(path) for path in (*videos.values(), *broken.values())]
    reported = {}
    found = scan(paths, workers=2, done=lambda position, probe: reported.__setitem__(position, probe))
    assert found == [probe(path) for path in paths]
    assert reported == dict(enumerate(found))


def test_a_worker_that_hangs_or_dies_costs_its_file_alone(videos, monkeypatch):
    whole = str(videos["vp9"])
    prober = Prober()
    try:
        monkeypatch.setattr(prober.worker, "program", "import time; time.sleep(60)")
        assert "hangs the decoder" in prober.probe(whole, seconds=0.5).error
        monkeypatch.setattr(prober.worker, "program", "import os; os.abort()")
        assert "crashes the decoder" in prober.probe(whole).error
        monkeypatch.undo()
        assert prober.probe(whole).error is None
    finally:
        prober.stop()


@pytest.mark.parametrize("kind", ["h264", "vp9", "mpeg4"])
def test_a_codec_that_nothing_here_decodes_is_named_with_what_converts_it(videos, tmp_path, kind):
    known, unknown = {"h264": (b"avc1", b"zzz1"), "vp9": (b"V_VP9", b"V_ZZ9"), "mpeg4": (b"FMP4", b"ZZZ4")}[kind]
    path = tmp_path / f"odd one{videos[kind].suffix}"
    path.write_bytes(videos[kind].read_bytes().replace(known, unknown))
    error = probe(str(path)).error
    assert error is not None
    assert f"has codec {unknown.decode()}, which no decoder here reads" in error
    assert f"ffmpeg -i '{path}'" in error


def test_a_worker_answers_where_a_thousand_files_are_open(videos):
    """Its pipes then have numbers that select() does not take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    prober = Prober()
    try:
        assert prober.probe(str(videos["vp9"])).frames == 30
    finally:
        prober.stop()
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
