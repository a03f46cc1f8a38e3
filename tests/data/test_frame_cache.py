"""Cached frames give the batches that decoding gives, survive interruptions, and keep to their budget."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from aim_fast.data import Augmentation, ClipLoader, Sampling, load_or_build_index
from aim_fast.data.copies import frame_cache as module
from aim_fast.data.copies.frame_cache import load_or_build_frame_cache
from aim_fast.errors import DataError, UsageError

KINDS = ("vp9", "vp9_other", "vp8", "h264", "mpeg4")


@pytest.fixture
def index(class_folders, videos, rotated):
    root = class_folders({"train/a": [*(videos[kind] for kind in KINDS), rotated]})
    return load_or_build_index("folder", root, "train")


def batches(index, cache=None, **options) -> list[torch.Tensor]:
    options = {"train": True, "augmentation": Augmentation(flip=0.5), **options}
    if not options["train"]:
        options["augmentation"] = None
    loader = ClipLoader(index, batch_size=3, img_size=32, sampling=Sampling(4), cache=cache, workers=2, **options)
    frames = [batch.frames for epoch in range(2) for batch in loader.batches(epoch)]
    loader.close()
    return frames


@pytest.mark.parametrize("options", [{}, {"train": False}, {"augmentation": Augmentation(randaug=(2, 7))}])
def test_a_raw_cache_gives_the_batches_of_decoding_bit_for_bit(index, options, tmp_path):
    cache = load_or_build_frame_cache(index, tmp_path)
    assert all(number in cache for number in range(len(index)))
    decoded = batches(index, **options)
    for path in Path(index.root).rglob("*"):  # nothing of the videos but their size and time is looked at any more
        if path.is_file() and path.suffix in (".webm", ".mp4", ".avi"):
            state = path.stat()
            path.write_bytes(bytes(state.st_size))
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    cached = batches(index, cache, **options)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(cached, decoded, strict=True))


def test_a_jpeg_cache_is_close_and_smaller(index, tmp_path):
    raw, jpeg = (load_or_build_frame_cache(index, tmp_path, kind=kind) for kind in ("raw", "jpeg"))
    for ours, theirs in zip(batches(index, jpeg), batches(index, raw), strict=True):
        assert 0 < (ours.float() - theirs.float()).abs().mean() < 2
    sizes = [sum(path.stat().st_size for path in tmp_path.glob(f"{kind}-*/train/*.bin")) for kind in ("raw", "jpeg")]
    assert sizes[1] < sizes[0] / 2


def test_frames_above_the_short_side_are_shrunk_to_it(index, tmp_path):
    cache = load_or_build_frame_cache(index, tmp_path, short_side=48)
    sizes = {(entry.height, entry.width) for entry in cache.entries.values()}
    assert all(min(size) == 48 for size in sizes)
    assert (64, 48) in sizes  # the rotated one, upright


def test_an_interrupted_cache_goes_on_with_what_is_missing(index, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_CLIPS", 2)
    calls = []

    def stop(done: int, total: int) -> None:
        calls.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_or_build_frame_cache(index, tmp_path, workers=1, progress=stop)
    calls.clear()
    cache = load_or_build_frame_cache(index, tmp_path, workers=1, progress=lambda done, total: calls.append(total))
    assert len(cache.entries) == len(index)
    assert calls == [4] * 4  # the first shard of two was finished
    calls.clear()
    load_or_build_frame_cache(index, tmp_path, progress=lambda done, total: calls.append(total))
    assert not calls
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_a_changed_file_is_cached_anew(index, videos, tmp_path):
    load_or_build_frame_cache(index, tmp_path)
    path = index.rows[0].path
    shutil.copy(videos["vp9_gop"], path)
    again = load_or_build_index("folder", index.root, "train")
    calls = []
    cache = load_or_build_frame_cache(again, tmp_path, progress=lambda done, total: calls.append(total))
    assert calls == [1]
    decoded = batches(again)
    assert all(torch.equal(*pair) for pair in zip(batches(again, cache), decoded, strict=True))


def test_clips_beyond_the_budget_are_decoded(index, tmp_path):
    row = index.rows[0]
    budget = row.frames * row.height * row.width * 3 + 10
    cache = load_or_build_frame_cache(index, tmp_path, max_bytes=budget)
    assert list(cache.entries) == [0]
    assert "5 beyond the budget" in cache.description
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.bin")) <= budget
    decoded = batches(index)
    assert all(torch.equal(*pair) for pair in zip(batches(index, cache), decoded, strict=True))


def test_too_little_room_is_said_before_anything_is_decoded(index, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DataError, match="needs about .* are free"):
        load_or_build_frame_cache(index, tmp_path)
    assert not list(tmp_path.rglob("*.bin"))


def test_damaged_manifests_are_made_again_and_unknown_kinds_refused(index, tmp_path):
    load_or_build_frame_cache(index, tmp_path)
    (manifest,) = tmp_path.rglob("*.json")
    assert len(json.loads(manifest.read_text())) == len(index)
    manifest.write_text("[{")
    cache = load_or_build_frame_cache(index, tmp_path)
    assert len(cache.entries) == len(index)
    with pytest.raises(UsageError, match="raw, jpeg"):
        load_or_build_frame_cache(index, tmp_path, kind="png")
    frames = cache.box(0, module.ClipPlan(np.array([0]), np.array([0]), (0, 0, 1, 1)), 16)
    assert frames.shape == (1, 16, 16, 3)
