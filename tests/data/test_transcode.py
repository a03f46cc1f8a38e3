"""Transcoding: the same data set comes out, in files that decode fast, whatever interrupts it."""

from __future__ import annotations

import json
import os
import shutil
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from aim_fast.data import load_or_build_index, read_dataset
from aim_fast.data.copies import transcode as module
from aim_fast.data.copies.transcode import REPORT, transcode
from aim_fast.data.index import indexing
from aim_fast.data.video import encode
from aim_fast.data.video.decode import decode_frames
from aim_fast.data.video.encode import Encoding, encode_file
from aim_fast.data.video.probe import probe
from aim_fast.errors import DataError, UsageError

SMALL = Encoding(short_side=64, gop=8)


def packets(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize(("codec", "suffix"), [("h264", ".mp4"), ("vp9", ".webm")])
@pytest.mark.parametrize("kind", ["h264", "vp9_altref", "mpeg4", "mjpeg"])
def test_a_file_keeps_its_frames_and_gets_plain_timestamps_and_close_key_frames(videos, tmp_path, kind, codec, suffix):
    target = tmp_path / f"out{suffix}"
    whole = probe(str(videos[kind]))
    found = encode_file(str(videos[kind]), str(target), Encoding(96, 8, codec, 12), whole.frames)
    assert (found.frames, found.height, found.width) == (whole.frames, whole.height, whole.width)
    assert (found.codec, found.pixel_format) == (codec, "yuv420p")
    shown = packets(target)
    assert [number for number, packet in enumerate(shown) if packet.is_keyframe] == list(range(0, whole.frames, 8))
    assert shown[0].pts == 0
    assert [packet.pts for packet in shown] == sorted({packet.pts for packet in shown})
    assert [packet.pts for packet in shown] == [packet.dts for packet in shown]
    numbers = np.arange(0, whole.frames, 5)
    before, after = (decode_frames(str(path), numbers).astype(int) for path in (videos[kind], target))
    assert np.abs(before - after).mean() < 6  # the texture is noise: blocks of 8 with hard edges
    assert np.abs((before - after).mean((0, 1, 2))).max() < 1  # no shift of colours or range
    nearest = [int(np.abs(before - frame).mean((1, 2, 3)).argmin()) for frame in after]
    assert nearest == list(range(len(numbers)))  # each is the frame that it was


def test_sizes_are_even_shrink_to_the_short_side_and_never_grow():
    encoding = Encoding(short_side=256)
    assert encoding.size(1080, 1920) == (256, 456)
    assert encoding.size(1920, 1080) == (456, 256)
    assert encoding.size(240, 427) == (240, 426)
    assert encoding.size(96, 171) == (96, 170)
    assert encoding.size(256, 340) == (256, 340)


def test_a_rotated_file_comes_out_upright(rotated, tmp_path):
    found = encode_file(
        str(rotated), str(tmp_path / "out.mp4"), Encoding(96, 8, "h264", 12), probe(str(rotated)).frames
    )
    assert (found.height, found.width, found.rotation) == (128, 96, 0)
    before = decode_frames(str(rotated), [0, 30], rotate=True).astype(int)
    after = decode_frames(str(tmp_path / "out.mp4"), [0, 30])
    assert np.abs(before - after).mean() < 10  # of half the colour resolution, halved in the other direction
    for wrong in (after[:, ::-1, ::-1], after[:, ::-1], after[:, :, ::-1]):
        assert np.abs(before - wrong).mean() > 40


def test_uneven_times_from_below_zero_come_out_from_zero_with_their_gaps(tmp_path):
    source = tmp_path / "vfr.mkv"
    times = [0, 1, 2, 10, 11, 30, 31, 32, 33, 60]
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        for number, pts in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 25 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 90 + pts, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    encode_file(str(source), str(tmp_path / "out.mp4"), SMALL, len(times))
    seconds = [float(packet.pts * packet.time_base) for packet in packets(tmp_path / "out.mp4")]
    assert seconds == pytest.approx([pts / 30 for pts in times], abs=2e-3)


def test_a_frame_that_is_lost_on_the_way_is_no_success(videos, tmp_path):
    with pytest.raises(DataError, match="has 60 frames instead of 61"):
        encode_file(str(videos["h264"]), str(tmp_path / "out.mp4"), SMALL, 61)
    assert list(tmp_path.iterdir()) == []


def same(dataset: str, before: Path, after: Path, split: str) -> None:
    """Both folders list the same clips under the same classes, in the same order."""
    one, two = (read_dataset(dataset, root, split) for root in (before, after))
    assert one.classes == two.classes
    assert [clip.label for clip in one.clips] == [clip.label for clip in two.clips]
    assert [Path(clip.id).stem for clip in one.clips] == [Path(clip.id).stem for clip in two.clips]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kinetics400", {"folders": "underscores", "csv": "annotations/{}.csv"}),
        ("diving48", {}),
        ("ucf101", {}),
        ("hmdb51", {}),
        ("jester", {}),
    ],
)
def test_the_output_is_the_same_data_set_with_its_index(official, tmp_path, monkeypatch, name, options):
    root, output = official(name, **options), tmp_path / "out"
    gone = read_dataset(name, root, "train").clips[2]
    shutil.rmtree(gone.path) if Path(gone.path).is_dir() else Path(gone.path).unlink()
    report = transcode(name, root, output, SMALL, workers=2)
    monkeypatch.setattr(indexing, "scan", lambda *_, **__: pytest.fail("scanned"))
    for split in ("train", "validation", "test"):
        if split == "test" and name == "kinetics400":
            continue
        same(name, root, output, split)
        index = load_or_build_index(name, output, split)
        assert len(index.missing) == (split == "train")
        assert {row.codec for row in index.rows if row.healthy} == {"h264"}
        assert {min(row.height, row.width) for row in index.rows if row.healthy} == {64}
    assert report.skipped == {gone.path: "missing"}
    assert report.files == len(list(output.rglob("*.mp4")))
    assert json.loads((output / REPORT).read_text())["bytes_after"] == sum(
        path.stat().st_size for path in output.rglob("*.mp4")
    )
    if name == "ucf101":
        same("ucf101-split3", root, output, "train")


def test_ssv2_with_annotations_beside_the_root(ssv2, videos, tmp_path):
    root = ssv2([videos["vp9"], videos["h264"], videos["vp9_other"]], prefix="something-something-v2-")
    inner = root / "20bn-something-something-v2"
    transcode("ssv2", inner, tmp_path / "out", SMALL, workers=2)
    for split in ("train", "validation", "test"):
        same("ssv2", inner, tmp_path / "out", split)


def test_class_folders_without_splits_keep_their_division_without_a_broken_file(
    class_folders, videos, broken, tmp_path
):
    root = class_folders({"walk": [videos["vp9"]] * 9 + [broken["text"]], "jump": [videos["vp9_other"]] * 5})
    output = tmp_path / "out"
    transcode("folder", root, output, SMALL, workers=2)
    for split in ("train", "validation"):
        before = load_or_build_index("folder", root, split)
        after = load_or_build_index("folder", output, split)
        assert [Path(before.rows[i].id).stem for i in before.healthy] == [Path(row.id).stem for row in after.rows]


def test_lists_are_written_anew_for_their_new_names(videos, tmp_path):
    root = tmp_path / "lists"
    (root / "a b").mkdir(parents=True)
    shutil.copy(videos["vp9"], root / "a b" / "one, two.webm")
    shutil.copy(videos["h264"], root / "a b" / "one, two.mp4")
    outside = videos["mpeg4"]
    (root / "train.txt").write_text(f"a b/one, two.webm playing guitar\n{outside},jump\n")
    (root / "val.txt").write_text("path,label\na b/one, two.mp4 playing guitar\nnone.mp4 jump\n")
    transcode("list", root, tmp_path / "out", SMALL, workers=2)
    train, validation = (load_or_build_index("list", tmp_path / "out", split) for split in ("train", "validation"))
    assert train.classes == ["jump", "playing guitar"]
    assert [(row.label, row.frames) for row in train.rows] == [(1, 30), (0, 40)]
    assert [(row.label, row.frames) for row in validation.rows] == [(1, 60), (0, 0)]
    assert all(row.path.startswith(str(tmp_path / "out")) for row in (*train.rows, *validation.rows))


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Sources in the order in which they were handed to a worker."""
    asked: list[str] = []
    real = module.Worker.ask

    def ask(self, message, seconds):
        if isinstance(message, dict):  # a scan's message is a path
            asked.append(message["source"])
        return real(self, message, seconds)

    monkeypatch.setattr(module.Worker, "ask", ask)
    return asked


def test_the_same_command_goes_on_and_does_again_only_what_changed(class_folders, videos, tmp_path, counted):
    root = class_folders({"train/a": [videos["vp9"], videos["h264"]], "val/a": [videos["vp9_other"]]})
    output = tmp_path / "out"
    seen = []

    def stop(done, total):
        seen.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transcode("folder", root, output, SMALL, workers=1, progress=stop)
    assert seen == [(1, 3)]
    assert not list(output.rglob("*.part"))
    with open(output / ".aim-fast" / "transcode.jsonl", "a") as journal:
        journal.write('{"target": "train/a/00.mp')  # a kill in the middle of a line
    first = transcode("folder", root, output, SMALL, workers=1)
    assert sorted(counted) == sorted(map(str, root.rglob("0*.*")))
    again = transcode("folder", root, output, SMALL, workers=1)
    assert len(counted) == 3
    assert (again.files, again.bytes_after, again.frames) == (first.files, first.bytes_after, first.frames)
    shutil.copy(videos["vp9_gop"], root / "train" / "a" / "00.webm")
    (output / "val" / "a" / "00.mp4").unlink()
    last = transcode("folder", root, output, SMALL, workers=1)
    assert sorted(counted[3:]) == [str(root / "train/a/00.webm"), str(root / "val/a/00.webm")]
    assert last.frames == first.frames + 10


def test_a_source_that_breaks_on_the_way_is_named_and_the_rest_is_done(class_folders, videos, tmp_path):
    root = class_folders({"train/a": [videos["vp9"], videos["h264"]], "val/a": [videos["vp9_other"]]})
    for split in ("train", "validation"):
        load_or_build_index("folder", root, split)
    victim = root / "train" / "a" / "01.mp4"
    state = victim.stat()
    data = victim.read_bytes()
    victim.write_bytes(bytes(len(data)))
    os.utime(victim, ns=(state.st_atime_ns, state.st_mtime_ns))
    report = transcode("folder", root, tmp_path / "out", SMALL, workers=1)
    assert list(report.failed) == [str(victim)]
    assert str(victim) in report.failed[str(victim)]
    assert report.files == 2


def test_too_little_disk_is_said_after_a_few_files_and_a_full_disk_keeps_what_is_done(
    class_folders, videos, tmp_path, monkeypatch
):
    root = class_folders({"train/a": [videos["vp9"]] * 9, "val/a": [videos["vp9_other"]] * 3})
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**6, used=10**6, free=1000))
        with pytest.raises(DataError, match=r"the other 4 videos need about 0\.0 GiB and 0\.0 GiB are free"):
            transcode("folder", root, output, SMALL, workers=2)
    assert len(list(output.rglob("*.mp4"))) == 8
    with monkeypatch.context() as patch:
        patch.setattr(module.Worker, "ask", lambda *_: {"error": encode.DISK_FULL})
        with pytest.raises(DataError, match=r"the disk is full after 8 of 12 videos; free space and run the same"):
            transcode("folder", root, output, SMALL, workers=2)
    assert transcode("folder", root, output, SMALL, workers=2).files == 12


def test_what_cannot_be_is_refused_before_any_work(class_folders, videos, tmp_path):
    root = class_folders({"train/a": [videos["vp9"]], "val/a": [videos["vp9_other"]]})
    output = tmp_path / "out"
    transcode("folder", root, output, SMALL, workers=1)
    with pytest.raises(UsageError, match=r"begun with other settings \(gop: 8 -> 12\); give another --output"):
        transcode("folder", root, output, Encoding(short_side=64, gop=12), workers=1)
    for inside in (root, root / "out", root.parent):
        with pytest.raises(UsageError, match="within each other"):
            transcode("folder", root, inside, SMALL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match=r"not empty and was not begun"):
        transcode("folder", root, tmp_path / "full", SMALL)
    with pytest.raises(UsageError, match="shards are not transcoded"):
        transcode("webdataset", root, tmp_path / "new", SMALL)
    assert not (tmp_path / "new").exists()


def test_the_command_reports_and_its_output_trains(aim_fast, motion_set, trunk, tmp_path):
    output, run = tmp_path / "small", tmp_path / "run"
    command = ("transcode", "--dataset", "ssv2", "--data-root", motion_set, "--output", output, "--short-side", 32,
               "--codec", "vp9")  # fmt: skip
    status, out, err = aim_fast(*command)
    assert status == 0, err
    assert "56 videos" in out
    assert "clips/s before" in out
    assert json.loads((output / "transcode.json").read_text())["files"] == 56
    options = ("--dataset", "ssv2", "--data-root", output, "--weights", trunk, "--model", "aim_vit_demo",
               "--frames", 4, "--epochs", 1, "--output", run, "--quiet")  # fmt: skip
    assert aim_fast("train", *options)[0] == 0
    assert "did you mean 'h264'" in aim_fast(*command[:-1], "h265")[2]
