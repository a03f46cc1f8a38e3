"""One process at a time builds what several share, and whoever waited does nothing again."""

import threading
import time

import pytest
import torch

from aim_fast.data import ClipLoader, load_or_build_index
from aim_fast.data.copies import frame_cache as frame_cache_module
from aim_fast.data.copies.frame_cache import load_or_build_frame_cache
from aim_fast.data.copies.shard import write_shards
from aim_fast.data.copies.transcode import transcode
from aim_fast.data.index import indexing as indexing_module
from aim_fast.data.video.encode import Encoding


@pytest.fixture
def root(class_folders, videos):
    return class_folders({"train/a": [videos["vp9"], videos["vp8"], videos["h264"]], "val/a": [videos["vp9_other"]]})


class Second(threading.Thread):
    """Does the same work as the first in a thread of its own, begun while the first is in the middle of it."""

    def __init__(self, work):
        super().__init__()
        self.work, self.result, self.ended_early = work, None, None

    def run(self):
        self.result = self.work()

    def begin(self):
        if self.ended_early is None:
            self.start()
            time.sleep(0.5)
            self.ended_early = not self.is_alive()

    def finish(self):
        self.join(60)
        assert self.ended_early is False
        return self.result


def test_two_that_cache_frames_into_one_folder_mix_nothing(root, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_cache_module, "SHARD_CLIPS", 1)
    index = load_or_build_index("folder", root, "train")
    again = []
    second = Second(lambda: load_or_build_frame_cache(index, tmp_path, progress=lambda *done: again.append(done)))
    first = load_or_build_frame_cache(index, tmp_path, workers=1, progress=lambda done, total: second.begin())
    assert not again
    options = {"train": True, "batch_size": 3, "img_size": 32, "num_frames": 4, "workers": 1}
    frames = []
    for cache in (None, first, second.finish()):
        loader = ClipLoader(index, cache=cache, **options)
        frames.append(next(iter(loader.batches())).frames)
        loader.close()
    assert torch.equal(frames[0], frames[1])
    assert torch.equal(frames[0], frames[2])


def test_two_that_scan_one_split_scan_it_once(root, monkeypatch):
    real, scans = indexing_module.scan, []
    second = Second(lambda: load_or_build_index("folder", root, "train"))

    def scan(paths, **options):
        scans.append(len(paths))
        second.begin()
        return real(paths, **options)

    monkeypatch.setattr(indexing_module, "scan", scan)
    index = load_or_build_index("folder", root, "train")
    assert second.finish().rows == index.rows
    assert scans == [3]


def test_two_that_write_shards_into_one_folder_write_each_once(root, tmp_path):
    indices = [load_or_build_index("folder", root, split) for split in ("train", "validation")]
    output = tmp_path / "shards"
    second = Second(lambda: write_shards(indices, output, shard_bytes=20_000, workers=1))
    first = write_shards(indices, output, shard_bytes=20_000, workers=1, progress=lambda done, total: second.begin())
    times = {path: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    assert second.finish() == first
    assert {path: path.stat().st_mtime_ns for path in output.glob("*.tar")} == times


def test_two_that_transcode_into_one_folder_encode_each_once(root, tmp_path):
    output, encoded = tmp_path / "new", []
    encoding = Encoding(short_side=64)
    second = Second(
        lambda: transcode("folder", root, output, encoding, workers=1, progress=lambda *d: encoded.append(d))
    )
    first = transcode("folder", root, output, encoding, workers=1, progress=lambda done, total: second.begin())
    assert second.finish().bytes_after == first.bytes_after
    assert not encoded
