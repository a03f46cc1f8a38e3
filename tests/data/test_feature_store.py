"""Stored features: what is written is read, an interrupted writer goes on, other features are refused."""

import dataclasses
import json
import shutil

import pytest
import torch

from aim_fast.data import ClipLoader, Sampling, load_or_build_index
from aim_fast.data.features.loader import FeatureLoader
from aim_fast.data.features.store import FeatureSource, FeatureStore, write_features
from aim_fast.errors import DataError, UsageError
from tests.gpu.under_way import comes_before_the_work_under_way

SOURCE = FeatureSource("frame features", "ab" * 32, 4, 0, 32, "gelu", (1.0, 2.0, 3.0), (1.0, 1.0, 1.0))
SAMPLING = Sampling(4, clips=3, random=True)


@pytest.fixture(scope="module")
def index(motion_set):
    return load_or_build_index("ssv2", motion_set, "train")


@pytest.fixture(scope="module")
def loader(index):
    loader = ClipLoader(index, train=False, batch_size=7, img_size=32, sampling=SAMPLING, decoder="pyav", seed=5)
    yield loader
    loader.close()


def means(frames):
    """Features of a clip: the mean colour of each frame, [B, T, 3]."""
    return frames.float().mean((2, 3)) / 255


def write(folder, loader, **options):
    return write_features(folder, SOURCE, loader, means, **{"dtype": "float32", "shard_bytes": 1500, **options})


@pytest.fixture(scope="module")
def folder(loader, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features") / "train"
    assert write(folder, loader) == 0
    return folder


@pytest.fixture(scope="module")
def truth(loader):
    """Features by (row, view)."""
    found = {}
    for batch in loader.batches():
        for row, view, weight, feature in zip(batch.indices, batch.views, batch.weights, means(batch.frames)):
            if weight:
                found[int(row), int(view)] = feature
    return found


def test_every_view_of_every_clip_is_read_back(folder, index, truth):
    assert len(list(folder.glob("shard-*"))) == 4  # 40 clips, 10 a shard
    store = FeatureStore(folder)
    assert (store.source, store.views, store.shape) == (SOURCE, 3, (4, 3))
    batches = list(FeatureLoader(index, store, train=False, batch_size=9).batches())
    got = {}
    for batch in batches:
        for row, view, weight, feature in zip(batch.indices, batch.views, batch.weights, batch.frames):
            if weight:
                assert index.rows[row].label == batch.labels[batch.indices.tolist().index(int(row))]
                got[int(row), int(view)] = feature
    assert got.keys() == truth.keys()
    assert all(torch.equal(got[key], truth[key]) for key in truth)


def test_random_views_differ_and_repeat_with_the_seed(truth):
    assert any(not torch.equal(truth[row, 0], truth[row, 1]) for row in range(40))


def test_training_takes_each_clip_once_and_other_views_in_other_epochs(folder, index, truth):
    loader = FeatureLoader(index, FeatureStore(folder), train=True, batch_size=16, seed=3)

    def epoch(number):
        rows, features = [], []
        for batch in loader.batches(number):
            kept = batch.weights > 0
            rows += batch.indices[kept].tolist()
            features += list(batch.frames[kept])
        return rows, features

    (rows, features), (again, same), (others, _) = epoch(0), epoch(0), epoch(1)
    assert sorted(rows) == list(range(40))
    assert rows == again != others
    assert all(map(torch.equal, features, same))
    views = [next(v for v in range(3) if torch.equal(truth[row, v], f)) for row, f in zip(rows, features)]
    assert set(views) == {0, 1, 2}
    tail = [batch.indices.tolist() for batch in loader.batches(0, start=1)]
    assert tail == [batch.indices.tolist() for batch in loader.batches(0)][1:]


def test_two_processes_share_what_one_would_read(folder, index):
    store = FeatureStore(folder)

    def first(rank, world, size):
        loader = FeatureLoader(index, store, train=True, batch_size=size, rank=rank, world=world)
        return next(loader.batches(2)).indices.tolist()

    assert first(0, 2, 4) + first(1, 2, 4) == first(0, 1, 8)


def test_a_part_of_the_clips_under_other_labels_finds_its_features(folder, index, truth):
    part = dataclasses.replace(index, rows=[dataclasses.replace(row, label=0) for row in index.rows[5:9]])
    batch = next(FeatureLoader(part, FeatureStore(folder), train=False, batch_size=12).batches())
    assert batch.labels.tolist() == [0] * 12
    assert torch.equal(batch.frames[4], truth[6, 1])


def test_an_interrupted_writer_goes_on_after_its_last_shard(loader, folder, tmp_path):
    seen = 0

    def stop_in_the_third_shard(frames):
        nonlocal seen
        seen += len(frames)
        if seen > 75:
            raise KeyboardInterrupt
        return means(frames)

    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path, SOURCE, loader, stop_in_the_third_shard, dtype="float32", shard_bytes=1500)
    assert len(list(tmp_path.glob("shard-*"))) == 2
    with pytest.raises(DataError, match="2 of 4 shards of features are missing"):
        FeatureStore(tmp_path)
    assert write(tmp_path, loader) == 20
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    assert write(tmp_path, loader) == 40  # nothing left to do


def test_a_folder_of_other_features_is_not_written_into(folder, loader, tmp_path):
    other = dataclasses.replace(SOURCE, trunk_sha256="cd" * 32, num_frames=8)
    with pytest.raises(UsageError, match=r"trunk SHA-256 abababababab…, not cdcdcdcdcdcd…; frames 4, not 8"):
        write_features(folder, other, loader, means, dtype="float32")
    with pytest.raises(UsageError, match="dtype float32, not float16"):
        write(folder, loader, dtype="float16")
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(UsageError, match="holds no features"):
        write(tmp_path, loader)


def test_too_little_disk_is_said_before_anything_is_kept(loader, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DataError, match="the features need 0.0 GiB and 0.0 GiB are free; take a larger disk"):
        write(tmp_path / "f", loader)
    assert not list((tmp_path / "f").iterdir())


def test_features_beyond_the_dtype_are_refused(loader, tmp_path):
    with pytest.raises(DataError, match="do not fit into torch.float16: give --dtype bfloat16"):
        write_features(tmp_path / "f", SOURCE, loader, lambda frames: means(frames) * 1e6, dtype="float16")


def test_clips_that_changed_or_were_never_stored_are_named(folder, index):
    changed = dataclasses.replace(index.rows[3], size=index.rows[3].size + 1)
    other = dataclasses.replace(index, rows=[*index.rows[:3], changed])
    with pytest.raises(DataError, match=f"no features of 1 of 4 clips.*first {changed.path}"):
        FeatureLoader(other, FeatureStore(folder), train=True, batch_size=2)


def test_a_clip_without_features_is_replaced_in_training_and_left_out_of_scores(folder, index):
    broken = dataclasses.replace(index.rows[0], error="is cut off")
    part = dataclasses.replace(index, rows=[broken, *index.rows[1:4]])
    train = FeatureLoader(part, FeatureStore(folder), train=True, batch_size=4)
    assert 0 not in next(train.batches()).indices.tolist()
    assert train.counts.replaced == 1
    assert FeatureLoader(part, FeatureStore(folder), train=False, batch_size=4).clips_per_epoch == 9


def test_a_damaged_store_says_what_to_do(folder, tmp_path):
    with pytest.raises(DataError, match="holds no features; write them with aim-fast features"):
        FeatureStore(tmp_path)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "shard-00001.safetensors").write_bytes(b"\x08")
    with pytest.raises(DataError, match="shard-00001.safetensors: is damaged"):
        FeatureStore(tmp_path)
    header = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**header, "version": 9}))
    with pytest.raises(DataError, match="version 9"):
        FeatureStore(tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_do_not_wait_for_the_steps_before_them(index, folder):
    loader = FeatureLoader(index, FeatureStore(folder), train=True, batch_size=4, device="cuda")
    assert comes_before_the_work_under_way(lambda: next(loader.batches(1)))
    loader.close()
