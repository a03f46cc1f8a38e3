"""The file of published results: what is printed, what is counted, and a word where the two are not one."""

import pytest

from aim_fast.models.published import PublishedResult, find_published, published_results

ROWS = published_results()
MAIN = {row.name: row for row in ROWS if row.name and row.dataset == "kinetics400" and row.source.startswith("Yang")}


def test_the_whole_main_table_is_there_as_printed():
    printed = {name.split()[0]: (row.gflops, row.params, row.trainable, row.top1) for name, row in MAIN.items()}
    assert printed == {
        "MViT-B": (4095, 37, 37, 81.2),
        "UniFormer-B": (3108, 50, 50, 83.0),
        "TimeSformer-L": (7140, 121, 121, 80.7),
        "ViViT-L/16×2": (3980, 311, 311, 80.6),
        "VideoSwin-L": (7248, 197, 197, 83.1),
        "MViTv2-L": (42420, 218, 218, 86.1),
        "MTV-L": (18050, 876, 876, 84.3),
        "TokenLearner-L/10": (48912, 450, 450, 85.4),
        "PromptCLIP": (None, None, None, 76.8),
        "ActionCLIP": (16890, 142, 142, 83.8),
        "X-CLIP-L/14": (7890, 420, 420, 87.1),
        "EVL": (8088, 368, 59, 87.3),
    }
    contradicted = {name: (row.printed_frames, row.frames) for name, row in MAIN.items() if row.printed_frames}
    assert contradicted == {"TimeSformer-L": (64, 96), "ViViT-L/16×2 FE": (32, 128), "MViTv2-L 312": (32, 40)}


def disagreements(row):
    """Which printed figures of a row are not the counted ones, to 0.5 % or to the printed digits."""
    printed = {"params": row.params, "trainable": row.trainable, "gflops": row.gflops}
    if row.gflops_a_view:
        printed["gflops"] = row.gflops_a_view * row.views_a_video
    found = []
    for name, counted in row.counted.items():
        figure = printed[name]
        step = row.views_a_video if row.gflops_a_view and name == "gflops" else 1  # of the last digit
        if figure is not None and abs(figure - counted) > max(0.005 * counted, step):
            found.append(name)
    return found


@pytest.mark.parametrize("row", [row for row in ROWS if row.counted], ids=lambda row: f"{row.name}-{row.source[:12]}")
def test_a_printed_figure_that_is_not_the_counted_one_has_a_note(row):
    odd = disagreements(row)
    assert not odd or row.note, f"{row.name}: {odd}"


def test_what_nobody_has_verified_says_so():
    for name in ("ActionCLIP B/16", "X-CLIP-L/14", "EVL L/14", "TokenLearner-L/10"):
        assert "not verified" in MAIN[name].note
    assert all("not verified" in row.note for row in ROWS if row.name.startswith("DiST") and row.gflops_a_view)


def test_every_row_says_what_it_is_and_names_its_source():
    for row in ROWS:
        assert isinstance(row, PublishedResult)
        assert row.source
        assert row.name or row.model
        assert not (row.counted and row.model), "a row with a model is counted by it"


def test_one_combination_has_its_row_however_it_is_named():
    arguments = {"num_frames": 8, "num_classes": 400}
    named = find_published("timesformer_b16_clip", "kinetics400", arguments)
    assert named.top1 == 82.0
    assert find_published("vit_b16_clip", "kinetics400", arguments | {"method": "timesformer"}) is named
    assert find_published("vit_b16_clip", "kinetics400", arguments | {"method": "st_adapter"}).top1 == 82.0
    trained = arguments | {"method": "zeroi2v", "adapter_scale": 0.5}
    assert find_published("vit_b16_clip", "kinetics400", trained).top1 == 83.0
    assert find_published("vit_l14_clip", "kinetics400", trained) is None
