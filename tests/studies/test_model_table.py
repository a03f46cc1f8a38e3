"""The table of all models holds every cost that was published, beside the one that is counted."""

import pytest

from aim_fast.studies.model_table import model_table


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
