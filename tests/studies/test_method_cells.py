"""Rows of methods: whose recipe they take, over how many epochs, and what was published for them."""

import json

import pytest

from aim_fast.errors import UsageError
from aim_fast.studies.method_cells import Budget, method_cells, methods_on, with_epochs
from aim_fast.studies.row_weights import check_row_weights
from aim_fast.studies.spending import spending_of, steady_speed
from aim_fast.training.recipe_file import RECIPES, load_recipe, recipe_mark, shipped_recipes

SSV2 = {"dataset": "ssv2", "weights": "ViT-B-16.pt"}


def recipes_of(words, fields=SSV2, budget="published"):
    base, cells = method_cells(words, fields, None, Budget.of(budget))
    return {cell.title: base.replace(**cell.changes) for cell in cells}, cells


def test_every_row_takes_its_own_published_recipe_marked():
    recipes, cells = recipes_of(("aim", "st_adapter", "lora", "probe", "attentive"))
    for method in ("st_adapter", "lora"):
        own = load_recipe(f"ssv2_{method}", {**SSV2, "model": "aim_vit_b16_clip", "method": method})
        assert recipes[method] == own
    assert recipes["attentive"].model.head == "attentive"
    assert [cell.recipe for cell in cells] == [
        "ssv2_b16_8f, published",
        "ssv2_st_adapter, published",
        "ssv2_lora, ours",
        "ssv2_b16_8f, published for aim",
        "ssv2_b16_8f, published for aim",
    ]
    assert [cell.published for cell in cells[:3]] == [66.4, 66.9, None]


def test_a_published_recipe_is_marked_so_for_its_own_method_alone():
    marks = [cell.recipe for cell in method_cells(("evl", "lora", "attentive"), SSV2, "k400_evl", Budget())[1]]
    assert marks == ["k400_evl, published", *["k400_evl, published for evl"] * 2]


def test_equal_epochs_keep_the_share_of_a_longer_recipe_s_warm_up():
    recipes, _ = recipes_of(("aim", "st_adapter"), budget="epochs=10")
    assert {recipe.optimisation.epochs for recipe in recipes.values()} == {10}
    assert recipes["aim"].optimisation.warmup_epochs == 0.5
    assert recipes["st_adapter"].optimisation.warmup_epochs == 0.4
    drops = load_recipe(None, {"schedule": "drops", "lr_drops": (11, 14), "epochs": 15})
    assert with_epochs(drops, 5).optimisation.lr_drops == (4, 5)
    assert with_epochs(drops, 30).optimisation.lr_drops == (11, 14)


def test_one_trunk_stands_under_all_methods_and_its_weights_go_to_its_own_sizes():
    fields = {**SSV2, "model": "vit_l14_clip"}
    recipes, _ = recipes_of(("aim", "bitfit", "timesformer_l14_clip", "aim_vit_b16_clip", "swin3d"), fields)
    assert {recipes[word].model.model for word in ("aim", "bitfit")} == {"vit_l14_clip"}
    assert recipes["timesformer_l14_clip"].model.weights == "ViT-B-16.pt"
    assert recipes["aim_vit_b16_clip"].model.weights == "random"
    assert recipes["swin3d"].model.model == "torchvision:swin3d_t"


def test_options_go_to_the_rows_that_take_them():
    recipes, _ = recipes_of(("aim", "lora,epochs=3"), {**SSV2, "lora_rank": 4, "num_tadapter": 1, "lr": 0.01})
    assert recipes["lora,epochs=3"].lora.lora_rank == 4
    assert recipes["lora,epochs=3"].optimisation.epochs == 3
    assert recipes["aim"].aim.num_tadapter == 1
    assert {recipe.optimisation.lr for recipe in recipes.values()} == {0.01}


def test_a_word_that_begins_several_names_stands_for_the_first_and_says_so():
    said = []
    method_cells(("mvit",), SSV2, None, Budget(), said.append)
    assert said[0].startswith(
        "mvit: torchvision:mvit_v1_b, the first of torchvision:mvit_v1_b, torchvision:mvit_v1_b24"
    )


@pytest.mark.parametrize("text", ["epochs=0", "epochs=1.5", "hours=0", "hours=", "weeks=2", "epochs"])
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="epochs=N or hours=H"):
        Budget.of(text)


def test_every_recipe_of_a_method_says_whether_it_is_published():
    marks = {name: recipe_mark(name) for name in shipped_recipes()}
    assert {marks[f"k400_{name}"] for name in ("lora", "bitfit", "dinov3_8f", "in21k_b16_16f")} == {"ours"}
    assert {marks[f"k400_{name}"] for name in ("b16_8f", "st_adapter", "zeroi2v", "l14_32f")} == {"published"}
    assert {marks["demo"], marks["finetune_b16"], recipe_mark("own.yaml")} == {"ours"}


def test_methods_that_read_class_names_are_left_out_where_there_is_no_text_tower():
    assert set(methods_on("vit_demo", texts=True)) - set(methods_on("vit_demo", texts=False)) >= {"promptclip", "text"}
    assert "lora" in methods_on("vit_demo", texts=False)


def test_hours_are_those_of_whole_epochs_at_the_speed_of_their_last_lines(tmp_path):
    lines = [
        {"kind": "train", "step": 1, "epoch": 1, "clips_per_s": 1.0},
        {"kind": "train", "step": 2, "epoch": 1, "clips_per_s": 4.0},
        {"kind": "data", "step": 2, "epoch": 1, "peak_memory": 5},
        {"kind": "train", "step": 4, "epoch": 2, "clips_per_s": 2.0},
        {"kind": "data", "step": 4, "epoch": 2, "peak_memory": 7},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spent = spending_of(tmp_path, clips=16)
    assert spent.hours == pytest.approx((16 / 4 + 16 / 2) / 3600)
    assert spent.clips_per_s == pytest.approx(32 / 12)
    assert spent.peak_memory == 7
    assert steady_speed(lines[:2], clips_per_step=8) is None
    slow = [{"kind": "train", "step": step, "clips_per_s": 8 * step / (10 + step)} for step in (1, 5, 30)]
    assert steady_speed(slow, clips_per_step=8) == pytest.approx(8)


def test_every_shipped_recipe_says_in_its_file_whether_it_is_published(tmp_path):
    for name in shipped_recipes():
        lines = [line for line in (RECIPES / f"{name}.yaml").read_text().splitlines() if not line.startswith("#")]
        assert lines[0] == f"origin: {recipe_mark(name)}", name
    (tmp_path / "mine.yaml").write_text("extends: ssv2_b16_8f\norigin: published\n")
    assert recipe_mark(tmp_path / "mine.yaml") == "ours"
    assert load_recipe(tmp_path / "mine.yaml", {}) == load_recipe("ssv2_b16_8f", {})
    (tmp_path / "mine.yaml").write_text("extends: ssv2_b16_8f\norigin: mine\n")
    with pytest.raises(UsageError, match="line 2: origin is 'mine': write published or ours"):
        load_recipe(tmp_path / "mine.yaml", {})


ISSUE = [
    *("aim", "evl", "st_adapter", "x_clip", "actionclip", "dist", "zeroi2v"),
    *("uniformer", "mvit", "swin3d", "timesformer", "vivit", "lora", "probe"),
]


def test_every_short_name_of_a_published_system_takes_the_recipe_of_its_own():
    _, cells = recipes_of(ISSUE)
    found = dict(zip(ISSUE, (cell.recipe.partition(",")[0] for cell in cells)))
    own = {word: f"ssv2_{word}" for word in ("evl", "st_adapter", "x_clip", "actionclip", "dist", "zeroi2v", "lora")}
    networks = {"uniformer": "finetune_uniformer", "mvit": "finetune_mvit_v1_b", "swin3d": "finetune_swin3d_t"}
    timesformer = {"timesformer": "ssv2_timesformer_b16_8f", "vivit": "finetune_vivit_joint"}
    assert found == own | networks | timesformer | {"aim": "ssv2_b16_8f", "probe": "ssv2_b16_8f"}
    published = {cell.title: cell.published for cell in cells if cell.published}
    assert published == {"aim": 66.4, "st_adapter": 66.9, "dist": 68.7, "zeroi2v": 67.7, "timesformer": 59.5}


def test_what_every_row_begins_from_is_said_and_what_is_missing_is_refused_together(tmp_path):
    said = []
    base, cells = method_cells(["aim", "mvit", "lora"], {"dataset": "ssv2"}, None, Budget())
    with pytest.raises(UsageError) as caught:
        check_row_weights(base, cells, said.append)
    assert "nothing is trained: aim, lora: no --weights: give a file of the trunk's, or random" in str(caught.value)
    assert [line.partition(":")[0] for line in said] == ["aim", "mvit", "lora"]
    assert "mvit,weights=FILE takes its own (torchvision:mvit_v1_b)" in said[1]
    fields = {"dataset": "ssv2", "weights": str(tmp_path / "none.pt")}
    base, cells = method_cells(["aim", "mvit", "lora,weights=random"], fields, None, Budget())
    with pytest.raises(UsageError, match=r"aim: no file .*none.pt: give one that is there$"):
        check_row_weights(base, cells, said.append)
    (tmp_path / "none.pt").touch()
    check_row_weights(base, cells, said.append)
    assert said[-3] == f"aim: from {tmp_path / 'none.pt'}"
