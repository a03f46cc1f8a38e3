"""The same clips from every path, bit for bit: DALI, PyAV, the frame cache and tar shards, for every kind of file."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from aim_fast.data import Augmentation, ClipLoader, Index, Sampling, load_or_build_index
from aim_fast.data.copies.frame_cache import load_or_build_frame_cache
from aim_fast.data.copies.shard import write_shards
from aim_fast.data.video.decode import decode_frames
from aim_fast.data.video.picture import CONVERSION

pytestmark = pytest.mark.stack

pytest.importorskip("nvidia.dali")


def every_frame(path: str) -> np.ndarray:
    """A whole decode from the start, frame after frame, as a player shows them."""
    with av.open(path) as container:
        frames = list(container.decode(video=0))
        options = {"format": "rgb24", "src_colorspace": "ITU601", "interpolation": CONVERSION}
        turns = round(frames[0].rotation / 90)
        return np.stack([np.rot90(frame.reformat(**options).to_ndarray(), turns) for frame in frames])


def clips(index: Index, train: bool, **options) -> dict[str, torch.Tensor]:
    """uint8 [views, T, S, S, 3] by the clip's id, all batches of an epoch."""
    loader = ClipLoader(
        index, train=train, batch_size=4, img_size=40, sampling=Sampling(5, interval=3), workers=2,
        augmentation=Augmentation(flip=0.5) if train else None, seed=3, **options,
    )  # fmt: skip
    found = {}
    for batch in loader.batches(1):
        for number, frames, weight in zip(batch.indices.tolist(), batch.frames, batch.weights.tolist()):
            if weight:
                found[index.rows[number].id] = frames
    loader.close()
    assert not loader.counts.failed
    assert not loader.router.avoided  # nothing that DALI takes was left to PyAV after a failure
    return found


def check_paths(index: Index, tmp_path: Path) -> None:
    for row in index.rows:
        whole = every_frame(row.path)
        assert row.frames == len(whole), row.path
        numbers = np.unique(np.linspace(0, len(whole) - 1, 5).round().astype(int))
        assert np.array_equal(decode_frames(row.path, numbers, rotate=True), whole[numbers]), row.path
    cache = load_or_build_frame_cache(index, tmp_path / "cache", short_side=0)
    assert len(cache.entries) == len(index)
    for train in (True, False):
        expected = clips(index, train, decoder="pyav")
        for options in ({"decoder": "cpu"}, {"cache": cache}):
            found = clips(index, train, **options)
            assert found.keys() == expected.keys()
            for name, frames in expected.items():
                assert torch.equal(found[name], frames), (name, options)


def test_every_kind_of_file_gives_one_set_of_clips(class_folders, every_kind, tmp_path):
    root = class_folders({"train/a": list(every_kind.values()), "val/a": [every_kind["vp9"]]})
    index = load_or_build_index("folder", root, "train")
    assert not index.broken, index.summary()
    assert {row.codec for row in index.rows} >= {"vp8", "vp9", "mjpeg", "h264", "hevc", "mpeg4"}
    assert any(row.rotation for row in index.rows)
    by_name = dict(zip(every_kind, index.rows))
    assert by_name["h264_cut"].frames < by_name["h264"].frames
    assert by_name["vp9_cut"].frames < by_name["vp9_gop"].frames
    check_paths(index, tmp_path)


def test_shards_give_the_evaluation_clips_of_the_files(class_folders, every_kind, tmp_path):
    root = class_folders({"train/a": list(every_kind.values()), "val/a": [every_kind["vp9"]]})
    index = load_or_build_index("folder", root, "train")
    write_shards([index, load_or_build_index("folder", root, "validation")], tmp_path / "shards")
    tars = load_or_build_index("webdataset", tmp_path / "shards", "train")
    files = clips(index, False)
    for decoder in ("cpu", "pyav"):
        members = clips(tars, False, decoder=decoder)
        assert len(members) == len(files) == len(index)
        theirs = sorted(frames.numpy().tobytes() for frames in members.values())
        assert theirs == sorted(frames.numpy().tobytes() for frames in files.values())


def test_real_clips_give_one_set_of_clips(class_folders, shared_videos, tmp_path):
    root = class_folders({"train/a": list(shared_videos.values()), "val/a": [shared_videos["short_h264"]]})
    check_paths(load_or_build_index("folder", root, "train"), tmp_path)
