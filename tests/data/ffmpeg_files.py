"""Files of every container and codec that people bring, made by FFmpeg's command line, and what it shows of a file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.player_files import write_matrix

FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="FFmpeg's command line, which is compared with, is not here")

_X264 = "-c:v libx264 -preset ultrafast -bf 2 -g 15 -pix_fmt yuv420p"
_VP9 = "-c:v libvpx-vp9 -cpu-used 8 -deadline realtime -b:v 300k -g 15 -pix_fmt yuv420p"
_VP8 = "-c:v libvpx -cpu-used 8 -deadline realtime -b:v 300k -g 15"
_OPEN = "-c:v libx264 -x264-params open-gop=1:keyint=15:min-keyint=15:bframes=3:scenecut=0 -pix_fmt yuv420p"
_X265 = "-c:v libx265 -preset ultrafast -pix_fmt yuv420p -x265-params log-level=none:keyint=15:bframes=3"

# file name -> options behind the test picture
PLAIN = {
    "h264.mp4": _X264,
    "h264.mov": _X264,
    "h264.mkv": _X264,
    "h264.flv": _X264,
    "h264.f4v": _X264 + " -f mp4",
    "h264.avi": "-c:v libx264 -preset ultrafast -bf 0 -g 15 -pix_fmt yuv420p",
    "h264_b.avi": _X264,
    "h264.ts": _X264,
    "h264.m2ts": _X264 + " -f mpegts -mpegts_m2ts_mode 1",
    "h264.3g2": _X264,
    "h264.h264": _X264,
    "h264_444.mp4": "-c:v libx264 -preset ultrafast -bf 2 -pix_fmt yuv444p",
    "h264_10bit.mkv": "-c:v libx264 -preset ultrafast -bf 2 -pix_fmt yuv420p10le",
    "h264_fragments.mp4": _X264 + " -movflags frag_keyframe+empty_moov",
    "h264_refresh.mp4": "-c:v libx264 -preset fast -x264-params intra-refresh=1:keyint=15 -pix_fmt yuv420p",
    "h264_open.mp4": _OPEN,
    "h264_interlaced.mp4": "-c:v libx264 -preset ultrafast -flags +ildct+ilme -x264-params tff=1 -pix_fmt yuv420p",
    "hevc.mp4": _X265,
    "hevc.mkv": _X265,
    "hevc.ts": _X265,
    "av1.mp4": "-c:v libsvtav1 -preset 12 -g 15",
    "av1.webm": "-c:v libaom-av1 -cpu-used 8 -usage realtime -g 15",
    "vp9.webm": _VP9,
    "vp9.mp4": _VP9,
    "vp9_altref.webm": "-c:v libvpx-vp9 -cpu-used 4 -lag-in-frames 16 -auto-alt-ref 1 -b:v 300k -g 30",
    "vp9_full.webm": _VP9 + " -color_range pc",
    "vp8.webm": _VP8,
    "vp8_altref.webm": "-c:v libvpx -cpu-used 4 -lag-in-frames 16 -auto-alt-ref 1 -b:v 300k -g 30",
    "vp8.avi": _VP8,
    "mpeg4.avi": "-c:v mpeg4 -bf 2 -g 12 -q:v 4",
    "mpeg4_xvid.avi": "-c:v mpeg4 -vtag XVID -g 12 -q:v 4",
    "mpeg4.mp4": "-c:v mpeg4 -bf 2 -g 12 -q:v 4",
    "mpeg4.mkv": "-c:v mpeg4 -bf 2 -g 12 -q:v 4",
    "msmpeg4.avi": "-c:v msmpeg4 -q:v 4",
    "msmpeg4v2.avi": "-c:v msmpeg4v2 -q:v 4",
    "mjpeg.avi": "-c:v mjpeg -q:v 4",
    "mjpeg.mov": "-c:v mjpeg -q:v 4",
    "mpeg2.mpg": "-c:v mpeg2video -bf 2 -g 12 -q:v 4",
    "mpeg2.vob": "-c:v mpeg2video -bf 2 -g 12 -q:v 4 -f vob",
    "mpeg2.ts": "-c:v mpeg2video -bf 2 -g 12 -q:v 4",
    "mpeg2_interlaced.mkv": "-c:v mpeg2video -bf 2 -g 12 -q:v 4 -flags +ildct+ilme -top 1",
    "mpeg1.mpg": "-r 25 -c:v mpeg1video -bf 2 -g 12 -q:v 4",
    "wmv2.wmv": "-c:v wmv2 -q:v 4",
    "wmv1.asf": "-c:v wmv1 -q:v 4",
    "flv1.flv": "-c:v flv1 -q:v 4",
    "h263.3gp": "-s 176x144 -c:v h263 -q:v 4",
    "theora.ogv": "-c:v libtheora -q:v 6",
    "mxf.mxf": "-r 25 -c:v mpeg2video -q:v 4",
    "dv.dv": "-r 25 -s 720x576 -pix_fmt yuv420p -c:v dvvideo",
    "ffv1.mkv": "-c:v ffv1",
    "ffv1_rgb.mkv": "-c:v ffv1 -pix_fmt bgr0",
    "huffyuv.avi": "-c:v huffyuv",
    "rgb.avi": "-c:v rawvideo -pix_fmt bgr24",
    "prores.mov": "-c:v prores -profile:v 0",
    "dnxhd.mov": "-s 1280x720 -r 25 -c:v dnxhd -b:v 60M -pix_fmt yuv422p",
    "gif.gif": "",
    "apng.apng": "-plays 1",
    "y4m.y4m": "-pix_fmt yuv420p",
    "nut.nut": _X264,
    "anamorphic.mp4": _X264 + " -vf setsar=2/1",
    "anamorphic.mkv": _VP9 + " -vf setsar=16/15",
    "bt709.mp4": _X264 + " -vf scale=out_color_matrix=bt709 -colorspace bt709 -color_primaries bt709 -color_trc bt709",
    "bt709.webm": _VP9 + " -vf scale=out_color_matrix=bt709 -colorspace bt709",
    "bt2020.mp4": _X264 + " -vf scale=out_color_matrix=bt2020 -colorspace bt2020nc",
    "bt601.mp4": _X264 + " -colorspace smpte170m",
    "full_range.mp4": _X264 + " -vf scale=out_range=pc -color_range pc",
    "uneven.mp4": _X264 + " -vf select='lt(t\\,1)+not(mod(n\\,4))' -vsync vfr",
    "uneven.avi": "-c:v mpeg4 -q:v 4 -vf select='lt(t\\,1)+not(mod(n\\,4))' -vsync vfr",
    "late.ts": _X264 + " -output_ts_offset 40000",
    "wrapped.ts": _X264 + " -output_ts_offset 95442.5",
}


def run(*arguments: str | Path, data: bytes | None = None) -> bytes:
    """FFmpeg's output."""
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True, input=data).stdout


def make(path: Path, options: str, *, size: str = "160x120", rate: int = 15, seconds: float = 3) -> Path:
    """A test picture of every colour, in motion."""
    source = ["-f", "lavfi", "-i", f"testsrc2=s={size}:r={rate}:d={seconds}", "-threads", "1"]
    run(*source, *options.replace("'", "").split(), path)
    return path


def shown_by_ffmpeg(path: Path, height: int, width: int) -> np.ndarray:
    """uint8 [n, height, width, 3]: every frame that FFmpeg's command line decodes, turned as it turns them."""
    flags = "flags=bilinear+accurate_rnd+full_chroma_int"
    command = ["ffmpeg", "-nostdin", "-loglevel", "quiet", "-i", f"file:{os.path.abspath(path)}"]
    command += ["-vsync", "passthrough", "-vf", f"scale={width}:{height}:{flags},format=rgb24", "-f", "rawvideo", "-"]
    data = subprocess.run(command, capture_output=True).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)


MATRICES = {
    "hflip": (-1, 0, 0, 1),
    "vflip": (1, 0, 0, -1),
    "turned_90": (0, 1, -1, 0),
    "turned_180": (-1, 0, 0, -1),
    "turned_270": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "transversed": (0, -1, -1, 0),
}


def _matrices(folder: Path) -> None:
    for name, matrix in MATRICES.items():
        write_matrix(folder / "h264.mp4", folder / f"{name}.mp4", *matrix)
    write_matrix(folder / "vp9.mp4", folder / "hflip_vp9.mp4", -1, 0, 0, 1)


def _several_streams(folder: Path) -> None:
    small = ["-f", "lavfi", "-i", "color=red:s=64x48:r=15:d=2"]
    large = ["-f", "lavfi", "-i", "testsrc2=s=160x120:r=15:d=2"]
    sound = ["-f", "lavfi", "-i", "sine=d=4"]
    both = ["-map", "0", "-map", "1"]
    second = ["-disposition:v:0", "0", "-disposition:v:1", "default"]
    first = ["-disposition:v:0", "default", "-disposition:v:1", "0"]
    run(*small, *large, *both, *_VP9.split(), *second, folder / "second_default.webm")
    run(*small, *large, *both, *_VP9.split(), *first, folder / "first_default.webm")
    run(*small, *large, *both, *_X264.split(), folder / "two.mp4")
    run(*small, *large, *both, *_X264.split(), folder / "two.ts")
    run(*small, *large, *both, *_X264.split(), folder / "two.avi")
    run(*large, *sound, *_X264.split(), "-c:a", "aac", folder / "sound.mp4")
    cover = run("-f", "lavfi", "-i", "color=blue:s=300x300", "-frames:v", "1", "-f", "mjpeg", "-")
    (folder / "cover.jpg").write_bytes(cover)
    attached = ["-map", "0", "-map", "1", "-c", "copy", "-disposition:v:1", "attached_pic"]
    run("-i", folder / "h264.mp4", "-i", folder / "cover.jpg", *attached, folder / "cover.mp4")
    run("-i", folder / "h264.mkv", "-attach", folder / "cover.jpg", "-metadata:s:t", "mimetype=image/jpeg",
        "-c", "copy", folder / "cover.mkv")  # fmt: skip
    (folder / "cover.jpg").unlink()


def _cuts(folder: Path) -> None:
    run("-itsoffset", "-1", "-i", folder / "vp9.webm", "-c", "copy", "-avoid_negative_ts", "disabled",
        folder / "negative.mkv")  # fmt: skip
    run("-itsoffset", "-1", "-i", folder / "h264.mkv", "-c", "copy", "-avoid_negative_ts", "disabled",
        folder / "negative_h264.mkv")  # fmt: skip
    run("-ss", "1.3", "-i", folder / "h264.mp4", "-c", "copy", folder / "edit_list.mp4")
    run("-ss", "1.3", "-i", folder / "vp9.mp4", "-c", "copy", folder / "edit_list_vp9.mp4")
    run("-ss", "1.1", "-i", folder / "h264_open.mp4", "-c", "copy", folder / "open_cut.mkv")
    run("-ss", "1.1", "-i", folder / "hevc.mkv", "-c", "copy", folder / "hevc_cut.mkv")
    for name in ("h264.ts", "hevc.ts", "mpeg2.ts", "mpeg2.vob", "mpeg2.mpg"):
        data = (folder / name).read_bytes()
        unit = 188 if name.endswith("ts") else 2048
        stem, extension = name.split(".")
        (folder / f"{stem}_late_start.{extension}").write_bytes(data[len(data) // 3 // unit * unit :])
    whole = (folder / "h264.ts").read_bytes()
    (folder / "joined.ts").write_bytes(whole * 2)
    (folder / "joined_late.ts").write_bytes(whole + (folder / "h264_late_start.ts").read_bytes())
    mpeg2 = (folder / "mpeg2.vob").read_bytes()
    (folder / "joined.vob").write_bytes(mpeg2 * 2)


GROUPS: tuple[Callable[[Path], None], ...] = (_matrices, _several_streams, _cuts)


def make_all(folder: Path) -> list[Path]:
    """Every file, in ``folder``."""
    for name, options in PLAIN.items():
        make(folder / name, options)
    for group in GROUPS:
        group(folder)
    return sorted(folder.iterdir())
