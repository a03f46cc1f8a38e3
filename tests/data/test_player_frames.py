"""Frames are what a player shows: files of cameras, cutters and discs, in which a frame is not just a packet."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from aim_fast.data import ClipLoader, Sampling, load_or_build_index, load_views
from aim_fast.data.index import index_file
from aim_fast.data.video.decode import decode_frames, stream_frames
from aim_fast.data.video.probe import probe
from aim_fast.data.windows import read_windows
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


def test_an_empty_packet_of_a_packed_bitstream_is_no_frame(tmp_path):
    path = write_packed(tmp_path / "packed.avi")
    plain = streamed(tmp_path / "plain.avi")
    found = probe(str(path))
    assert found.error is None
    assert len(plain) - 1 <= found.frames <= len(plain)
    assert np.array_equal(check(path), plain[: found.frames])


def test_real_packed_clips_of_hmdb51_are_whole(shared_cases):
    names = {
        "RATRACE_wave_f_nm_np1_fr_goo_37.avi": 72,
        "hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi": 83,
    }
    for name, frames in names.items():
        check(shared_cases / "real" / name, frames)


@pytest.mark.parametrize("extension", ["avi", "mkv", "mp4"])
def test_metadata_that_is_no_utf8_never_matters(videos, tmp_path, extension):
    source = videos["mpeg4"] if extension == "avi" else videos["h264"]
    path = tmp_path / f"titled.{extension}"
    with av.open(str(source)) as original, av.open(str(path), "w") as copy:
        copy.metadata["title"] = "a title of QQQQ"
        stream = copy.add_stream_from_template(original.streams.video[0])
        for packet in original.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    data = path.read_bytes()
    assert b"QQQQ" in data
    path.write_bytes(data.replace(b"QQQQ", b"\xd3\xc9\xff\xd3"))
    check(path, probe(str(source)).frames)
    assert len(load_views(path, Sampling(4), 32)) == 1


def test_matroska_times_below_zero_are_shown(videos, tmp_path):
    def earlier(packets: list[av.Packet]) -> list[av.Packet]:
        for packet in packets:
            packet.pts -= 1000
            packet.dts -= 1000
        return packets

    path = remux(videos["vp9_gop"], tmp_path / "negative.mkv", earlier, {"avoid_negative_ts": "disabled"})
    assert np.array_equal(check(path, 40), streamed(videos["vp9_gop"]))


@pytest.mark.parametrize("extension", ["ts", "mkv"])
def test_what_begins_inside_a_group_of_pictures_is_whole_from_its_first_key_frame(tmp_path, extension):
    options = {"bf": "2", "x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=2"}
    source = write_video(tmp_path / f"open.{extension}", "libx264", frames=40, options=options)
    whole = streamed(source)
    if extension == "ts":
        data = source.read_bytes()
        path = tmp_path / "cut.ts"
        path.write_bytes(data[len(data) // 3 // 188 * 188 :])
    else:

        def from_second_key(packets: list[av.Packet]) -> list[av.Packet]:
            keys = [i for i, packet in enumerate(packets) if packet.is_keyframe]
            return packets[keys[1] :]

        path = remux(source, tmp_path / "cut.mkv", from_second_key)
    shown = check(path)
    assert 15 < len(shown) < 40
    assert np.array_equal(shown, whole[-len(shown) :])


def test_joined_recordings_are_whole_and_their_times_go_on(tmp_path):
    one = write_video(tmp_path / "one.ts", "libx264", frames=36, options={"g": "12"})
    path = tmp_path / "joined.ts"
    path.write_bytes(one.read_bytes() * 2)
    check(path, 72)
    times = [frame.time for frame in stream_frames(str(path))]
    assert np.allclose(np.diff(times), 1 / 12, atol=0.002)
    assert times[0] == pytest.approx(0, abs=0.002)


@pytest.mark.parametrize("default", [0, 1])
def test_of_several_video_streams_the_default_one_is_shown_on_every_route(tmp_path, class_folders, default):
    path = write_fields(tmp_path / "two.webm", [RED, BLUE], frames=8)
    with av.open(str(path)) as original, av.open(str(tmp_path / "chosen.webm"), "w") as copy:
        streams = [copy.add_stream_from_template(stream) for stream in original.streams.video]
        for number, stream in enumerate(streams):
            stream.disposition = Disposition.default if number == default else Disposition(0)
        for packet in original.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream_index]
                copy.mux(packet)
    path = tmp_path / "chosen.webm"
    colour = (RED, BLUE)[default]
    assert near(check(path, 8), colour)
    assert "several video streams" in probe(str(path)).special
    index = load_or_build_index("folder", class_folders({"train/a": [path], "val/a": [path]}), "train")
    assert "several video streams" in "\n".join(index.summary())
    for decoder in ("auto", "cpu", "pyav"):
        loader = ClipLoader(index, train=False, batch_size=1, img_size=32, num_frames=4, workers=1, decoder=decoder)
        assert near(next(iter(loader.batches())).frames[0].numpy(), colour)
        loader.close()


def test_of_equally_default_streams_the_largest_is_shown(tmp_path):
    with av.open(str(tmp_path / "sizes.mkv"), "w") as container:
        streams = []
        for side in (32, 64):
            stream = container.add_stream("libx264", rate=12)
            stream.width = stream.height = side
            stream.disposition = Disposition.default
            streams.append(stream)
        for side, stream, colour in zip((32, 64), streams, (RED, BLUE)):
            for _ in range(4):
                image = np.full((side, side, 3), colour, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    assert near(check(tmp_path / "sizes.mkv", 4), BLUE)


def test_a_cover_picture_is_no_video(videos, tmp_path):
    cover = write_video(tmp_path / "cover.avi", "mjpeg", frames=1, width=320, height=320, pixel_format="yuvj420p")
    path = tmp_path / "covered.mp4"
    with av.open(str(videos["h264"])) as original, av.open(str(cover)) as picture, av.open(str(path), "w") as copy:
        attached = copy.add_stream_from_template(picture.streams.video[0])
        attached.disposition = Disposition.attached_pic
        stream = copy.add_stream_from_template(original.streams.video[0])
        packet = next(picture.demux(video=0))
        packet.stream = attached
        copy.mux(packet)
        for packet in original.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    assert np.array_equal(check(path, 60), streamed(videos["h264"]))
    alone = tmp_path / "sound.m4a"
    write_sound_with_cover(alone, cover)
    assert "no video stream" in (probe(str(alone)).error or "")


def write_sound_with_cover(path: Path, cover: Path) -> None:
    with av.open(str(cover)) as picture, av.open(str(path), "w", format="mp4") as copy:
        sound = copy.add_stream("aac", rate=16000)
        attached = copy.add_stream_from_template(picture.streams.video[0])
        attached.disposition = Disposition.attached_pic
        packet = next(picture.demux(video=0))
        packet.stream = attached
        copy.mux(packet)
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
        wave.sample_rate = 16000
        copy.mux(sound.encode(wave))
        copy.mux(sound.encode(None))


@pytest.mark.parametrize("name", ["notes.txt", "notes.nfo", "notes.diz"])
def test_a_text_is_no_video(tmp_path, name):
    path = tmp_path / name
    path.write_text("a line of text that FFmpeg draws, by the extension of its file\n" * 60)
    assert probe(str(path)).error is not None


MATRICES = {
    (1, 0, 0, 1): lambda x: x,
    (-1, 0, 0, 1): lambda x: x[:, :, ::-1],
    (1, 0, 0, -1): lambda x: x[:, ::-1],
    (-1, 0, 0, -1): lambda x: x[:, ::-1, ::-1],
    (0, 1, -1, 0): lambda x: np.rot90(x, -1, (1, 2)),
    (0, -1, 1, 0): lambda x: np.rot90(x, 1, (1, 2)),
    (0, 1, 1, 0): lambda x: x.swapaxes(1, 2),
    (0, -1, -1, 0): lambda x: np.rot90(x, 2, (1, 2)).swapaxes(1, 2),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_the_whole_display_matrix_is_heeded(videos, tmp_path, matrix):
    path = write_matrix(videos["h264"], tmp_path / "turned.mp4", *matrix)
    shown = check(path, 60)
    assert np.array_equal(shown, MATRICES[matrix](streamed(videos["h264"])))
    found = probe(str(path))
    height, width = shown.shape[1:3]
    assert (found.rotation % 180 == 0) == ((height, width) == (found.height, found.width))
    view = load_views(path, Sampling(2), min(height, width)).numpy()[0]
    side, top, left = min(height, width), (height - min(height, width)) // 2, (width - min(height, width)) // 2
    assert np.array_equal(view, shown[[15, 44]][:, top : top + side, left : left + side])


def test_a_mirrored_vp9_file_is_not_left_to_a_decoder_that_does_not_mirror(videos, tmp_path, class_folders):
    plain = remux(videos["vp9"], tmp_path / "plain.mp4")
    path = write_matrix(plain, tmp_path / "mirrored.mp4", 1, 0, 0, -1)
    index = load_or_build_index("folder", class_folders({"train/a": [path], "val/a": [path]}), "train")
    frames = []
    for decoder in ("cpu", "pyav"):
        loader = ClipLoader(index, train=False, batch_size=1, img_size=96, num_frames=4, workers=1, decoder=decoder)
        frames.append(next(iter(loader.batches())).frames[0].numpy())
        loader.close()
    assert np.array_equal(*frames)
    assert np.array_equal(frames[0], load_views(path, Sampling(4), 96)[0].numpy())


@pytest.mark.parametrize(("space", "name"), [(1, "ITU709"), (9, "BT2020"), (6, "ITU601"), (2, "ITU601")])
@pytest.mark.parametrize("extension", ["mp4", "webm"])
def test_colours_are_those_of_the_files_tags_and_of_bt601_without(tmp_path, space, name, extension):
    path = tmp_path / f"field.{extension}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264" if extension == "mp4" else "libvpx-vp9", rate=12)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = space
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), GREEN, np.uint8), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=name)
            frame.colorspace = space
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert near(check(path, 4), GREEN)
    assert bool(probe(str(path)).special) == (space in (1, 9))


def test_pixels_that_are_not_square_are_widened(tmp_path, class_folders):
    """A square of 64 shown at 2:1: the centre square of what is shown is the middle half of its columns."""
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        image = np.zeros((64, 64, 3), np.uint8)
        image[:, 16:48] = GREEN
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    view = load_views(path, Sampling(2), 64)[0].numpy()
    assert near(view[:, :, 4:60], GREEN)
    index = load_or_build_index("folder", class_folders({"train/a": [path], "val/a": [path]}), "train")
    assert index.rows[0].display_size == (64, 128)
    for decoder in ("auto", "pyav"):
        loader = ClipLoader(index, train=False, batch_size=1, img_size=64, num_frames=2, workers=1, decoder=decoder)
        assert np.array_equal(next(iter(loader.batches())).frames[0].numpy(), view)
        loader.close()
    (window,) = read_windows(path, Sampling(2), 64, seconds=60)
    assert near(window.frames[:, :, 4:60].numpy(), GREEN)


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


def test_a_relative_path_with_a_colon_is_a_path(videos, tmp_path, monkeypatch):
    (tmp_path / "12:30 clip.mp4").write_bytes(videos["h264"].read_bytes())
    monkeypatch.chdir(tmp_path)
    assert probe("12:30 clip.mp4").frames == 60
    assert len(decode_frames("12:30 clip.mp4", [0, 7])) == 2


def test_an_index_of_an_earlier_version_is_made_anew_and_that_is_said(videos, class_folders, monkeypatch, capsys):
    root = class_folders({"train/a": [videos["h264"]], "val/a": [videos["vp9"]]})
    with monkeypatch.context() as earlier:
        earlier.setattr(index_file, "_VERSION", 1)
        load_or_build_index("folder", root, "train", progress=False)
    assert "earlier" not in capsys.readouterr().err
    assert load_or_build_index("folder", root, "train", progress=False).rows[0].frames == 60
    assert "made by an earlier version" in capsys.readouterr().err
    load_or_build_index("folder", root, "train", progress=False)
    assert "earlier" not in capsys.readouterr().err
