"""Small real videos of every kind that the tests need, encoded once a session."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

SHARED_VIDEOS = Path(__file__).parents[3] / "shared" / "videos"


def write_video(
    path: Path,
    codec: str,
    *,
    frames: int = 24,
    width: int = 128,
    height: int = 96,
    rate: int = 12,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """A panning random texture with a bright square that moves at another pace, so that every frame differs."""
    random = np.random.default_rng(seed)
    texture = random.integers(0, 256, (height // 8 + 16, width // 8 + 16, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    defaults = {"libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"}, "libvpx": {"deadline": "realtime"}}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={**defaults.get(codec, {}), **(options or {})})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        for i in range(frames):
            image = texture[i % 97 : i % 97 + height, 2 * i % 89 : 2 * i % 89 + width].copy()
            left = 5 * i % (width - 20)
            image[20:40, left : left + 20] = (255, 9 * i % 256, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path) -> Path:
    """A second of a tone, no video stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        wave = (8000 * np.sin(np.arange(16000) / 20)).astype(np.int16)[None]
        sound = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    return path


def write_rotated(source: Path, path: Path) -> Path:
    """``source``, an mp4, with the display matrix of a phone held upright: shown turned by 90° clockwise."""
    data = bytearray(source.read_bytes())
    box = data.index(b"tkhd")
    matrix = box + 4 + 40  # version and flags, times, ids, duration, reserved, layer, group, volume (version 0)
    for i, value in enumerate((0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)):
        data[matrix + 4 * i : matrix + 4 * i + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(bytes(data))
    return path


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Healthy files by kind."""
    folder = tmp_path_factory.mktemp("videos")
    bframes = {"g": "12", "bf": "2", "preset": "ultrafast", "sc_threshold": "0"}
    return {
        "vp9": write_video(folder / "a.webm", "libvpx-vp9", frames=30, width=171),
        "vp9_other": write_video(folder / "b.webm", "libvpx-vp9", frames=23, width=160, height=98, seed=1),
        "vp9_gop": write_video(folder / "c.webm", "libvpx-vp9", frames=40, seed=2, options={"g": "8"}),
        "vp9_altref": write_video(
            folder / "d.webm",
            "libvpx-vp9",
            frames=40,
            options={"deadline": "good", "lag-in-frames": "16", "auto-alt-ref": "1"},
        ),
        "vp8": write_video(folder / "e.webm", "libvpx"),
        "mjpeg": write_video(folder / "f.avi", "mjpeg", pixel_format="yuvj420p"),
        "h264": write_video(folder / "g.mp4", "libx264", frames=60, options=bframes),
        "h264_long": write_video(folder / "h.mp4", "libx264", frames=60, options={**bframes, "g": "250"}, seed=3),
        "mpeg4": write_video(folder / "i.avi", "mpeg4", frames=40, options={"bf": "2", "g": "12"}),
    }


@pytest.fixture(scope="session")
def broken(videos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files that cannot be used, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("broken")
    whole = videos["vp9"].read_bytes()
    moved = folder / "fast.mp4"
    with av.open(str(videos["h264"])) as source, av.open(str(moved), "w", options={"movflags": "faststart"}) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    files = {
        "empty": (folder / "empty.webm", b""),
        "text": (folder / "text.webm", b"This is no video.\n" * 100),
        "truncated": (folder / "truncated.webm", whole[: len(whole) * 2 // 3]),
        "truncated_mp4": (folder / "truncated.mp4", moved.read_bytes()[: moved.stat().st_size * 2 // 3]),
        "truncated_avi": (
            folder / "truncated.avi",
            videos["mpeg4"].read_bytes()[: -videos["mpeg4"].stat().st_size // 3],
        ),
    }
    for path, data in files.values():
        path.write_bytes(data)
    return {
        **{kind: path for kind, (path, _) in files.items()},
        "audio": write_audio(folder / "audio.mp4"),
        "one_frame": write_video(folder / "one.webm", "libvpx-vp9", frames=1),
    }


@pytest.fixture(scope="session")
def rotated(videos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The "h264" file, shown turned by 90° clockwise."""
    return write_rotated(videos["h264"], tmp_path_factory.mktemp("rotated") / "rotated.mp4")


def write_uneven(source: Path, path: Path) -> Path:
    """``source`` copied packet by packet with a variable frame rate: later frames come at growing distances."""
    with av.open(str(source)) as original, av.open(str(path), "w") as copy:
        stream = copy.add_stream_from_template(original.streams.video[0])
        packets = [packet for packet in original.demux(video=0) if packet.dts is not None]
        step = max(packets[1].dts - packets[0].dts, 1)
        for packet in packets:
            for name in ("pts", "dts"):
                place = round(getattr(packet, name) / step)
                setattr(packet, name, round((place + place * abs(place) / 40) * step))
            packet.stream = stream
            copy.mux(packet)
    return path


def write_cut(source: Path, path: Path, start: int) -> Path:
    """A stream copy of ``source`` shown from packet ``start`` on: what comes before it has pts < 0."""
    with av.open(str(source)) as original, av.open(str(path), "w") as copy:
        stream = copy.add_stream_from_template(original.streams.video[0])
        packets = [packet for packet in original.demux(video=0) if packet.dts is not None]
        zero = packets[start].pts
        for packet in packets:
            packet.pts -= zero
            packet.dts -= zero
            packet.stream = stream
            copy.mux(packet)
    return path


@pytest.fixture(scope="session")
def every_kind(videos: dict[str, Path], rotated: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every codec, B-frames, odd and mixed widths, variable rate, frames before time zero, and turned files."""
    folder = tmp_path_factory.mktemp("kinds")
    bframes = {"g": "12", "bf": "3", "preset": "ultrafast"}
    quiet = {"x265-params": "log-level=none:bframes=3:keyint=12", "preset": "ultrafast"}
    made = {
        **videos,
        "h264_odd": write_video(
            folder / "odd.mp4", "libx264", width=131, height=97, pixel_format="yuv444p", options=bframes
        ),
        "h264_wide": write_video(folder / "wide.mp4", "libx264", width=142, options=bframes, seed=5),
        "h264_narrow": write_video(folder / "narrow.mp4", "libx264", width=138, options=bframes, seed=6),
        "hevc": write_video(folder / "hevc.mp4", "libx265", options=quiet, width=160, height=128),
        "vp9_444": write_video(folder / "full.webm", "libvpx-vp9", pixel_format="yuv444p", seed=7),
        "vp9_wide": write_video(folder / "wide.webm", "libvpx-vp9", width=174, seed=8),
        "rotated": rotated,
        "h264_uneven": write_uneven(videos["h264"], folder / "uneven.mp4"),
        "vp9_uneven": write_uneven(videos["vp9"], folder / "uneven.webm"),
        "h264_cut": write_cut(videos["h264"], folder / "cut.mp4", 24),
        "vp9_cut": write_cut(videos["vp9_gop"], folder / "cut_vp9.mp4", 10),
    }
    turned = write_cut(videos["vp9"], folder / "upright.mp4", 0)
    made["vp9_rotated"] = write_rotated(turned, folder / "turned_vp9.mp4")
    if "libsvtav1" in av.codecs_available:
        made["av1"] = write_video(folder / "av1.mp4", "libsvtav1", options={"preset": "12"})
    return made


@pytest.fixture
def class_folders(tmp_path: Path) -> Callable[..., Path]:
    """Make a data root of class folders from {"train/jump": [files], ...}."""

    def make(tree: dict[str, list[Path]]) -> Path:
        root = tmp_path / "data"
        for folder, files in tree.items():
            (root / folder).mkdir(parents=True)
            for number, file in enumerate(files):
                shutil.copy2(file, root / folder / f"{number:02d}{file.suffix}")
        return root

    return make


@pytest.fixture
def ssv2(tmp_path: Path) -> Callable[..., Path]:
    """Make a data root in Something-Something v2's layout; videos are copies of the files given."""

    def make(
        files: list[Path], *, prefix: str = "", annotations: str = ".", videos: str = "20bn-something-something-v2"
    ) -> Path:
        root = tmp_path / "ssv2"
        labels, folder = root / annotations, root / videos
        labels.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        templates = ["Pushing something from left to right", "Dropping something"]
        bracketed = ["Pushing [something] from left to right", "Dropping [something]"]
        entries = []
        for number, file in enumerate(files):
            shutil.copy2(file, folder / f"{1000 + number}{file.suffix}")
            template = bracketed[number % 2]
            entries.append({"id": str(1000 + number), "label": "pushing a cup", "template": template})
        tables = {
            "labels": {template: str(i) for i, template in enumerate(templates)},
            "train": entries,
            "validation": entries[:2],
            "test": [{"id": entry["id"]} for entry in entries[:3]],
        }
        for name, table in tables.items():
            (labels / f"{prefix}{name}.json").write_text(json.dumps(table))
        return root

    return make


@pytest.fixture
def shared_videos() -> dict[str, Path]:
    """Real clips of the project's shared folder."""
    if not SHARED_VIDEOS.is_dir():
        pytest.skip(f"{SHARED_VIDEOS} is not there: real clips are not tested")
    return {path.stem: path for path in sorted(SHARED_VIDEOS.rglob("*")) if path.is_file()}


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """Files that users have, beside the repository."""
    folder = SHARED_VIDEOS.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: files that users have are not tested")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def official(tmp_path: Path, videos: dict[str, Path]) -> Callable[..., Path]:
    """Make a miniature of a data set in its official layout: two classes, two training clips and one test clip each."""

    def make(name: str, **options) -> Path:
        root = tmp_path / name.partition("-")[0]
        root.mkdir()
        LAYOUTS[root.name.rstrip("0123456789")](root, videos, **options)
        return root

    return make


def _put(video: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(video, path)


def _kinetics(root: Path, videos: dict[str, Path], folders: str = "spaces", csv: str = "{}.csv") -> None:
    names = {"train": "train", "val": "val"}
    for split in names:
        lines = ["label,youtube_id,time_start,time_end,split,is_cc"]
        for number in range(4 if split == "train" else 2):
            label = ("playing guitar", "air drumming")[number % 2]
            identity = f"-{split}_x{number:04d}"[:11]
            lines.append(f'"{label}",{identity},{5 + number},{15 + number},{split},0')
            folder = {"spaces": f"{split}/{label}", "underscores": f"{split}/{label.replace(' ', '_')}", "flat": split}
            _put(videos["h264"], root / folder[folders] / f"{identity}_{5 + number:06d}_{15 + number:06d}.mp4")
        path = root / csv.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def _diving(root: Path, videos: dict[str, Path], prefix: str = "Diving48_V2_", folder: str = "rgb") -> None:
    vocabulary = [["Back", "15som", "05Twis", "FREE"], ["Forward", "25som", "PIKE"]]
    (root / (f"{prefix[:9]}vocab.json" if prefix else "vocab.json")).write_text(json.dumps(vocabulary))
    for split, first, count in (("train", 0, 4), ("test", 4, 2)):
        entries = []
        for number in range(first, first + count):
            name = f"bXFQo-QPK9A_{number:05d}"
            entries.append({"vid_name": name, "label": number % 2, "start_frame": 0, "end_frame": 60})
            _put(videos["h264"], root / folder / f"{name}.mp4")
        (root / f"{prefix}{split}.json").write_text(json.dumps(entries))


def _ucf(root: Path, videos: dict[str, Path], lists: str = "ucfTrainTestlist", folder: str = "UCF-101") -> None:
    (root / lists).mkdir(parents=True, exist_ok=True)
    classes = ["HandstandPushups", "JumpRope"]  # the files of the first are named HandStand…
    (root / lists / "classInd.txt").write_text("".join(f"{i} {name}\r\n" for i, name in enumerate(classes, start=1)))
    for split in (1, 2, 3):
        train, test = [], []
        for number, name in enumerate(classes, start=1):
            for group in (1, 2, 3):
                file = f"{name}/v_{name.replace('stand', 'Stand')}_g{group:02d}_c01.avi"
                _put(videos["mpeg4"], root / folder / file)
                (test if group == split else train).append(file + f" {number}" * (group != split))
        (root / lists / f"trainlist0{split}.txt").write_text("\n".join(train) + "\n")
        (root / lists / f"testlist0{split}.txt").write_text("\n".join(test) + "\n")


def _hmdb(root: Path, videos: dict[str, Path], lists: str = "testTrainMulti_7030_splits", folder: str = ".") -> None:
    (root / lists).mkdir(parents=True, exist_ok=True)
    for name in ("brush_hair", "wave"):
        files = [f"#20_(best)_{name}_u_nm_np1_ba_goo_{number};x.avi" for number in range(4)]
        for file in files:
            _put(videos["mpeg4"], root / folder / name / file)
        for split in (1, 2, 3):
            flags = [2 if number == split - 1 else 0 if number == 3 else 1 for number in range(4)]
            lines = (f"{file} {flag} " for file, flag in zip(files, flags))
            (root / lists / f"{name}_test_split{split}.txt").write_text("\n".join(lines) + "\n")


def write_pictures(folder: Path, frames: int = 12, width: int = 132, height: int = 100, seed: int = 0) -> Path:
    """A folder of numbered JPEGs in which every picture differs."""
    folder.mkdir(parents=True)
    texture = np.random.default_rng(seed).integers(0, 256, (height // 4 + 8, width // 4 + 8, 3), dtype=np.uint8)
    for i in range(frames):
        image = texture.repeat(4, 0).repeat(4, 1)[i : i + height, 2 * i : 2 * i + width]
        Image.fromarray(image).save(folder / f"{i + 1:05d}.jpg", quality=90)
    return folder


def _twentybn(root: Path, prefix: str, videos: str, labels: list[str], newer: bool) -> None:
    splits = {"train": range(4), "validation": range(4, 6), "test": range(6, 7)}
    for number in range(7):
        write_pictures(root / videos / str(number + 1), seed=number)
    for split, numbers in splits.items():
        rows = [f"{n + 1}" + (f";{labels[n % 2]}" if split != "test" else "") for n in numbers]
        if newer:
            rows = ["video_id,label,frames,label_id,shape,format"] + [
                f'{n + 1},{labels[n % 2] if split != "test" else ""},12,{n % 2},"(100, 132)",jpg' for n in numbers
            ]
        name = f"{split.capitalize()}.csv" if newer else f"{prefix}-{split}.csv"
        (root / name).write_text("\n".join(rows) + "\n")
    (root / ("labels.csv" if newer else f"{prefix}-labels.csv")).write_text("\n".join(labels) + "\n")


def _ssv(root: Path, _videos: dict[str, Path]) -> None:
    labels = ["Holding something next to something", "Turning something upside down, slowly"]
    _twentybn(root, "something-something-v1", "20bn-something-something-v1", labels, newer=False)


def _jester(root: Path, _videos: dict[str, Path], newer: bool = False) -> None:
    _twentybn(root, "jester-v1", "20bn-jester-v1", ["Swiping Left", "Stop Sign"], newer)


LAYOUTS = {"kinetics": _kinetics, "diving": _diving, "ucf": _ucf, "hmdb": _hmdb, "ssv": _ssv, "jester": _jester}
