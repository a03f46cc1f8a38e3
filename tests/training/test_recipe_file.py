"""Recipe files: in groups, and without groups as they were; every recipe and every choice of one as it was before."""

import json
from pathlib import Path

import pytest
import yaml

from aim_fast.errors import UsageError
from aim_fast.training.recipe import FIELDS, GROUPS, Recipe, recipe_differences
from aim_fast.training.recipe_file import default_recipe, load_recipe, recipe_of, shipped_recipes

GOLDEN = Path(__file__).parent.parent / "golden"
FLAT = json.loads((GOLDEN / "flat_recipes.json").read_text())
# fields that came later, at what a recipe without them means
SINCE = {
    "kernels": "tuned",
    "tracker": ("tensorboard",),
    "accept_gaps": False,
    "shard_cache_gib": 64.0,
    "weights_key": None,
    "method": None,
    "schedule": "epochs",
    "adapter_width": 384,
    "adapter_before": ("mlp",),
    "adapter_kernel": (3, 1, 1),
    "mlp_adapters": 2,
    "zero_dropout": 0.1,
    "shift_div": 12,
    "shift_reach": 1,
    "attention_over_time": False,
    "lora_rank": 8,
    "lora_alpha": 16.0,
    "lr_factors": (),
    "optimizer": "adamw",
    "momentum": 0.9,
    "no_decay": ("default",),
    "min_lr": 0.0,
    "lr_drops": (),
    "crop_short_side": (),
    "view_starts": "middles",
    "mit_layers": 1,
    "prompt_layers": 2,
    "fusion_layers": 6,
    "decoder_layers": 4,
    "decoder_dropout": 0.5,
    "side_width": 320,
    "dist_width": 384,
    "dist_temporal": 96,
    "dist_pooling": 4,
    "cache_layers": None,
    "equal_segments": False,
    "crop_scales": (),
    "flip_labels": False,
    "jitter": (),
    "jitter_prob": 1.0,
    "grayscale": 0.0,
    "aug_repeats": 1,
    "multi_label": False,
    "balanced_sampling": False,
    "class_weights": None,
    "layer_decay": 1.0,
    "patience": 0,
    "patience_metric": None,
    "teacher": None,
    "distill_weight": 0.5,
    "distill_temperature": 4.0,
    "time_limit": None,
}
# a field that had yes and no, which are read as on and off, and has a default since that chooses
SINCE |= {"cuda_graph": "auto"}
CHOICES = json.loads((GOLDEN / "recipe_choices.json").read_text())
# Towers of a size that their names do not tell, or seem to tell otherwise: an H/14, and a ViT of medium width.
MISLED = {"open_clip:nllb-clip-large": "l14", "open_clip:vit_medium_patch16_gap_256": "b16"}


def resolved(name):
    """All fields of a shipped recipe as they were when recipes had no groups."""
    fields = FLAT["default"] | FLAT["recipes"][name]["resolved"] | SINCE
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


@pytest.fixture
def refusal(tmp_path):
    """The one line that a file's text is refused with."""

    def load(text, overrides=None):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        with pytest.raises(UsageError) as caught:
            load_recipe(path, overrides or {})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return load


@pytest.mark.parametrize("name", FLAT["recipes"])
def test_every_shipped_recipe_has_the_values_that_it_had(name):
    fields = load_recipe(name, {}).fields()
    assert fields == resolved(name)
    assert {key: type(value) for key, value in fields.items()} == {k: type(v) for k, v in resolved(name).items()}


@pytest.mark.parametrize("name", FLAT["recipes"])
def test_files_without_groups_are_read_as_they_were(name, tmp_path):
    for other, recipe in FLAT["recipes"].items():
        text = recipe["text"].replace("extends: ", f"extends: {tmp_path}/")
        (tmp_path / other).with_suffix(".yaml").write_text(
            "".join(line + (".yaml" if line.startswith("extends") else "") + "\n" for line in text.splitlines())
        )
    recipe = load_recipe(tmp_path / f"{name}.yaml", {})
    assert recipe.fields() == resolved(name)
    assert recipe == load_recipe(name, {})


def test_the_recipe_of_a_run_from_before_groups_goes_on_as_the_same(tmp_path):
    fields = FLAT["default"] | FLAT["recipes"]["ssv2_b16_8f"]["resolved"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
    assert recipe_differences(load_recipe(tmp_path / "recipe.yaml", {}), load_recipe("ssv2_b16_8f", {})) == []
    now = load_recipe("ssv2_b16_8f", {"cuda_graph": "off"}).model_dump(mode="json")
    assert recipe_of(fields, "study.json") == recipe_of(now, "")


@pytest.mark.parametrize(("written", "meant"), [("true", "on"), ("false", "off"), ("on", "on"), ("'off'", "off")])
def test_a_field_that_had_yes_and_no_is_read_as_on_and_off(tmp_path, written, meant):
    (tmp_path / "recipe.yaml").write_text(f"run:\n  cuda_graph: {written}\n")
    recipe = load_recipe(tmp_path / "recipe.yaml", {})
    assert recipe.run.cuda_graph == meant
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "recipe.yaml", {}) == recipe


def test_a_saved_recipe_is_in_groups_with_every_field_in_one():
    saved = yaml.safe_load(Recipe().to_yaml())
    assert list(saved) == list(GROUPS)
    names = [name for group in saved.values() for name in group]
    assert names == list(FIELDS)
    assert len(names) == len(set(names)) == len(FLAT["default"] | SINCE)


@pytest.mark.parametrize("row", CHOICES["rows"], ids=lambda row: str(row["models"][-1]))
def test_every_choice_of_a_recipe_is_what_it_was(row):
    for model in row["models"]:
        if model in MISLED:
            assert default_recipe("ucf101", model, 8) == f"finetune_{MISLED[model]}"
            continue
        for choice in row["choices"]:
            for dataset in choice["datasets"]:
                found = [default_recipe(dataset, model, frames) for frames in CHOICES["frames"]]
                assert found == choice["recipes"], (model, dataset)


def test_every_family_that_an_entry_names_has_recipes():
    from aim_fast.models.libraries import NETWORKS
    from aim_fast.models.registry import MODELS

    for name, entry in (MODELS | NETWORKS).items():
        assert any(recipe in shipped_recipes() for recipe in (f"finetune_{entry.recipes}", entry.recipes)), name


def test_a_file_may_name_the_trunk_the_method_and_the_head(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: ssv2_dinov3_8f\ntrunk: timm:vit_small_patch16_dinov3\nmethod: probe\nhead: attentive\n")
    model = load_recipe(path, {}).model
    assert (model.model, model.method, model.head) == ("timm:vit_small_patch16_dinov3", "probe", "attentive")
    path.write_text("model:\n  trunk: vit_b16_clip\n  model: vit_l14_clip\n")
    with pytest.raises(UsageError, match="line 3: model is given here and at line 2; keep one"):
        load_recipe(path, {})


def test_groups_and_single_fields_may_stand_in_one_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: ssv2_b16_8f\nepochs: 7\noptimisation:\n  lr: 1e-3\n  betas: 0.9, 0.95\nmodel: aim_swin_b\n"
    )
    recipe = load_recipe(path, {"weight_decay": "0.1"})
    assert (recipe.optimisation.lr, recipe.optimisation.epochs, recipe.optimisation.betas) == (1e-3, 7, (0.9, 0.95))
    assert (recipe.model.model, recipe.optimisation.weight_decay) == ("aim_swin_b", 0.1)
    assert recipe.augmentation.label_smoothing == 0.1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr: 1e-3\noptimisation:\n  epochs: 3\n  lr: 2e-3\n", "line 4: lr is given here and at line 1"),
        ("model:\n  model: aim_swin_b\nmodel: aim_swin_t\n", "model is given at line 1 and at line 3"),
        ("data:\n  frames: 8\n  interval: 2\n  frames: 16\n", "frames is given at line 2 and at line 4"),
        ("data:\n  frames: 8\nrun:\n  seed: 1\ndata:\n  interval: 2\n", "data is given at line 1 and at line 5"),
        ("# rates\noptimization:\n  lr: 1\n", "line 2: unknown group 'optimization'; did you mean 'optimisation'?"),
        ("optimization: {}\n", "line 1: unknown group 'optimization'; did you mean 'optimisation'?"),
        ("data:\n  lr: 1\n", "line 2: lr is a field of optimisation, not of data"),
        ("optimisation:\n  epochs: 3\n  lrr: 1\n", "line 3: unknown field 'lrr'; did you mean 'lr'?"),
        ("run:\n  seed: 1\ndata: 3\n", "line 3: data is a group"),
        ("data:\n", "line 1: data is a group"),
        ("lr: {a: 1}\n", "line 1: lr is {'a': 1}, not a number"),
        ("optimisation:\n  lr: high\n", "line 2: lr is 'high', not a number"),
        ("optimisation:\n  epochs: -1\n", "line 2: epochs: -1 must be 0 or more"),
        ("epochs: 3\n\nflip: 2\n", "line 3: flip: 2.0 must be from 0 to 1"),
        ("aim:\n  adapters: [spatial, jont]\n", "line 2: adapters: unknown 'jont'; did you mean 'joint'?"),
        ("evaluation:\n  views: 3\n", "line 2: views: '3' must be CLIPSxCROPS"),
        ("data:\n  shots: 4\n  shot_list: list.txt\n", "line 2: shots: 4 must be left out where shot_list"),
        ("extends: 3\n", "line 1: extends is 3, not the name"),
        ("epochs: 3\nextends: mine.yaml\n", "line 2: extends mine.yaml, which extends this file"),
        ("output: 2024-13-45\n", "not valid YAML"),
        ("? [lr]\n: 1\n", "not valid YAML at line 1"),
        ("seed: 1\non: 1\n", "line 2: unknown field 'on'"),
        ("a: " + 2000 * "[" + "\n", "not valid YAML"),
    ],
)
def test_a_wrong_group_or_field_is_refused_with_its_line(refusal, tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    assert says in refusal(text)


def test_a_wrong_value_is_refused_although_another_wins_over_it(refusal):
    assert "line 2: lr is 'high'" in refusal("optimisation:\n  lr: high\n", {"lr": 1e-3})


def test_fields_that_contradict_each_other_name_where_the_first_was_given(refusal):
    assert "line 2: aug: 'timm:rand-m9' must be given without another RandAugment" in refusal(
        "augmentation:\n  aug: timm:rand-m9\n", {"randaugment": "4,7"}
    )
    assert "command line: shots: 4 must" in refusal("shot_list: list.txt\n", {"shots": 4})


def test_fields_change_by_name_alone_and_are_checked_again():
    recipe = load_recipe("ssv2_b16_8f", {}).replace(lr=1e-3, dataset="ssv1", adapters=("joint",))
    assert (recipe.optimisation.lr, recipe.data.dataset, recipe.aim.adapters) == (1e-3, "ssv1", ("joint",))
    with pytest.raises(UsageError, match="lr: -1.0 must be 0 or more"):
        recipe.replace(lr=-1)
    with pytest.raises(UsageError, match="unknown field 'rate'"):
        recipe.replace(rate=1)


def test_recipe_files_need_no_torch():
    import subprocess
    import sys

    program = (
        "import sys\nfrom aim_fast.training.recipe_file import load_recipe\nload_recipe(None, {'dataset': 'ssv2'})\n"
        "assert not {'torch', 'numpy', 'nvidia.dali', 'av'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_file_of_the_page_on_recipes_is_read(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    (tmp_path / "mine.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    recipe = load_recipe(tmp_path / "mine.yaml", {})
    assert (recipe.data.frames, recipe.optimisation.lr, recipe.augmentation.label_smoothing) == (16, 1e-3, 0.1)
    assert all(f"| `{group}` |" in page for group in GROUPS)
