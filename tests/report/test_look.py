"""What ``look`` says of a data set: copies made by FFmpeg are found, others not; names are text; faults are named."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from aim_fast.data.index.near_copies import near_copies
from tests.data.conftest import videos, write_video  # noqa: F401

FFMPEG = shutil.which("ffmpeg")
COPIES = {
    "encoded.mp4": ["-c:v", "libx264", "-crf", "34"],
    "small.avi": ["-vf", "scale=80:-2", "-c:v", "mpeg4"],
    "trimmed.mp4": ["-ss", "0.7", "-t", "2.5", "-c:v", "libx264"],
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """Two classes of two clips to train by; copies of one of each to validate by, and a broken file."""
    root = tmp_path_factory.mktemp("copied") / "data set"
    for folder in ("train/<b>", "train/a & b", "val/<b>", "val/a & b"):
        (root / folder).mkdir(parents=True)
    first = write_video(root / "train/<b>/one.mp4", "libx264", frames=60, seed=1)
    write_video(root / "train/<b>/two.mp4", "libx264", frames=60, seed=2)
    write_video(root / "train/a & b/three.mp4", "libx264", frames=60, seed=3)
    write_video(root / "val/a & b/four.mp4", "libx264", frames=60, seed=4)
    for name, options in COPIES.items():
        target = root / "val/<b>" / name
        subprocess.run([FFMPEG, "-loglevel", "error", "-i", first, "-an", *options, target], check=True)
    (root / "train/a & b/broken.mp4").write_bytes(b"no video")
    return root


@pytest.mark.skipif(FFMPEG is None, reason="FFmpeg is not installed")
def test_a_look_finds_copies_across_splits_and_what_is_broken(copied, tmp_path, aim_fast):
    page, table = tmp_path / "look.html", tmp_path / "look.json"
    status, out, err = aim_fast("look", "--data-root", copied, "--output", page, "--json", table, "--workers", 2)
    assert status == 0, err
    assert "taken for --dataset folder" in err
    found = json.loads(table.read_text())
    across = [pair for pair in found["near_copies"] if pair["across_splits"]]
    assert {pair["files"][1].rpartition("/")[2] for pair in across} == set(COPIES)
    assert {pair["files"][0].rpartition("/")[2] for pair in across} == {"one.mp4"}
    assert all("two.mp4" not in str(pair["files"]) for pair in found["near_copies"])
    assert [fault["file"].rpartition("/")[2] for fault in found["faults"]] == ["broken.mp4"]
    assert found["classes"] == [{"class": "<b>", "train": 2, "validation": 3},
                                {"class": "a & b", "train": 1, "validation": 1}]  # fmt: skip
    train = found["splits"][0]
    assert (train["clips"], train["usable"], train["rates"], train["sizes"]) == (4, 3, {"12": 3}, {"128x96": 3})
    assert train["seconds"]["median"] == 5
    assert "3 across splits" in out
    text = page.read_text()
    assert "<h3>&lt;b&gt;</h3>" in text
    assert text.count("data:image/jpeg;base64,") == 7
    assert "http" not in text.replace("data:image", "")


def test_what_cannot_be_looked_at_is_one_line(tmp_path, aim_fast):
    (tmp_path / "notes.txt").write_text("nothing here\n")
    for options, said in (
        (["--data-root", tmp_path], "is no data set that is known here: give --dataset NAME"),
        (["--data-root", tmp_path / "none"], "does not exist"),
        ([], "no data set: give --dataset NAME"),
        (["--data-root", tmp_path, "--output", tmp_path / "no" / "look.html"], "cannot be written"),
    ):
        status, _, err = aim_fast("look", *options)
        assert status == 2
        assert said in err
        assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_copies_are_found_among_many_clips_in_far_less_than_all_pairs():
    random = np.random.default_rng(0)
    clips = [random.integers(0, 1 << 63, 12, dtype=np.uint64) for _ in range(3000)]
    for place in range(0, 300, 3):  # of which each frame has a bit or two turned, and one in four is another
        noise = np.uint64(1) << random.integers(0, 63, 12, dtype=np.uint64)
        clips[place + 1] = clips[place] ^ noise
        clips[place + 1][::4] = random.integers(0, 1 << 63, 3, dtype=np.uint64)
    found = near_copies(clips)
    assert {(copy.first, copy.second) for copy in found} == {(place, place + 1) for place in range(0, 300, 3)}


def test_a_title_that_all_clips_share_makes_no_copies_of_them():
    random = np.random.default_rng(0)
    title = np.uint64(0x5A5A5A5A5A5A5A5)
    clips = [np.append(random.integers(0, 1 << 63, 9, dtype=np.uint64), title) for _ in range(2000)]
    assert near_copies(clips) == []
    assert near_copies([np.empty(0, np.uint64)] * 3) == []
