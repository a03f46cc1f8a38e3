"""Several samples of a clip in a batch, and the class that a mirrored clip has."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from aim_fast.data import Augmentation, ClipLoader, Sampling, load_or_build_index
from aim_fast.data.plan.clip_plan import plan_clip
from aim_fast.data.plan.mirrored import mirrored_classes
from aim_fast.errors import UsageError

pytest.importorskip("nvidia.dali")
SIZE = 32
AUGMENTATION = Augmentation(flip=0.5, jitter=(0.4, 0.4, 0.2, 0.1), erasing=0.5, repeats=2)
KINDS = ("vp9", "vp9_other", "h264", "mpeg4", "vp8")


@pytest.fixture
def index(class_folders, videos):
    return load_or_build_index("folder", class_folders({"train/a": [videos[kind] for kind in KINDS]}), "train")


def batches(index, start=0, **settings):
    loader = ClipLoader(
        index,
        train=True,
        img_size=SIZE,
        num_frames=4,
        **{"augmentation": AUGMENTATION, "batch_size": 2, "workers": 2} | settings,
    )
    found = list(loader.batches(1, start=start))
    loader.close()
    return found


def test_samples_of_a_clip_are_of_the_same_frames_and_each_augmented_apart():
    options = {"sampling": Sampling(4), "augmentation": AUGMENTATION, "img_size": SIZE, "epoch": 3}
    plans = [[plan_clip(60, 120, 160, index=i, view=view, **options) for view in range(3)] for i in range(30)]
    for one, *others in plans:
        for other in others:
            assert np.array_equal(one.frames[one.order], other.frames[other.order])
            assert one.box != other.box
    assert len({plan.flip for _, plan, _ in plans}) == 2


def test_a_batch_holds_every_sample_of_its_clips_at_an_equal_part_of_the_weight(index):
    found = batches(index)
    assert [len(batch) for batch in found] == [4, 4, 4]
    for batch in found:
        assert batch.frames.shape == (4, 4, SIZE, SIZE, 3)
        assert batch.views.tolist() == [0, 1, 0, 1]
        assert torch.equal(batch.indices[::2], batch.indices[1::2])
        assert not torch.equal(batch.frames[0], batch.frames[1])
    weights = torch.cat([batch.weights for batch in found])
    assert weights.tolist() == [0.5] * 10 + [0.0] * 2
    first = batches(index, augmentation=Augmentation(flip=0.5, jitter=(0.4, 0.4, 0.2, 0.1), erasing=0.5))
    for one, both in zip(first, found):
        assert torch.equal(one.frames, both.frames[::2])


def test_samples_do_not_depend_on_workers_decoder_processes_or_where_they_begin(index):
    whole = batches(index)
    other = batches(index, workers=1, decoder="pyav")
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(whole, other, strict=True))
    assert torch.equal(whole[2].frames, batches(index, start=2)[0].frames)
    ranks = [batches(index, batch_size=1, rank=rank, world=2) for rank in range(2)]
    for number, batch in enumerate(whole):
        assert torch.equal(batch.frames, torch.cat([rank[number].frames for rank in ranks]))


def test_a_clip_that_breaks_is_replaced_in_all_of_its_samples(index, monkeypatch):
    import aim_fast.data.loader as module
    from aim_fast.errors import DataError

    broken, decode = index.rows[2].path, module.decoded_boxes
    assert index.rows[2].codec == "h264"

    def failing(path, *arguments, **options):
        if path == broken:
            raise DataError(f"{path}: does not decode")
        return decode(path, *arguments, **options)

    monkeypatch.setattr(module, "decoded_boxes", failing)
    found = batches(index, decoder="pyav")
    shown = torch.cat([batch.indices for batch in found])
    assert 2 not in shown.tolist()
    assert torch.equal(shown[::2], shown[1::2])
    assert torch.cat([batch.weights for batch in found]).tolist() == [0.5] * 10 + [0.0] * 2


def test_the_mirrored_classes_of_something_something_are_its_three_pairs():
    names = {
        "Pulling something from left to right": "Pulling something from right to left",
        "Pushing something from left to right": "Pushing something from right to left",
        "Turning the camera left while filming something": "Turning the camera right while filming something",
    }
    classes = [*names, *names.values(), "Pushing something so that it slightly moves", "Left hand wave", "bright light"]
    assert mirrored_classes(classes).tolist() == [3, 4, 5, 0, 1, 2, 6, -1, 8]
    with pytest.raises(UsageError, match="leave flip_labels out"):
        mirrored_classes(["a", "left turn"])


def test_a_mirrored_clip_has_the_mirrored_class_and_one_without_is_not_mirrored(class_folders, videos):
    root = class_folders(
        {
            f"train/{name}": [videos["vp9"], videos["vp8"]]
            for name in ("move_left", "move right", "still", "left turn", "move left")
        }
    )
    index = load_or_build_index("folder", root, "train")
    swaps = mirrored_classes(index.classes)
    settings = {"batch_size": 5, "workers": 1}
    for seed in range(4):
        plain = batches(index, seed=seed, augmentation=Augmentation(flip=0.5), **settings)
        both = batches(index, seed=seed, augmentation=Augmentation(flip=0.5, flip_labels=True), **settings)
        assert json.dumps([b.indices.tolist() for b in plain]) == json.dumps([b.indices.tolist() for b in both])
        for one, other in zip(plain, both):
            for place in range(5):
                row = int(one.indices[place])
                label, swapped = index.rows[row].label, int(swaps[index.rows[row].label])
                flipped = plan_clip(
                    index.rows[row].frames, *index.rows[row].display_size, sampling=Sampling(4), img_size=SIZE,
                    augmentation=Augmentation(flip=0.5), seed=seed, epoch=1, index=row,
                ).flip  # fmt: skip
                assert other.labels[place] == (swapped if flipped and swapped >= 0 else label)
                same = torch.equal(one.frames[place], other.frames[place])
                assert same == (not flipped or swapped >= 0)
