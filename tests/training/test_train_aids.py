"""Losses, weights, rates and sizes that make training easier, against libraries' own and against their formulas."""

import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay

from aim_fast.data.index.rows import Index, Row
from aim_fast.errors import UsageError
from aim_fast.models.registry import create_model
from aim_fast.training.batch_size import batch_sizes, largest
from aim_fast.training.class_weights import class_weights
from aim_fast.training.early_stopping import EarlyStopping
from aim_fast.training.learning_rate_finder import Sweep
from aim_fast.training.losses import distillation_losses, multi_label_losses
from aim_fast.training.multi_label_evaluation import MultiLabelEvaluation
from aim_fast.training.optimizer import build_optimizer
from aim_fast.training.recipe import Recipe
from aim_fast.training.recipe_file import load_recipe
from aim_fast.training.recipe_groups import seconds_of

# of scikit-learn 1.9.1, average_precision_score of what test_average_precision draws
AVERAGE_PRECISION = [
    *(0.4574262365166825, 0.31374085684430514, 0.40554377445858175),
    *(0.06666666666666667, 0.9290866455691574, math.nan),
]


def test_average_precision_is_scikit_learns_where_scores_repeat():
    draw = np.random.default_rng(7)
    scores = np.round(draw.random((40, 6)), 1).astype(np.float32)
    labels = (draw.random((40, 6)) < [0.5, 0.3, 0.1, 0.05, 0.9, 0]).astype(int)
    found = MultiLabelEvaluation(torch.tensor(scores), torch.tensor(labels), torch.arange(40), 0)
    np.testing.assert_allclose(found.average_precision, AVERAGE_PRECISION, rtol=1e-12)
    assert found.summary()["map"] == pytest.approx(np.nanmean(AVERAGE_PRECISION), rel=1e-12)
    assert found.class_rows(list("abcdef"))[5] == {"class": "f", "videos": 0, "ap": None}


def test_several_labels_are_learned_by_binary_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3), (torch.rand(5, 3) < 0.4).float()
    plain = multi_label_losses(logits, labels, 0.0)
    torch.testing.assert_close(plain.mean(), F.binary_cross_entropy_with_logits(logits, labels))
    smooth = multi_label_losses(logits, labels, 0.2)
    torch.testing.assert_close(smooth.mean(), F.binary_cross_entropy_with_logits(logits, labels * 0.8 + 0.1))
    weights = torch.tensor([2.0, 1.0, 5.0])
    truth = torch.nn.BCEWithLogitsLoss(pos_weight=weights)(logits, labels)
    torch.testing.assert_close(multi_label_losses(logits, labels, 0.0, weights).mean(), truth)


@pytest.mark.parametrize("several", [False, True])
def test_a_teachers_loss_is_the_divergence_of_softened_scores(several):
    torch.manual_seed(0)
    ours, theirs = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    found = distillation_losses(ours, theirs, 3.0, several).double()
    if several:
        p, q = (theirs / 3).sigmoid(), (ours / 3).sigmoid()
        truth = 9 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean(1)
    else:
        p, q = (theirs / 3).softmax(1), (ours / 3).softmax(1)
        truth = 9 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)
    assert distillation_losses(ours, ours, 3.0, several).abs().max() < 1e-6


def index(counts, multi_label=False):
    rows = [
        Row(f"{label}-{n}.mp4", label, "", 9, 8, 8, "", "", 0, 1, 1, None)
        for label, count in enumerate(counts)
        for n in range(count)
    ]
    return Index("list", "train", "", ["run", "jump", "stay still"], rows, multi_label=multi_label)


def test_balanced_weights_are_those_of_scikit_learn_and_torch():
    assert class_weights("balanced", index([5, 3, 1])).tolist() == pytest.approx([0.6, 1.0, 3.0])
    assert class_weights("balanced", index([5, 3, 1], True)).tolist() == pytest.approx([4 / 5, 6 / 3, 8.0])
    assert class_weights("balanced", index([6, 2, 0])).tolist() == pytest.approx([8 / 12, 2.0, 1.0])
    assert class_weights(None, index([1, 1, 1])) is None


def test_weights_of_a_file_are_in_the_order_of_the_classes(tmp_path):
    (tmp_path / "w.csv").write_text('class,weight\nstay still,3\n"run",1\njump,0.5\n')
    assert class_weights(str(tmp_path / "w.csv"), index([1, 1, 1])).tolist() == [1.0, 0.5, 3.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run 1\njump 2\n", "weighs 2 of 3 classes, not 'stay still'"),
        ("run 1\njump 2\nstay stil 3\n", "'stay stil' is no class of the data set; did you mean"),
        ("run 1\njump -2\nstay still 3\n", "line 2 is not 'CLASS WEIGHT'"),
        ("run 1\njump x\nstay still 3\n", "line 2 is not 'CLASS WEIGHT'"),
        ("run 1\nrun 2\n", "line 2 weighs 'run' again"),
        ("run 0\njump 0\nstay still 0\n", "every weight is 0"),
        (None, "does not exist"),
    ],
)
def test_a_file_of_weights_that_is_wrong_is_refused_with_its_line(tmp_path, text, said):
    if text is not None:
        (tmp_path / "w.txt").write_text(text)
    with pytest.raises(UsageError, match=said):
        class_weights(str(tmp_path / "w.txt"), index([1, 1, 1]))


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_rates_by_depth_are_timms(pool):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
    theirs = timm.create_model("vit_base_patch16_224", **sizes, num_classes=3, global_pool=pool)
    groups = param_groups_layer_decay(theirs, layer_decay=0.6)
    names = {id(p): name for name, p in theirs.named_parameters()}
    truth = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    ours = create_model("timm:vit_base_patch16_224", method="full", **sizes,
                        num_frames=2, num_classes=3, global_pool=pool)  # fmt: skip
    optimizer = build_optimizer(ours, load_recipe("demo", {"layer_decay": 0.6, "backbone_lr_factor": 1.0}))
    names = {id(p): name for name, p in ours.named_parameters()}
    found = {names[id(p)]: group["lr_factor"] for group in optimizer.param_groups for p in group["params"]}
    shared = {name for name in truth if name in found}
    assert len(shared) >= 40
    assert {name.split(".")[0] for name in shared} >= {"patch_embed", "blocks", "pos_embed"}
    for name in shared:
        # timm has the last norm of a class token with the last block, BEiT with the head
        assert found[name] == pytest.approx(1.0 if name.startswith("norm.") else truth[name]), name
    assert found["fc_cls.weight"] == 1.0


def test_a_model_without_one_row_of_blocks_has_no_rates_by_depth():
    with pytest.raises(UsageError, match="has no one row of blocks: leave layer_decay out"):
        build_optimizer(create_model("uniformer_demo", num_classes=3), load_recipe("demo", {"layer_decay": 0.5}))


def test_training_is_over_after_so_many_validations_without_a_better_one():
    stopping = EarlyStopping(2, "loss")
    for loss, over in ((3.0, False), (2.0, False), (2.5, False), (1.9, False), (1.9, False), (2.0, True)):
        again = EarlyStopping(2, "loss")
        again.load_state(stopping.state())
        again.see({"loss": loss})
        stopping = again
        assert stopping.over is over, loss
    never = EarlyStopping(0, "top1")
    never.see({"top1": 0.5})
    never.see({"top1": 0.4})
    assert not never.over


@pytest.mark.parametrize(
    ("fields", "clips", "world", "sizes"),
    [
        ({"total_batch_size": 12}, 100, 1, [1, 2, 3, 4, 6, 12]),
        ({"total_batch_size": 12}, 100, 2, [1, 2, 3, 6]),
        ({"total_batch_size": 12, "mixup": 0.8}, 100, 1, [2, 4, 6, 12]),
        ({"total_batch_size": 12, "accumulate": 3}, 5, 1, [1, 2, 3, 4, 5]),
    ],
)
def test_sizes_that_a_run_can_take_divide_its_steps(fields, clips, world, sizes):
    assert batch_sizes(Recipe.of({"batch_size": "auto", **fields}), clips, world) == sizes


@pytest.mark.parametrize("most", [0, 1, 2, 6, 7, 30, 99])
def test_the_largest_size_that_fits_is_found_in_few_tries(most):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= most

    assert largest(range(1, 31), fits) == min(most, 30)
    assert len(tried) <= 10


def test_the_rate_at_which_the_loss_falls_steepest_is_suggested():
    rates = np.geomspace(1e-6, 1, 61).tolist()
    smooth = [2 - 1 / (1 + math.exp(-(n - 30) / 3)) + (n > 45) * (n - 45) for n in range(61)]
    assert Sweep(rates, smooth, smooth).suggestion == pytest.approx(rates[30], rel=0.06)
    rising = [float(n) for n in range(61)]
    assert Sweep(rates, rising, rising).suggestion is None


def test_times_are_read_as_people_write_them():
    assert [seconds_of(text) for text in ("1:30", "90m", "2h30m", "45s", "0:05")] == [5400, 5400, 9000, 45, 300]
