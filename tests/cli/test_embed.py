"""`aim-fast embed` and `aim-fast search`: vectors of any videos, the same bytes however they came to be written."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from aim_fast import create_model
from aim_fast.data import Sampling, load_views
from aim_fast.data.features.vectors import read_part
from aim_fast.data.windows import Length, read_windows
from aim_fast.files import claimed
from aim_fast.models.loading import load_weights


@pytest.fixture(scope="module")
def folder(motion_set, tmp_path_factory) -> Path:
    """Ten videos in two folders, one of them within the other, and what is none."""
    root = tmp_path_factory.mktemp("films") / "films"
    (root / "inside").mkdir(parents=True)
    for number, path in enumerate(sorted(motion_set.rglob("*.webm"))[:10]):
        shutil.copy(path, root / ("inside" if number > 6 else "") / f"film{number}.webm")
    (root / "notes.txt").write_text("no list of videos\n")
    return root


@pytest.fixture
def model(trunk) -> tuple:
    return ("--model", "aim_vit_demo", "--weights", trunk, "--frames", 4, "--precision", "fp32", "--quiet")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def written(folder: Path):
    header = json.loads((folder / "embed.json").read_text())
    return header, [v for n in range(header["files"]) for v in read_part(folder, header["format"], n)]


def demo(trunk):
    network = create_model("aim_vit_demo", num_frames=4, num_classes=1).eval()
    load_weights(network, str(trunk))
    return network


@torch.inference_mode()
def test_every_format_holds_what_the_classifier_reads(aim_fast, model, folder, trunk, tmp_path):
    pytest.importorskip("pyarrow", reason="Parquet's package is not here")
    network = demo(trunk)
    paths = sorted(folder.glob("*.webm")) + sorted((folder / "inside").glob("*.webm"))
    views = torch.cat([torch.as_tensor(load_views(path, Sampling(4), network.img_size)) for path in paths])
    expected = network.forward_features(views).mean(1).numpy()
    for form in ("safetensors", "npz", "parquet", "npy"):
        out = tmp_path / form
        status, _, err = aim_fast("embed", folder, *model, "--format", form, "--per-file", 4, "--output", out)
        assert status == 0, err
        header, videos = written(out)
        assert [video.video for video in videos] == [str(path) for path in paths]
        assert np.allclose(np.concatenate([video.vectors for video in videos]), expected, atol=1e-5)
        assert header["input_dim"] == expected.shape[1]
    assert np.load(tmp_path / "npy" / "film8.npy").shape == (1, expected.shape[1])


@torch.inference_mode()
def test_windows_and_frames_stand_on_the_grid_that_detectors_read(aim_fast, model, folder, trunk, tmp_path):
    network, video = demo(trunk), folder / "film3.webm"
    options = ("--window", 8, "--stride", 3, "--format", "npy", "--output", tmp_path / "w")
    status, _, err = aim_fast("embed", video, *model, *options)
    assert status == 0, err
    header, (found,) = written(tmp_path / "w")
    assert (header["feat_stride"], header["num_frames"], header["offset_frames"]) == (3, 8, 4)
    lengths = {"seconds": Length(8, "frames"), "stride": Length(3, "frames")}
    windows = list(read_windows(video, Sampling(4), network.img_size, aligned=True, **lengths))
    expected = network.forward_features(torch.stack([window.frames for window in windows])).mean(1).numpy()
    assert np.allclose(np.load(tmp_path / "w" / "film3.npy"), expected, atol=1e-5)
    assert found.moments.first.tolist() == list(range(0, 3 * len(expected), 3))
    assert np.allclose(found.moments.start, found.moments.first / found.rate)
    frames = sum(1 for _ in read_windows(video, Sampling(1, 1), 8, stride=Length(1, "frames")))
    assert found.moments.last[-1] == frames - 1

    status, _, err = aim_fast("embed", video, *model, "--per", "frame", "--output", tmp_path / "f")
    assert status == 0, err
    _, (each,) = written(tmp_path / "f")
    assert each.moments.first.tolist() == each.moments.last.tolist() == list(range(frames))
    (first, *_) = read_windows(video, Sampling(4, 1), network.img_size, stride=Length(4, "frames"))
    assert np.allclose(each.vectors[:4], network.forward_features(first.frames[None])[0].numpy(), atol=1e-5)


def test_what_is_missing_is_written_again_to_the_bit_beside_another_process(aim_fast, model, folder, tmp_path):
    out, options = tmp_path / "out", ("--stride", 4, "--window", 8, "--per-file", 3)
    arguments = ("embed", folder, *model, *options, "--output", out)
    assert aim_fast(*arguments)[0] == 0
    whole = contents(out)
    parts = sorted(out.glob("part-*"))
    assert len(parts) == 4
    for path in parts[1:]:
        path.unlink()

    def other() -> None:  # has part 2, and is slow
        with claimed(out / ".aim-fast" / "part-00002.lock") as mine:
            assert mine
            began.set()
            while not parts[3].exists():
                time.sleep(0.01)
            parts[2].write_bytes(whole[parts[2].name])

    began = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    assert began.wait(10)
    status, _, err = aim_fast(*arguments)
    thread.join()
    assert status == 0, err
    assert contents(out) == whole
    status, _, err = aim_fast(*arguments[:-1], out, "--stride", 2)
    assert (status, err.count("\n")) == (2, 1)
    assert "holds other vectors (stride 4 frames, not 2 frames" in err


def test_videos_that_cannot_be_read_are_named_and_the_others_written(aim_fast, model, folder, tmp_path):
    bad, listed = tmp_path / "bad.mp4", tmp_path / "mine.csv"
    bad.write_bytes(b"no video")
    listed.write_text(f"path\n{folder}/film1.webm\nbad.mp4\ngone.mp4\n")
    for more in ((), ("--per", "window")):
        out = tmp_path / f"out{len(more)}"
        status, _, err = aim_fast("embed", listed, *model, *more, "--output", out)
        assert status == 2
        assert sorted(line.split()[2] for line in err.splitlines() if "error" in line) == [
            str(tmp_path / name) for name in ("bad.mp4", "gone.mp4")
        ]
        assert [video.video for video in written(out)[1] if not video.error] == [str(folder / "film1.webm")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--format", "npy", "--window", "1s"), "without s"),
        (("--window", "4x"), "give frames, such as 16, or seconds, such as 0.5s"),
        (("--per", "clip", "--stride", "4"), "is of --per window"),
        (("--per", "frame", "--stride", "1s"), "is a number of frames"),
        (("--split", "test"), "--split is of a data set"),
        (("--run", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line_and_nothing_is_written(options, said, aim_fast, model, folder, tmp_path):
    chosen = () if "--run" in options else model
    status, _, err = aim_fast("embed", folder, *chosen, *options, "--output", tmp_path / "out")
    assert (status, err.count("\n")) == (2, 1)
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_clip_finds_itself_and_a_run_is_opened_as_it_was(aim_fast, trained, model, folder, trunk, tmp_path):
    out, video = tmp_path / "out", folder / "film2.webm"
    assert aim_fast("embed", folder, "--run", trained, "--quiet", "--output", out)[0] == 0
    status, printed, err = aim_fast("search", out, video, "--top-k", 3, "--json")
    assert status == 0, err
    found = json.loads(printed)
    assert found[0]["video"] == str(video)
    assert found[0]["score"] == pytest.approx(1, abs=1e-4)
    assert [row["score"] for row in found] == sorted((row["score"] for row in found), reverse=True)
    assert "whole video" in aim_fast("search", out, video)[1]
    for arguments, said in (
        ((out, "--text", "a ball"), "has no text tower"),
        ((out,), "give a video or --text"),
        ((out, tmp_path / "gone.mp4"), "does not exist"),
        ((folder, video), "holds no vectors"),
    ):
        status, _, err = aim_fast("search", *arguments)
        assert (status, err.count("\n")) == (2, 1)
        assert said in err
    other = tmp_path / "other.safetensors"
    torch.manual_seed(1)
    from aim_fast.models.loading import save_trunk

    save_trunk(create_model("aim_vit_demo"), other)
    assert aim_fast("embed", folder, *model, "--output", tmp_path / "v")[0] == 0
    status, _, err = aim_fast("search", tmp_path / "v", video, "--weights", other)
    assert (status, err.strip().count("\n")) == (2, 0)
    assert "of another model" in err
    (tmp_path / "v" / "part-00000.safetensors").unlink()
    assert "1 of 1 files of vectors are missing" in aim_fast("search", tmp_path / "v", video)[2]


def test_words_find_clips_of_a_trunk_with_a_text_tower(aim_fast, folder, towers, tmp_path):
    model = ("--trunk", "vit_demo", "--head", "text", "--weights", towers, "--frames", 4, "--quiet")
    out = tmp_path / "out"
    status, _, err = aim_fast("embed", folder, *model, "--window", 8, "--output", out)
    assert status == 0, err
    status, printed, err = aim_fast("search", out, "--text", "a ball rolls to the left", "--top-k", 2)
    assert status == 0, err
    assert len(printed.splitlines()) == 2
    assert " s  " in printed
