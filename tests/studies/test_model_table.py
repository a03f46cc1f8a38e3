"""The table of all models holds every cost that was published, beside the one that is counted."""

import pytest
import torch

from aim_fast.errors import UsageError
from aim_fast.models.counting.flops import count_costs
from aim_fast.models.heads import HEADS, OF_METHODS
from aim_fast.models.methods import METHODS
from aim_fast.models.published import find_published, published_results
from aim_fast.models.registry import create_model
from aim_fast.studies.model_table import model_table, part_table
from aim_fast.training.recipe_groups import parse_views


def test_every_published_cost_of_the_main_tables_is_among_the_rows():
    table = model_table(names=("aim_vit_b16_clip", "aim_vit_l14_clip"))
    rows = {(row["name"], row["dataset"], row["frames"]): row for row in table if not row["overrides"]}
    for trunk in ("b16", "l14"):
        for dataset in ("kinetics400", "ssv2"):
            for frames in (8, 16, 32):
                row = rows[f"aim_vit_{trunk}_clip", dataset, frames]
                assert row["gflops"] == pytest.approx(row["published"]["gflops"], rel=0.005)
    assert rows["aim_vit_b16_clip", "kinetics400", 8]["trainable"] == 10_966_672
    assert rows["aim_vit_b16_clip", "ssv2", 8]["trainable"] == 14_343_342
    assert rows["aim_vit_b16_clip", "kinetics400", 8]["published"]["top1"] == 83.9


ROWS = [row for row in published_results() if "method" in row.overrides]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}-{row.dataset}-{row.frames}-{row.source[:20]}")
def test_what_was_published_of_a_method_stands_beside_its_model(row):
    found = find_published(row.model, row.dataset, row.arguments)
    first = next(other for other in ROWS if (other.model, other.dataset) == (row.model, row.dataset)
                 and other.arguments == row.arguments)  # of several reports of one structure  # fmt: skip
    assert (found.top1, found.frames, found.source) == (first.top1, first.frames, first.source)
    if row.gflops:  # X-CLIP's printed cost of a B/16's view is rounded up, and ours averages before it projects
        clips, crops = parse_views(row.views)
        tolerance = 0.01 if row.overrides["method"] == "x_clip" else 0.005
        assert count_costs(row.model, row.arguments)[2] * clips * crops / 1e9 == pytest.approx(
            row.gflops, rel=tolerance
        )


def test_combinations_are_listed_with_their_costs_or_why_there_is_none():
    said = []
    table = model_table(
        names=("vit_demo", "swin_demo"), datasets=("ssv2",), methods=("aim", "probe"), heads=("attentive", "linear"),
        refuse=said.append,
    )  # fmt: skip
    found = {(row["name"], row["overrides"]["method"], row["overrides"]["head"]): row for row in table}
    assert list(found) == [
        *(("vit_demo", method, head) for method in ("aim", "probe") for head in ("attentive", "linear")),
        ("swin_demo", "aim", "linear"),
    ]
    assert found["vit_demo", "probe", "linear"]["trainable"] == 174 * 65
    assert found["vit_demo", "probe", "linear"]["gflops"] < found["vit_demo", "aim", "linear"]["gflops"]
    assert [line.partition(":")[0] for line in said] == [
        "swin_demo,method=aim,head=attentive",
        "swin_demo,method=probe,head=attentive",
        "swin_demo,method=probe,head=linear",
    ]
    with pytest.raises(UsageError, match="of method aim, with a head of its own"):
        model_table(names=("swin_demo",), methods=("full",))


def test_what_is_listed_as_a_combination_is_made_and_nothing_else():
    every = part_table(("vit_demo", "vit_imagenet_demo", "swin_demo", "vit_h14_clipa", "vit_g14_clip"))
    for name, parts in every["combinations"].items():
        for method in every["methods"]:
            for head in every["heads"]:
                own = method in ("promptclip", *OF_METHODS)
                beside = method in METHODS and METHODS[method].beside  # which leaves no tokens to a head
                taken = head in parts["heads"] and not (beside and HEADS[head].reads_tokens)
                if method in parts["methods"] and (taken if not own else head == "linear"):
                    with torch.device("meta"):
                        create_model(name, method=method, head=head, **({} if "swin" in name else {"depth": 1}))
                else:
                    with pytest.raises(UsageError):
                        create_model(name, method=method, head=head)
    assert part_table(["timm:vit_base_patch16_dinov3"])["combinations"] == {
        "timm:vit_base_patch16_dinov3": {
            "methods": [
                "aim",
                "probe",
                "full",
                "timesformer",
                "st_adapter",
                "zeroi2v",
                "bitfit",
                "lora",
                "evl",
                "side4video",
                "dist",
            ],
            "heads": ["linear", "attentive"],
        }
    }
