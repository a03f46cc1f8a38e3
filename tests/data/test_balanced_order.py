"""A balanced epoch: every class as often, its clips all before one again, a function of seed and epoch."""

import numpy as np

from aim_fast.data.index.rows import Index, Row
from aim_fast.data.plan.balanced_order import training_order
from aim_fast.data.plan.clip_plan import epoch_order


def index(counts, others=()):
    rows = [
        Row(f"{label}-{n}.mp4", label, "", 9, 8, 8, "", "", 0, 1, 1, None, others=others)
        for label, count in enumerate(counts)
        for n in range(count)
    ]
    return Index("list", "train", "", [str(n) for n in range(len(counts))], rows, multi_label=bool(others))


def test_every_class_comes_as_often_to_one_and_its_clips_in_turns():
    made = index([30, 3, 0, 7])
    order, times = training_order(made, True, seed=3, epoch=2)
    labels = np.array([made.rows[row].label for row in order])
    assert sorted(np.bincount(labels, minlength=4)) == [0, 13, 13, 14]
    for label in (1, 3):
        counts = np.bincount(order[labels == label])
        counts = counts[counts > 0]
        assert len(counts) == {1: 3, 3: 7}[label]
        assert counts.max() - counts.min() <= 1
    assert all(times[place] == (order[:place] == row).sum() for place, row in enumerate(order))


def test_an_order_is_of_seed_and_epoch_and_without_balance_the_usual_one():
    made = index([30, 3])
    one, again, other = (training_order(made, True, 0, epoch)[0].tolist() for epoch in (1, 1, 2))
    assert one == again != other
    order, times = training_order(made, False, 0, 1)
    assert order.tolist() == epoch_order(33, 0, 1).tolist()
    assert not times.any()


def test_a_clip_of_several_classes_comes_for_each():
    made = index([4, 0, 0], others=(2,))
    order, _ = training_order(made, True, 0, 0)
    assert [len(rows) for rows in made.members] == [4, 0, 4]
    assert len(order) == 4
    assert np.bincount(order).max() <= 2
