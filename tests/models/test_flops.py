"""Cost of the models: computed, and equal to the published tables."""

import pytest
import torch

from aim_fast.models.flops import count_parameters, model_table, multiply_adds
from aim_fast.models.registry import create_model

PUBLISHED = {
    1: {"aim_vit_b16_clip": (606, 1214, 2428), "aim_vit_l14_clip": (2802, 5604, 11208)},
    2: {"aim_vit_b16_clip": (624, 1248, 2496), "aim_vit_l14_clip": (2877, 5754, 11508)},
}


@pytest.mark.parametrize(("num_tadapter", "num_classes"), [(1, 400), (2, 174)])
def test_gflops_of_three_views_are_the_published_ones(num_tadapter, num_classes):
    rows = model_table(num_tadapter=num_tadapter, num_classes=num_classes)
    for name, published in PUBLISHED[num_tadapter].items():
        found = {row["frames"]: row["gflops"] for row in rows if row["name"] == name}
        assert found == {t: pytest.approx(gflops, rel=0.005) for t, gflops in zip((8, 16, 32), published)}


def test_parameters_are_the_published_ones():
    rows = {row["name"]: row for row in model_table(frames=(8,))}
    assert rows["aim_vit_b16_clip"]["params"] == pytest.approx(97e6, rel=0.005)
    assert rows["aim_vit_b16_clip"]["trainable"] == 10_966_672
    assert rows["aim_vit_l14_clip"]["params"] == pytest.approx(341e6, rel=0.005)
    assert rows["aim_vit_l14_clip"]["trainable"] == pytest.approx(38e6, rel=0.01)


def test_table_counts_every_block():
    row = next(row for row in model_table(frames=(4,), views=1, num_classes=5) if row["name"] == "aim_vit_demo")
    with torch.device("meta"):
        model = create_model("aim_vit_demo", num_frames=4, num_classes=5).eval()
    assert (row["params"], row["trainable"]) == count_parameters(model)
    assert row["gflops"] == round(multiply_adds(model) / 1e9, 3)


def test_multiply_adds_of_one_block_by_hand():
    d, n, t, c = 32, 17, 4, 5
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": d, "depth": 1, "num_heads": 4, "num_frames": t}
    model = create_model("aim_vit_demo", **sizes, num_classes=c, num_tadapter=2).eval()
    attention = 2 * 4 * d * d + 2 * n * d + 2 * t * d  # over space and over time, per token
    per_token = attention + 8 * d * d + 4 * 2 * d * (d // 4)
    assert multiply_adds(model) == t * (n * per_token + (n - 1) * 3 * 64 * d) + c * d
