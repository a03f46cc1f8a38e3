"""`aim-fast predict --timeline`: class probabilities over time."""

import itertools
import json
from pathlib import Path

import av
import pytest


def joined(videos: list[Path], path: Path) -> Path:
    """The frames of several videos, one after the other, in one file."""
    with av.open(str(path), "w") as container:
        stream = None
        for video in videos:
            with av.open(str(video)) as source:
                for frame in source.decode(video=0):
                    if stream is None:
                        stream = container.add_stream("libvpx-vp9", rate=source.streams.video[0].average_rate)
                        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
                    picture = frame.to_ndarray(format="rgb24")
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_a_timeline_has_every_window_as_json_and_a_plot(aim_fast, trained, motion_set, tmp_path):
    video = joined(sorted(motion_set.rglob("*.webm"))[:3], tmp_path / "long.webm")
    folder = tmp_path / "timelines"
    status, out, err = aim_fast("predict", trained, video, "--timeline", folder, "--window", 1, "--stride", 0.25)
    assert status == 0, err
    content = json.loads((folder / "long.webm.json").read_text())
    assert content["windows"][0]["start"] == 0
    assert all(sum(window["probabilities"]) == pytest.approx(1, abs=1e-3) for window in content["windows"])
    starts = [window["start"] for window in content["windows"]]
    assert starts == sorted(starts)
    segments = content["segments"]
    assert segments[0]["start"] == content["windows"][0]["start"]
    assert segments[-1]["end"] == content["windows"][-1]["end"]
    assert all(a["end"] == b["start"] for a, b in itertools.pairwise(segments))
    assert (folder / "long.webm.png").stat().st_size > 5000
    assert f"{len(content['windows'])} windows" in out


def test_a_window_of_the_whole_video_predicts_as_predict_does(aim_fast, trained, motion_set, tmp_path):
    video = sorted(motion_set.rglob("*.webm"))[0]
    _, out, _ = aim_fast("predict", trained, video, "--json", "--precision", "fp32", "--top-k", 1)
    best = json.loads(out)[0]["predictions"][0]
    status, out, _ = aim_fast(
        "predict", trained, video, "--timeline", tmp_path, "--window", 60, "--json", "--precision", "fp32"
    )
    assert status == 0
    (segment,) = json.loads(out)[0]["segments"]
    assert segment["label"] == best["label"]
    assert segment["probability"] == pytest.approx(best["probability"], abs=1e-4)


def test_unreadable_files_are_named_and_the_others_done(aim_fast, trained, motion_set, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    good = sorted(motion_set.rglob("*.webm"))[0]
    status, _, err = aim_fast("predict", trained, bad, good, "--timeline", tmp_path / "t")
    assert (status, err.count("\n")) == (2, 1)
    assert str(bad) in err
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == [f"{good.name}.json", f"{good.name}.png"]
    status, _, err = aim_fast("predict", trained, good, "--window", 3)
    assert status == 2
    assert "--timeline" in err
