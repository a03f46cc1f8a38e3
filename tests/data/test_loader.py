"""The loader: which clips come when, the same from every decoder, and what happens to broken files."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aim_fast.data import Augmentation, Batch, ClipLoader, Index, Sampling, load_or_build_index
from aim_fast.data import loader as loading
from aim_fast.data.pixels import route as routing
from aim_fast.data.video.decode import decode_frames
from aim_fast.errors import DataError, UsageError

FULL = Augmentation(flip=0.5, randaug=(4, 7), color_jitter=0.1, erasing=0.5)


@pytest.fixture(scope="module")
def index(videos, broken, tmp_path_factory) -> Index:
    """Eleven clips of three classes and seven kinds, one of them truncated; never changed by a test."""
    root = tmp_path_factory.mktemp("loader")
    tree = {
        "a": ["vp9", "vp9_other", "vp9_gop", "h264"],
        "b": ["vp8", "mjpeg", "mpeg4", "vp9"],
        "c": ["vp9_altref", "h264_long"],
    }
    for name, kinds in tree.items():
        (root / "train" / name).mkdir(parents=True)
        for kind in kinds:
            shutil.copy2(videos[kind], root / "train" / name / f"{kind}{videos[kind].suffix}")
    shutil.copy2(broken["truncated"], root / "train" / "c")
    return load_or_build_index("folder", root, "train")


@pytest.fixture
def own_index(class_folders, videos) -> Index:
    """Six VP9 clips whose files a test may change."""
    root = class_folders({"train/a": [videos["vp9"]] * 3, "train/b": [videos["vp9_other"]] * 3})
    return load_or_build_index("folder", root, "train")


@pytest.fixture
def make():
    """Make loaders that are closed at the end."""
    made: list[ClipLoader] = []

    def loader(index: Index, **options) -> ClipLoader:
        options = {"train": True, "batch_size": 4, "num_frames": 4, "img_size": 48, "workers": 2} | options
        made.append(ClipLoader(index, **options))
        return made[-1]

    yield loader
    for loader_ in made:
        loader_.close()


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("frames", "labels", "indices", "weights", "views"))


def test_batches_have_the_contracts_shapes_and_types(make, index):
    batch = next(make(index).batches())
    assert batch.frames.shape == (4, 4, 48, 48, 3)
    assert [getattr(batch, n).dtype for n in ("frames", "labels", "indices", "weights", "views")] == [
        torch.uint8,
        torch.int64,
        torch.int64,
        torch.float32,
        torch.int64,
    ]
    assert batch.labels.tolist() == [index.rows[i].label for i in batch.indices]
    assert len(batch) == 4


@pytest.mark.parametrize("augmentation", [None, FULL], ids=["crop", "full"])
def test_dali_and_pyav_give_the_same_bits(make, index, augmentation):
    auto, pyav = (make(index, augmentation=augmentation, decoder=d) for d in ("auto", "pyav"))
    assert "by DALI on the cpu" in auto.decoding
    assert "DALI" not in pyav.decoding
    for a, b in zip(auto.batches(1), pyav.batches(1), strict=True):
        assert same(a, b)


def test_evaluation_takes_the_frames_that_the_plan_says(make, videos, class_folders):
    root = class_folders({"train/a": [videos["h264"]], "train/b": [videos["vp9"]]})
    loader = make(
        load_or_build_index("folder", root, "train"),
        train=False,
        num_frames=None,
        sampling=Sampling(3),
        img_size=96,
        batch_size=2,
    )
    (batch,) = loader.batches()
    for frames, kind, numbers, left in (
        (batch.frames[0], "h264", [10, 29, 49], 16),
        (batch.frames[1], "vp9", [5, 14, 24], 37),
    ):
        expected = decode_frames(str(videos[kind]), numbers)[:, :, left : left + 96]
        assert torch.equal(frames, torch.from_numpy(expected))


@pytest.mark.parametrize("start", [0, 1, 2])
def test_starting_late_gives_the_rest_of_the_epoch(make, index, start):
    loader = make(index, augmentation=FULL)
    whole = list(loader.batches(2))
    assert len(whole) == loader.batches_per_epoch == 3
    rest = list(make(index, augmentation=FULL).batches(2, start=start))
    assert len(rest) == 3 - start
    assert all(same(a, b) for a, b in zip(whole[start:], rest))
    assert all(same(a, b) for a, b in zip(whole[start:], loader.batches(2, start=start)))  # and without a new loader


@pytest.mark.parametrize("train", [True, False])
def test_two_processes_of_four_see_what_one_of_eight_sees(make, index, train):
    options = {"train": train, "augmentation": FULL if train else None}
    if not train:
        options |= {"sampling": Sampling(4, crops=3), "num_frames": None}
    one = make(index, batch_size=8, **options)
    two = [make(index, batch_size=4, rank=rank, world=2, **options) for rank in (0, 1)]
    assert one.batches_per_epoch == two[0].batches_per_epoch == two[1].batches_per_epoch
    for whole, first, second in zip(one.batches(1), two[0].batches(1), two[1].batches(1), strict=True):
        for name in ("frames", "labels", "indices", "weights", "views"):
            halves = torch.cat([getattr(first, name), getattr(second, name)])
            assert torch.equal(getattr(whole, name), halves)


@pytest.mark.parametrize("world", [3, 4])
def test_uneven_ends_are_dealt_exactly(make, index, world):
    """Eleven clips over three or four processes of two: as many batches each, every clip once, the rest of weight 0."""
    loaders = [make(index, batch_size=2, rank=rank, world=world) for rank in range(world)]
    shares = [list(loader.batches(3)) for loader in loaders]
    assert len({len(share) for share in shares}) == 1
    (one,) = {loader.batches_per_epoch for loader in loaders}
    assert len(shares[0]) == one == -(-11 // (2 * world))
    order = torch.cat([torch.cat([share[n].indices for share in shares]) for n in range(one)])
    weights = torch.cat([torch.cat([share[n].weights for share in shares]) for n in range(one)])
    assert weights.tolist() == [1.0] * 11 + [0.0] * (one * 2 * world - 11)
    alone = list(make(index, batch_size=11).batches(3))
    assert torch.equal(order[:11], alone[0].indices)


def test_each_clip_counts_once_an_epoch_and_epochs_differ(make, own_index):
    loader = make(own_index, batch_size=4)
    orders = []
    for epoch in (0, 1):
        batches = list(loader.batches(epoch))
        indices, weights = (torch.cat([getattr(b, n) for b in batches]) for n in ("indices", "weights"))
        assert sorted(indices[weights == 1].tolist()) == list(range(6))
        assert weights.tolist() == [1.0] * 6 + [0.0] * 2
        orders.append(indices.tolist())
    assert orders[0] != orders[1]


def test_evaluation_scores_every_view_of_every_healthy_clip_once(make, index):
    loader = make(index, train=False, sampling=Sampling(4, interval=2, clips=2, crops=3), num_frames=None)
    seen = Counter()
    for batch in loader.batches():
        for i, view, weight in zip(batch.indices.tolist(), batch.views.tolist(), batch.weights.tolist()):
            seen[i, view] += weight
    assert loader.clips_per_epoch == 60
    assert seen == {(i, view): 1.0 for i in index.healthy.tolist() for view in range(6)}
    assert loader.counts.broken == 1


def test_a_broken_clip_is_replaced_in_training_by_a_drawn_one(make, index):
    bad = index.rows.index(index.broken[0])
    loader = make(index, batch_size=11)
    chosen = set()
    for epoch in range(4):
        (batch,) = loader.batches(epoch)
        expected = Counter(index.healthy.tolist()) + Counter([loader.replacement(bad, epoch)])
        assert Counter(batch.indices.tolist()) == expected
        assert batch.weights.sum() == 11
        chosen.add(loader.replacement(bad, epoch))
    assert loader.counts.replaced == 4
    assert len(chosen) > 1


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_a_file_that_broke_since_the_scan_is_replaced_counted_and_named(make, own_index, decoder):
    loader = make(own_index, batch_size=6, decoder=decoder)
    (before,) = loader.batches(0)
    path = Path(own_index.rows[2].path)
    path.write_bytes(b"now something else" * 50)
    (after,) = loader.batches(0)
    drawn = (loader.replacement(2, 0, attempt) for attempt in range(64))
    stand_in = next(i for i in drawn if i != 2)
    for place, i in enumerate(before.indices.tolist()):
        if i == 2:
            assert after.indices[place] == stand_in
        else:
            assert torch.equal(before.frames[place], after.frames[place])
    assert loader.counts.failed == 1
    assert loader.counts.replaced == 1
    assert "cannot be decoded" in loader.counts.names[str(path)]
    path.unlink()
    (gone,) = loader.batches(0)
    assert torch.equal(gone.frames, after.frames)
    assert loader.counts.names[str(path)] == "missing"


def test_a_file_that_changed_and_is_healthy_is_used_as_it_is_now(make, own_index, videos):
    loader = make(own_index, batch_size=6)
    shutil.copy(videos["h264"], own_index.rows[2].path)  # another codec, another length
    (batch,) = loader.batches(0)
    assert 2 in batch.indices
    assert loader.counts.failed == loader.counts.replaced == 0
    named = dict(zip(batch.indices.tolist(), batch.frames))
    (again,) = make(own_index, batch_size=6, decoder="pyav").batches(0)
    assert torch.equal(named[2], again.frames[batch.indices.tolist().index(2)])


def test_garbage_that_reaches_dalis_decoder_does_not_stop_the_epoch(make, own_index, monkeypatch):
    """The file is exchanged after it was looked at: DALI fails on the batch, and the next one is made without it."""
    rows = {row.path: row for row in own_index.rows}
    loader = make(own_index, batch_size=2, augmentation=FULL)
    before = list(loader.batches(0))
    Path(own_index.rows[4].path).write_bytes(b"garbage" * 100)
    real = loading.file_state
    seen = []

    def late(path):
        if path == own_index.rows[4].path and len(seen) < 1:
            seen.append(path)
            return rows[path].size, rows[path].mtime_ns
        return real(path)

    monkeypatch.setattr(loading, "file_state", late)
    after = list(loader.batches(0))
    assert seen
    assert len(after) == 3
    for a, b in zip(before, after):
        for i, x, j, y in zip(a.indices.tolist(), a.frames, b.indices.tolist(), b.frames):
            assert j != 4
            assert i == 4 or (i == j and torch.equal(x, y))
    assert loader.counts.failed == 1


def test_a_clip_that_breaks_under_evaluation_has_weight_0(make, own_index):
    loader = make(own_index, train=False, batch_size=6)
    Path(own_index.rows[1].path).write_bytes(b"")
    (batch,) = loader.batches()
    assert batch.indices.tolist() == list(range(6))
    assert batch.weights.tolist() == [1, 0, 1, 1, 1, 1]
    assert loader.counts.failed == 1
    assert loader.counts.replaced == 0


def test_a_set_of_which_everything_broke_ends_with_one_line(make, own_index):
    loader = make(own_index)
    for row in own_index.rows:
        Path(row.path).unlink()
    with pytest.raises(DataError, match="fail to decode, the last: .*missing") as error:
        list(loader.batches())
    assert "\n" not in str(error.value)


def test_batches_are_the_callers_to_keep(make, index):
    for augmentation in (None, FULL):
        loader = make(index, augmentation=augmentation, batch_size=2)
        kept, copies = [], []
        for batch in loader.batches():
            kept.append(batch.frames)
            copies.append(batch.frames.clone())
        assert all(torch.equal(a, b) for a, b in zip(kept, copies))


def test_an_abandoned_epoch_leaves_nothing_behind(make, index):
    loader = make(index, augmentation=FULL, batch_size=2)
    expected = [batch.frames for batch in loader.batches(1)]
    left = loader.batches(0)
    next(left)
    assert all(torch.equal(a, b.frames) for a, b in zip(expected, loader.batches(1), strict=True))
    assert list(left) == []  # ended by the one that came after it


def test_batches_are_prepared_while_the_consumer_works(make, own_index):
    """After one batch is taken two are ready and a third waits, as the clips tell that were replaced in them."""
    loader = make(own_index, batch_size=1)
    rows = [batch.indices.item() for batch in loader.batches()]
    for row in rows[1:]:
        Path(own_index.rows[row].path).unlink()
    batches = loader.batches()
    next(batches)
    deadline = time.monotonic() + 20
    while loader.counts.replaced < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    assert loader.counts.replaced == 3


def test_clips_shorter_than_t_repeat_frames_and_are_counted(make, index):
    loader = make(index, num_frames=32)
    assert loader.counts.short == sum(row.frames < 32 for row in index.rows if row.healthy)
    assert next(loader.batches()).frames.shape[1] == 32
    with pytest.raises(DataError, match=r"no train clip has 61 frames, the longest has 60: use --frames 60"):
        make(index, num_frames=61)


@pytest.mark.parametrize(
    "options",
    [
        {"decoder": "nvdec"},
        {"decoder": "dali"},  # H.264 on a CPU
        {"batch_size": 0},
        {"rank": 2, "world": 2},
        {"num_frames": 8, "sampling": Sampling(4)},
    ],
)
def test_options_that_cannot_be_are_usage_errors(make, index, options):
    with pytest.raises(UsageError) as error:
        make(index, **options)
    assert "\n" not in str(error.value)


def test_without_dali_evaluation_is_the_same_and_training_says_what_to_install(make, index, monkeypatch):
    expected = list(make(index, train=False).batches())
    monkeypatch.setattr(routing, "dali_available", lambda: False)
    monkeypatch.setitem(__import__("sys").modules, "nvidia.dali", None)  # importing it would raise
    assert all(same(a, b) for a, b in zip(expected, make(index, train=False).batches(), strict=True))
    with pytest.raises(UsageError, match="DALI, which is not installed here: pip install"):
        make(index)


def test_rotated_files_come_upright(make, class_folders, videos, rotated):
    root = class_folders({"train/a": [videos["h264"], rotated]})
    loader = make(load_or_build_index("folder", root, "train"), train=False, batch_size=2)
    (batch,) = loader.batches()
    plain, turned = batch.frames.float()
    assert (torch.rot90(plain, -1, dims=(1, 2)) - turned).abs().mean() < 1


def test_unlabelled_clips_have_label_minus_one(make, ssv2, videos):
    loader = make(load_or_build_index("ssv2", ssv2([videos["vp9"]] * 3), "test"), train=False, batch_size=3)
    assert next(loader.batches()).labels.tolist() == [-1, -1, -1]


def test_the_flip_mirrors_the_whole_clip(make, own_index):
    square = Augmentation(random_resized_crop=False)
    plain, mirrored = (next(make(own_index, augmentation=replace(square, flip=p)).batches()) for p in (0.0, 1.0))
    assert torch.equal(plain.frames.flip(3), mirrored.frames)


def test_erased_boxes_hold_the_rounded_mean_in_every_frame(make, own_index):
    augmentation = Augmentation(random_resized_crop=False, erasing=1.0, fill=(1, 2, 3))
    batch = next(make(own_index, augmentation=augmentation).batches())
    filled = (batch.frames == torch.tensor([1, 2, 3], dtype=torch.uint8)).all(-1)  # [B, T, S, S]
    common = filled.all(1)
    assert all(0.015 < clip.float().mean() < 0.36 for clip in common)
    plain = next(make(own_index, augmentation=replace(augmentation, erasing=0.0)).batches())
    assert torch.equal(
        batch.frames[~common[:, None].expand_as(filled)], plain.frames[~common[:, None].expand_as(filled)]
    )
