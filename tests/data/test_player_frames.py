"""Frames are what a player shows: files of cameras, cutters and discs, in which a frame is not just a packet."""

from __future__ import annotations

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
from tests.data.player_files import (
    BLUE,
    GREEN,
    RED,
    check,
    near,
    remux,
    streamed,
    write_fields,
    write_matrix,
    write_packed,
)

pytestmark = pytest.mark.stack


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
    assert "128x64" in index.summary()[1]  # the size that boxes are drawn in, as `look` says it
    for decoder in ("auto", "pyav"):
        loader = ClipLoader(index, train=False, batch_size=1, img_size=64, num_frames=2, workers=1, decoder=decoder)
        assert np.array_equal(next(iter(loader.batches())).frames[0].numpy(), view)
        loader.close()
    (window,) = read_windows(path, Sampling(2), 64, seconds=60)
    assert near(window.frames[:, :, 4:60].numpy(), GREEN)


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
