"""Videos by the extensions that cameras, discs and programs give them; and what is no video whatever it is called."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aim_fast.data import load_or_build_index, read_dataset
from aim_fast.data.formats.extensions import file_head, file_kind
from aim_fast.data.video.probe import probe
from tests.data.ffmpeg_files import FFMPEG, needs_ffmpeg

_H264 = "-c:v libx264 -preset ultrafast -pix_fmt yuv420p"
_MPEG2 = "-r 25 -c:v mpeg2video -pix_fmt yuv420p"
# extension -> FFmpeg's options
CONTAINERS = {
    "MTS": f"{_H264} -f mpegts",
    "m2ts": f"{_H264} -f mpegts -mpegts_m2ts_mode 1",
    "TS": f"{_H264} -f mpegts",
    "VOB": f"{_MPEG2} -f vob",
    "mod": f"{_MPEG2} -f vob",
    "m2v": f"{_MPEG2} -f mpeg2video",
    "mxf": "-r 25 -s 720x576 -c:v mpeg2video -pix_fmt yuv420p -f mxf",
    "dv": "-r 25 -s 720x576 -c:v dvvideo -pix_fmt yuv420p -f dv",
    "gxf": "-r 25 -s 720x576 -c:v mpeg2video -pix_fmt yuv422p -f gxf",
    "asf": "-c:v wmv2 -f asf",
    "WTV": f"{_H264} -f wtv",
    "f4v": f"{_H264} -f f4v",
    "3G2": f"{_H264} -f 3g2",
    "qt": f"{_H264} -f mov",
    "divx": "-c:v mpeg4 -f avi",
    "ogv": "-c:v libtheora -f ogg",
    "ogg": "-c:v libtheora -f ogg",
    "mk3d": f"{_H264} -f matroska",
    "rm": "-s 176x144 -c:v rv20 -f rm",
    "nut": f"{_H264} -f nut",
    "ivf": "-c:v libvpx -deadline realtime -f ivf",
    "265": "-c:v libx265 -preset ultrafast -x265-params log-level=none -f hevc",
    "y4m": "-pix_fmt yuv420p -f yuv4mpegpipe",
    "mjpeg": "-c:v mjpeg -pix_fmt yuvj420p -f mjpeg",
    "GIF": "-f gif",
    "apng": "-f apng",
}


@pytest.fixture(scope="module")
def filmed(tmp_path_factory) -> dict[str, Path]:
    """A file of every container."""
    folder = tmp_path_factory.mktemp("containers")
    for extension, options in CONTAINERS.items():
        picture = ["-f", "lavfi", "-i", "testsrc=size=128x96:rate=12:duration=0.6"]
        command = [str(FFMPEG), "-v", "error", "-y", *picture, *options.split(), str(folder / f"clip.{extension}")]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return {extension: folder / f"clip.{extension}" for extension in CONTAINERS}


@needs_ffmpeg
def test_every_container_is_a_clip_of_a_class_folder_and_of_a_tar_and_decodes(tmp_path, filmed):
    folder = tmp_path / "folder" / "train"
    tars = tmp_path / "tars"
    tars.mkdir()
    with tarfile.open(tars / "train-000000.tar", "w") as archive:
        for number, (extension, path) in enumerate(filmed.items()):
            (folder / f"class {number % 3}" / "session").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / f"class {number % 3}" / "session" / f"{number}.{extension}")
            archive.add(path, f"take.{number}.{extension}")
            (tmp_path / "label").write_text(str(number % 3))
            archive.add(tmp_path / "label", f"take.{number}.cls")
    indices = [
        load_or_build_index(name, root, "train") for name, root in (("folder", folder.parent), ("webdataset", tars))
    ]
    frames = []
    for index in indices:
        assert [(row.path, row.error) for row in index.rows if row.error] == []
        assert (len(index), index.notes) == (len(CONTAINERS), ())
        frames.append({Path(row.path).suffix: row.frames for row in index.rows})
    assert frames[0] == frames[1]


@needs_ffmpeg
@pytest.mark.parametrize("extension", ["MTS", "VOB", "mxf", "3G2", "divx", "GIF"])
@pytest.mark.parametrize("name", ["ucf101", "hmdb51", "kinetics400", "diving48", "jester"])
def test_official_data_sets_take_a_converted_video_of_any_container(official, filmed, name, extension):
    root = official(name)
    clip = Path(read_dataset(name, root, "train").clips[0].path)
    shutil.rmtree(clip) if clip.is_dir() else clip.unlink()
    new = clip.with_suffix("") if clip.suffix else clip
    shutil.copy(filmed[extension], f"{new}.{extension}")
    assert read_dataset(name, root, "train").clips[0].path == f"{new}.{extension}"


@needs_ffmpeg
@pytest.mark.parametrize("extension", ["MTS", "m2ts", "VOB", "mxf", "asf", "ogv", "GIF"])
def test_lists_take_every_container_with_blanks_in_paths_and_class_names(tmp_path, filmed, extension):
    shutil.copy(filmed[extension], tmp_path / f"a b.{extension}")
    (tmp_path / "train.txt").write_text(f"a b.{extension} long jump\n")
    listing = read_dataset("list", tmp_path, "train")
    assert (listing.classes, listing.clips[0].path) == (["long jump"], str(tmp_path / f"a b.{extension}"))


def save_pictures(path: Path, kind: str) -> Path:
    pictures = [Image.fromarray(np.full((64, 64, 3), 40 * level, np.uint8)) for level in range(4)]
    several = kind in ("TIFF", "MPO", "PDF", "WEBP")
    pictures[0].save(path, kind, **({"save_all": True, "append_images": pictures[1:]} if several else {}))
    return path


NO_VIDEOS = {
    "text": b"Walked to the door, sat down, stood up again.\n" * 2000,
    "srt": b"".join(b"%d\n00:00:%02d,000 --> 00:00:%02d,900\nhello\n\n" % (i, i, i) for i in range(1, 50)),
    "vtt": b"WEBVTT\n\n" + b"".join(b"00:00:%02d.000 --> 00:00:%02d.900\nhello\n\n" % (i, i) for i in range(50)),
    "ass": b"[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: Layer, Start, End, Style, Text\n"
    + b"".join(b"Dialogue: 0,0:00:%02d.00,0:00:%02d.90,Default,hi\n" % (i, i) for i in range(50)),
    "ansi": b"".join(b"\x1b[%d;%dH\x1b[3%dmhello" % (i % 20, i % 70, i % 8) for i in range(3000)),
    "utf16": ("notes of a day\n" * 4000).encode("utf-16"),
    "playlist": b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nclip.ts\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile clip.ts\n",
}
EXTENSIONS = (".txt", ".nfo", ".ans", ".srt", ".vtt", ".ass", ".m3u8", ".mp4", ".mkv", ".ts", ".mjpeg", ".idf", ".bin")


@pytest.mark.parametrize("kind", NO_VIDEOS)
def test_no_text_and_no_subtitle_is_a_video_whatever_its_extension(tmp_path, videos, kind):
    shutil.copy(videos["h264"], tmp_path / "clip.ts")
    for extension in EXTENSIONS:
        path = tmp_path / f"notes{extension}"
        path.write_bytes(NO_VIDEOS[kind])
        assert probe(str(path)).error, extension


@pytest.mark.parametrize("kind", ["JPEG", "PNG2", "TIFF", "MPO", "PDF", "BMP2", "PPM2", "WEBP", "ICO"])
def test_no_picture_is_a_video_whatever_its_extension(tmp_path, kind):
    one = tmp_path / "one"
    if kind.endswith("2"):  # two after another, as a copy by cat
        one.write_bytes(2 * save_pictures(tmp_path / "half", kind[:-1]).read_bytes())
    else:
        save_pictures(one, kind)
    for extension in (".jpg", ".png", ".tiff", ".pdf", ".ppm", ".webp", ".mp4", ".avi", ".mkv", ".mjpeg", ".gif"):
        path = tmp_path / f"picture{extension}"
        shutil.copy(one, path)
        assert probe(str(path)).error, extension


def test_pictures_of_a_numbered_pattern_are_no_video(tmp_path):
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 0, 0)).save(tmp_path / f"f{number}.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "f%d.png")
    assert "no video but a picture" in (probe(str(tmp_path / "f%d.png")).error or "")


@pytest.mark.parametrize("source", ["text", "srt", "playlist", "WEBP"])
def test_prediction_and_training_refuse_them_by_name(aim_fast, motion_set, trunk, tmp_path, videos, source):
    root, run = tmp_path / "data", tmp_path / "run"
    for place in ("train/a/1.mp4", "train/b/1.mp4", "val/a/2.mp4", "val/b/2.mp4"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos["h264" if "train" in place else "h264_long"], root / place)
    odd = root / "train" / "a" / ("odd.webp" if source == "WEBP" else "odd.ts")
    if source == "WEBP":
        save_pictures(odd, "WEBP")
    else:
        odd.write_bytes(NO_VIDEOS[source])
    common = (
        "--model",
        "aim_vit_demo",
        "--weights",
        trunk,
        "--device",
        "cpu",
        "--dataset",
        "folder",
        "--data-root",
        root,
    )
    status, _, err = aim_fast(
        "train", *common, "--epochs", 0, "--batch-size", 2, "--total-batch-size", 2, "--output", run
    )
    assert status == 0, err
    assert f"{odd}: " in err
    status, out, err = aim_fast("predict", run, odd, root / "train" / "a" / "1.mp4", "--device", "cpu")
    assert status == 2
    assert str(odd) in err
    assert str(odd) not in out
    if source == "WEBP":
        assert "animation in WebP, which FFmpeg does not read here; convert it" in err


def test_files_of_shared_extensions_are_told_apart_by_what_they_hold(tmp_path):
    still, moving = tmp_path / "still.webp", save_pictures(tmp_path / "moving.webp", "WEBP")
    Image.new("RGB", (64, 64)).save(still)
    (tmp_path / "sound.ogg").write_bytes(b"OggS" + bytes(24) + b"\x01vorbis" + bytes(100))
    (tmp_path / "disc.DAT").write_bytes(b"\0\0\1\xba" + bytes(100))
    (tmp_path / "table.dat").write_bytes(b"1 2 3\n" * 100)
    kinds = {name: file_kind(name, lambda: file_head(str(tmp_path / name)))  # noqa: B023
             for name in ("still.webp", "moving.webp", "sound.ogg", "disc.DAT", "table.dat", "gone.webp")}  # fmt: skip
    assert kinds == {"still.webp": "beside", "moving.webp": "video", "sound.ogg": "beside", "disc.DAT": "video",
                     "table.dat": "beside", "gone.webp": "beside"}  # fmt: skip
    assert (still.exists(), moving.exists()) == (True, True)
